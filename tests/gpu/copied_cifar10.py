"""CIFAR-10 from an archive of image files, as images.py has decoded it.

It is not the original: its images were compressed with losses. Each number that is made with it names it as a copy.
"""

import numpy as np
import torch

from src.datasets.cifar10 import CIFAR10
from src.datasets.colour_mnist import ColourMNIST
from src.datasets.datamodule import DATA_DIR


class CopiedCIFAR10(CIFAR10):
    def prepare_data(self):
        pass

    def load(self, train):
        start = self.data_dir / ("train" if train else "test")
        images = torch.from_numpy(np.load(f"{start}_images.npy", allow_pickle=False))  # (N, H, W, C)
        labels = torch.from_numpy(np.load(f"{start}_labels.npy", allow_pickle=False))
        return images.permute(0, 3, 1, 2).contiguous(), labels


def choose(work):
    """The best data set that this machine has: (its data module, what to call it)."""
    if (DATA_DIR / "cifar-10-batches-py").is_dir():
        return CIFAR10(), "CIFAR-10"
    if (work / "train_images.npy").exists():
        return CopiedCIFAR10(data_dir=str(work)), "CIFAR-10, JPEG copy"
    return ColourMNIST(), "colour-MNIST, because CIFAR-10 is not here"
