"""Write items of your own into one file, and read them again.

python waves.py
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from src.hdf5.reader import HDF5Dataset
from src.hdf5.writer import HDF5Writer


class Waves(HDF5Writer):
    """An item is a frequency, in Hz. It becomes a group with an array, a number and a text."""

    def prepare_globals(self):
        frequencies = [1.0, 2.5, 4.0]
        times = np.linspace(0, 1, 1000, dtype=np.float32)  # seconds
        return frequencies, times

    def prepare_group(self, frequency, times):
        wave = np.sin(2 * np.pi * frequency * times)
        return {f"wave-{frequency}": {"values": wave, "frequency": frequency, "comment": f"{frequency} Hz, no noise"}}


with tempfile.TemporaryDirectory() as folder:
    path = Waves().write(Path(folder) / "waves.h5")
    dataset = HDF5Dataset(path)
    for number, item in enumerate(dataset):
        print(f"wave {number}: {item['frequency']:.1f} {item['values'].shape} {item['comment']!r}")
    print(f"a batch: {dataset.__getitems__([0, 2])['values'].shape}")
