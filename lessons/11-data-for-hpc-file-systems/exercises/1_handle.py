"""An HDF5 file that was opened before the workers start belongs to none of them.

python exercises/1_handle.py

Repair Digits: each process opens the file itself, also one that gets a Dataset that was used before.
"""

import pickle
import tempfile
from pathlib import Path

import h5py
import numpy as np
from torch.utils.data import Dataset


class Digits(Dataset):
    """The images in a file. An item is an array uint8 (28, 28)."""

    def __init__(self, path):
        self.file = h5py.File(path)

    def __len__(self):
        return len(self.file["images"])

    def __getitem__(self, index):
        return self.file["images"][index]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "digits.h5")
        with h5py.File(path, "w") as file:
            file["images"] = np.zeros((10, 28, 28), np.uint8)
        digits = Digits(path)
        print(f"{len(digits)} images of {digits[0].shape}")
        try:
            pickle.loads(pickle.dumps(digits))  # what a worker gets that is started afresh
        except TypeError as error:
            print(f"no worker can have it: {error}")
