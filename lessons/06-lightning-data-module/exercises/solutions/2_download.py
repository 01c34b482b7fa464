"""Solution: prepare_data() runs in one process, and setup() in all, when the first is done.

python exercises/solutions/2_download.py
"""

import tempfile
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import TensorDataset


def download(path):
    """A stand-in for a download that takes its time."""
    torch.save(torch.arange(100), path)
    print("downloaded")


class Digits(L.LightningDataModule):
    def __init__(self, data_dir):
        super().__init__()
        self.path = Path(data_dir) / "digits.pt"

    def prepare_data(self):
        if not self.path.exists():
            download(self.path)

    def setup(self, stage):
        self.train_set = TensorDataset(torch.load(self.path))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as data_dir:
        processes = [Digits(data_dir) for _ in range(3)]  # each process makes its own
        processes[0].prepare_data()  # Lightning calls this in one process
        for digits in processes:
            digits.setup("fit")  # and then this in each
        print("images:", [len(digits.train_set) for digits in processes])
