"""colour-mnist: MNIST's digits in any colour, size and place. See data/README.md."""

import numpy as np
import torch

from src.datasets.images import ImageDataModule


class ColourMNIST(ImageDataModule):
    name = "colour-mnist"
    shape = [3, 32, 32]
    classes = list("0123456789")
    mean, std = [0.493, 0.494, 0.494], [0.269, 0.254, 0.277]
    crop = True  # but no flip: in a mirror a 2 is no 2

    def load(self, train):
        start = self.data_dir / "colour-mnist" / ("train" if train else "test")
        images = torch.from_numpy(np.load(f"{start}_images.npy", allow_pickle=False))  # (N, H, W, C)
        labels = torch.from_numpy(np.load(f"{start}_labels.npy", allow_pickle=False))
        return images.permute(0, 3, 1, 2).contiguous(), labels
