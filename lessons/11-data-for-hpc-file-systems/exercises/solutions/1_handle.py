"""Solution: the Dataset knows the path; whoever reads opens the file.

python exercises/solutions/1_handle.py

Opening takes a fraction of a millisecond. Where that is too long: open at the first read, and again when os.getpid() is
another one, as src/hdf5/reader.py of the last stage does.
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
        self.path = path
        with h5py.File(path) as file:
            self.length = len(file["images"])

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        with h5py.File(self.path) as file:
            return file["images"][index]


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
