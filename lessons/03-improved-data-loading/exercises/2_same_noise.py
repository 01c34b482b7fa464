"""Each image is moved at random, and the random numbers are everywhere the same: in both workers, in each epoch.

python exercises/2_same_noise.py

Repair Moved. The numbers of a whole training still have to depend on torch.manual_seed() alone.
"""

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


class Moved(Dataset):
    """An item is the number of the image, and by how much it is moved: a number from 0 to 1."""

    def __init__(self, length):
        self.length = length
        self.random = np.random.default_rng(0)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return index, self.random.random()


def make_loader(dataset):
    return DataLoader(dataset, batch_size=2, num_workers=2)


if __name__ == "__main__":
    torch.manual_seed(0)
    loader = make_loader(Moved(8))
    for epoch in (1, 2):
        moves = [f"{move:.3f}" for _, batch in loader for move in batch]
        print(f"epoch {epoch}:", *moves)
