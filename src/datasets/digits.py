"""MNIST as a torch Dataset whose samples have parts with names."""

import torch
from torch.utils.data import Dataset

from src.datasets.mnist import MNIST


class Digits(Dataset):
    """A sample is image: float32 (1, 28, 28) from 0 to 1, and label: int64."""

    def __init__(self, train: bool = True, data_dir: str | None = None) -> None:
        """Read all images.

        Args:
            train: the 60,000 images for training; otherwise the 10,000 for the test
            data_dir: where MNIST lies; default: data/ beside run.py
        """
        mnist = MNIST(data_dir=data_dir)
        mnist.prepare_data()
        self.images, self.labels = mnist.load(train)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.images[index] / 255, "label": self.labels[index]}

    def __getitems__(self, indices):
        """A whole batch in one fetch: image (N, 1, 28, 28), label (N)."""
        return self[torch.as_tensor(indices)]
