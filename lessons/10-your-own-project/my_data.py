"""Turned digits: each image is a digit of MNIST, turned by an angle. The angle is what has to be found out."""

import math

import torch
from torch.nn import functional as F
from torch.utils.data import Dataset

from src.datasets.datamodule import DataModule
from src.datasets.mnist import MNIST


def turn(images, angles):
    """Images (N, 1, H, W), floats, each turned by its angle (N) in degrees."""
    cos, sin = torch.cos(angles * math.pi / 180), torch.sin(angles * math.pi / 180)
    zero = torch.zeros_like(angles)
    matrices = torch.stack([torch.stack([cos, -sin, zero], dim=1), torch.stack([sin, cos, zero], dim=1)], dim=1)
    return F.grid_sample(images, F.affine_grid(matrices, images.shape, align_corners=False), align_corners=False)


class Turned(Dataset):
    """An item is an image, float32 (1, 28, 28), and the angle in degrees by which it was turned."""

    def __init__(self, images, largest, angles=None):
        self.images = images  # uint8 (N, 1, 28, 28), as they are
        self.largest = largest
        self.angles = angles  # None: others each time

    def __len__(self):
        return len(self.images)

    def __getitems__(self, indices):
        """A whole batch in one call."""
        images = self.images[indices] / 255
        angles = (2 * torch.rand(len(indices)) - 1) * self.largest if self.angles is None else self.angles[indices]
        return turn(images, angles), angles


class TurnedDigits(DataModule):
    shape = [1, 28, 28]

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 1,
        data_dir: str | None = None,
        largest: float = 45.0,
    ) -> None:
        """Settings; the first four come from the flags of these names.

        Args:
            batch_size: images in a step, of all processes together
            num_workers: processes that load data
            seed: decides the order of the training images
            data_dir: where MNIST lies
            largest: the largest angle, in degrees
        """
        super().__init__(batch_size, num_workers, seed, data_dir)
        self.largest = largest

    def prepare_data(self):
        MNIST(data_dir=self.data_dir).prepare_data()

    def setup(self, stage):
        """Training images are turned by other angles each time, those for validation and test always by the same."""
        train = stage in ("fit", "validate")
        images, _ = MNIST(data_dir=self.data_dir).load(train)
        fixed = (2 * torch.rand(2_000, generator=torch.Generator().manual_seed(0)) - 1) * self.largest
        if train:
            self.train_set = Turned(images[:10_000], self.largest)
            self.val_set = Turned(images[-2_000:], self.largest, fixed)
        else:
            self.test_set = Turned(images[:2_000], self.largest, fixed)
