"""Solution: shuffle=True draws another order in each epoch. For the validation the order changes nothing.

python exercises/solutions/3_shuffle.py
"""

import torch
from torch.utils.data import DataLoader, TensorDataset


def make_loaders(train_set, val_set, batch_size):
    """A loader to train with and one to validate with."""
    return DataLoader(train_set, batch_size, shuffle=True), DataLoader(val_set, batch_size)


if __name__ == "__main__":
    torch.manual_seed(0)
    numbers = torch.arange(20)
    train_loader, _ = make_loaders(TensorDataset(numbers), TensorDataset(numbers), batch_size=5)
    for epoch in (1, 2):
        print(f"epoch {epoch}:", [batch.tolist() for (batch,) in train_loader])
