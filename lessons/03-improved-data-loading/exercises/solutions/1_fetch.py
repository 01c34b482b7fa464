"""Solution: the DataLoader calls __getitems__ with all indices of a batch; the batch it gets needs no collating.

python exercises/solutions/1_fetch.py
"""

import time

import torch
from torch.utils.data import DataLoader, Dataset, default_convert


class Digits(Dataset):
    """images: uint8 (N, 1, 28, 28), labels: int64 (N). An item is an image, float32 from 0 to 1, and its label."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index] / 255, self.labels[index]

    def __getitems__(self, indices):
        indices = torch.tensor(indices)
        return self.images.index_select(0, indices) / 255, self.labels.index_select(0, indices)


def make_loader(dataset, batch_size):
    return DataLoader(dataset, batch_size, shuffle=True, collate_fn=default_convert)


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images = torch.randint(256, (20_000, 1, 28, 28), dtype=torch.uint8)
    loader = make_loader(Digits(images, torch.randint(10, (20_000,))), batch_size=64)
    start = time.perf_counter()
    batches = [batch for batch, _ in loader]
    print(f"{time.perf_counter() - start:.2f} s an epoch, a batch is {tuple(batches[0].shape)} {batches[0].dtype}")
