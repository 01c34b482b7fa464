"""CIFAR-10 from an archive of image files, as images.py has decoded it.

It is not the original: its images were compressed with losses. Each number that is made with it names it as a copy.
"""

import numpy as np
import torch

from src.datasets.cifar10 import CIFAR10


class CopiedCIFAR10(CIFAR10):
    def prepare_data(self):
        pass

    def load(self, train):
        start = self.data_dir / ("train" if train else "test")
        images = torch.from_numpy(np.load(f"{start}_images.npy", allow_pickle=False))  # (N, H, W, C)
        labels = torch.from_numpy(np.load(f"{start}_labels.npy", allow_pickle=False))
        return images.permute(0, 3, 1, 2).contiguous(), labels
