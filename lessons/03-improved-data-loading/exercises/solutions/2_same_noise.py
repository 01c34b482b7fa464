"""Solution: torch gives each worker a seed of its own, and in each epoch another.

python exercises/solutions/2_same_noise.py

A generator that is made in __init__ is copied into each worker as it was. torch.rand() is seeded in the worker:
torch.manual_seed() decides about all of them.
"""

import torch
from torch.utils.data import DataLoader, Dataset


class Moved(Dataset):
    """An item is the number of the image, and by how much it is moved: a number from 0 to 1."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index, torch.rand(()).item()


def make_loader(dataset):
    return DataLoader(dataset, batch_size=2, num_workers=2)


if __name__ == "__main__":
    torch.manual_seed(0)
    loader = make_loader(Moved(8))
    for epoch in (1, 2):
        moves = [f"{move:.3f}" for _, batch in loader for move in batch]
        print(f"epoch {epoch}:", *moves)
