"""The rows of a dataset, read from the file without asking HDF5, which takes several times as long for each of them."""

import os

import numpy as np


class Rows:
    """Numbers that lie in the file as they lie in memory, one row after the other. An index gives a row, as NumPy.

    Unlike a memory map, it says so when the file has become shorter, where a memory map ends the program.
    """

    def __init__(self, dataset):
        self.dataset = dataset  # as long as it lives HDF5 keeps its file open, also one that a link leads to
        self.file = dataset.file.id.get_vfd_handle()  # HDF5's own file descriptor
        self.start = dataset.id.get_offset()
        self.dtype, self.shape = dataset.dtype, dataset.shape[1:]
        self.row_bytes = dataset.nbytes // len(dataset)

    def is_like(self, other):
        return isinstance(other, Rows) and (other.dtype, other.shape) == (self.dtype, self.shape)

    def __getitem__(self, row):
        out = np.empty(self.shape, self.dtype)
        self.read_into(out, row)
        return out

    def read_into(self, out, row):
        """out: a contiguous array of the shape and type of a row"""
        start = self.start + int(row) * self.row_bytes
        if (done := os.preadv(self.file, [out], start)) == self.row_bytes:
            return
        rest = memoryview(out).cast("B")
        while done < self.row_bytes:  # a signal may cut it short
            read = os.preadv(self.file, [rest[done:]], start + done)
            if not read:
                raise OSError("the file is shorter than it was")
            done += read


def lies_as_in_memory(dataset):
    """Whether Rows can read this dataset of h5py: not in chunks, not compressed, not in other files, no texts."""
    return (
        len(dataset.shape) > 1
        and dataset.nbytes > 0
        and dataset.dtype.kind in "biufc"
        and dataset.dtype.isnative
        and dataset.chunks is None
        and dataset.external is None
        and not dataset.is_virtual
        and dataset.id.get_offset() is not None
    )
