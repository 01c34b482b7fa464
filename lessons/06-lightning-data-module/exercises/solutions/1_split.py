"""Solution: the split has a generator of its own, so nothing else that is random can change it.

python exercises/solutions/1_split.py
"""

import torch
from torch.utils.data import random_split


def split(dataset, validation):
    """A training set and a validation set of so many items, drawn at random."""
    return random_split(dataset, [len(dataset) - validation, validation], torch.Generator().manual_seed(0))


if __name__ == "__main__":
    for process in (0, 1):
        torch.manual_seed(process)  # as the seed differs, or only what was random before
        train_set, val_set = split(range(10), 3)
        print(f"process {process} trains with {sorted(train_set)}, validates with {sorted(val_set)}")
