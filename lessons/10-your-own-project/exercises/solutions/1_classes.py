"""Solution: prepare_data() leaves files, and nothing else. What a process has to know, setup() reads from them.

python lessons/10-your-own-project/exercises/solutions/1_classes.py
"""

import tempfile
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import TensorDataset


def measure(folder):
    """A stand-in for data that come from elsewhere: a file for each class."""
    for name, length in (("iron", 3), ("gold", 5), ("lead", 2)):
        torch.save(torch.randn(length, 100), Path(folder) / f"{name}.pt")


class Spectra(L.LightningDataModule):
    """train_set: spectra (N, 100) and the number of their class in classes, the sorted names."""

    def __init__(self, data_dir):
        super().__init__()
        self.data_dir = Path(data_dir)

    def prepare_data(self):
        if not list(self.data_dir.glob("*.pt")):
            measure(self.data_dir)

    def setup(self, stage):
        self.classes = sorted(path.stem for path in self.data_dir.glob("*.pt"))
        spectra = [torch.load(self.data_dir / f"{name}.pt") for name in self.classes]
        labels = [torch.full((len(part),), number) for number, part in enumerate(spectra)]
        self.train_set = TensorDataset(torch.cat(spectra), torch.cat(labels))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as data_dir:
        processes = [Spectra(data_dir), Spectra(data_dir)]
        processes[0].prepare_data()
        for spectra in processes:
            spectra.setup("fit")
            print(spectra.classes, len(spectra.train_set))
