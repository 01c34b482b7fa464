"""An epoch of 20,000 small images takes far longer than it has to: they are fetched one by one.

python exercises/1_fetch.py

Give Digits a method that fetches a whole batch at once. make_loader() has to know about it.
"""

import time

import torch
from torch.utils.data import DataLoader, Dataset


class Digits(Dataset):
    """images: uint8 (N, 1, 28, 28), labels: int64 (N). An item is an image, float32 from 0 to 1, and its label."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index] / 255, self.labels[index]


def make_loader(dataset, batch_size):
    return DataLoader(dataset, batch_size, shuffle=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.randint(256, (20_000, 1, 28, 28), dtype=torch.uint8)
    loader = make_loader(Digits(images, torch.randint(10, (20_000,))), batch_size=64)
    start = time.perf_counter()
    batches = [batch for batch, _ in loader]
    print(f"{time.perf_counter() - start:.2f} s an epoch, a batch is {tuple(batches[0].shape)} {batches[0].dtype}")
