"""Keep the items of a data set as they came out the first time: in memory, or on disk for the next run as well.

    CachedDataset(dataset, max_bytes=2**30)             memory that all processes of this node share
    FileCachedDataset(dataset, "cache.bin")             a file

Both take a `transform` for what is random: it is applied to what comes out of the cache, new each time.
"""

import fcntl
import hashlib
import math
import os
import tempfile
import weakref
from dataclasses import is_dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from src.datasets.slots import CacheError, Slots, open_cache
from src.hdf5.files import open_own

# A file system in memory. Where there is none, a folder that the system keeps in memory as far as it can.
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
NUMBERS = {bool: np.bool_, int: np.int64, float: np.float64}


class Layout:
    """How an item lies in a slot: where each of its tensors, arrays and numbers is, in what type and shape.

    An item is one of these, or a tuple, list or dictionary of items. All items of a data set are alike.
    """

    def __init__(self, item):
        self.bytes = 0
        self.tree = self.plan(item, "the item")
        self.bytes = max(1, self.bytes)

    def plan(self, item, where):
        if type(item) in (tuple, list):
            return [type(item).__name__, [self.plan(part, f"{where}[{n}]") for n, part in enumerate(item)]]
        if type(item) is dict:
            if not all(isinstance(key, str) for key in item):
                raise CacheError(f"{where} has keys that are no texts: a cache cannot hold that")
            return ["dict", {key: self.plan(part, f"{where}[{key!r}]") for key, part in item.items()}]
        if isinstance(item, (tuple, list, dict)) or is_dataclass(item):
            plain = "dict" if isinstance(item, dict) else "tuple"
            raise CacheError(
                f"{where} is a {type(item).__name__}, but a cache holds plain tuples, lists and dictionaries: give a "
                f"{plain} of its parts, and make a {type(item).__name__} of that in transform"
            )
        kind, array = as_array(item, where)
        leaf = [kind, array.dtype.str, list(array.shape), self.bytes]
        self.bytes += array.nbytes
        return leaf

    def pack(self, item):
        """An item as uint8 (bytes)."""
        tree = Layout(item).tree
        if tree != self.tree:
            raise CacheError(
                f"a cache holds items of one type and shape: this is {describe(tree)}, the first {describe(self.tree)}"
            )
        row = np.zeros(self.bytes, np.uint8)
        self.fill(row, item, self.tree)
        return row

    def fill(self, row, item, tree):
        kind, content, *rest = tree
        if kind in ("tuple", "list"):
            for part, branch in zip(item, content, strict=True):
                self.fill(row, part, branch)
        elif kind == "dict":
            for key, branch in content.items():
                self.fill(row, item[key], branch)
        else:
            _, array = as_array(item, "")
            start = rest[1]
            row[start : start + array.nbytes] = np.frombuffer(array.tobytes(), np.uint8)

    def unpack(self, rows, tree=None, batch=False):
        """The item of a slot (bytes); with batch=True the batch of some slots (N, bytes), numbers as tensors."""
        kind, content, *rest = tree or self.tree
        if kind in ("tuple", "list"):
            parts = [self.unpack(rows, branch, batch) for branch in content]
            return tuple(parts) if kind == "tuple" else parts
        if kind == "dict":
            return {key: self.unpack(rows, branch, batch) for key, branch in content.items()}
        shape, start = rest
        dtype = np.dtype(content)
        stop = start + dtype.itemsize * math.prod(shape)
        values = rows[..., start:stop].copy().view(dtype).reshape((*rows.shape[:-1], *shape))
        if batch or kind == "Tensor":
            return torch.from_numpy(values)
        return values if kind == "ndarray" else values[()] if kind == "number" else values.item()


def describe(tree):
    """A layout in words, such as (Tensor uint8 [3, 32, 32], int)."""
    kind, content, *rest = tree
    if kind in ("tuple", "list"):
        return f"({', '.join(describe(branch) for branch in content)})"
    if kind == "dict":
        return f"{{{', '.join(f'{key}: {describe(branch)}' for key, branch in content.items())}}}"
    return kind if kind in ("int", "float", "bool") else f"{kind} {np.dtype(content)} {rest[0]}"


def as_array(item, where):
    """A tensor, array or number as (kind, NumPy array)."""
    kind = type(item).__name__
    if type(item) in NUMBERS:
        try:
            return kind, np.asarray(item, NUMBERS[type(item)])
        except OverflowError:
            raise CacheError(f"{where} is a number of more than 64 bits, which a cache cannot hold") from None
    if type(item) in (torch.Tensor, torch.nn.Parameter):  # a tensor of another class is more than its numbers
        kind = "Tensor"
        try:
            item = item.detach().cpu().numpy()
        except (TypeError, RuntimeError) as error:  # bfloat16, sparse, conjugate
            raise CacheError(
                f"{where} is a tensor that a cache cannot hold: {str(error).partition(chr(10))[0]}"
            ) from None
    elif isinstance(item, np.generic):
        kind = "number"
    if (type(item) is np.ndarray or isinstance(item, np.generic)) and item.dtype.kind in "biufc":
        return kind, np.asarray(item, item.dtype.newbyteorder("="))
    raise CacheError(
        f"{where} is of type {kind}, but a cache holds tensors, arrays and numbers, and tuples, lists and dictionaries "
        "of these: turn pictures into tensors before you cache them"
    )


class FileCachedDataset(Dataset):
    """A data set whose items are made once and then read from a file, also by other processes and later runs.

    Args:
        dataset: its items are tensors, arrays, numbers, or tuples, lists and dictionaries of these, all of one shape.
            An item must come out the same each time: what is random belongs into `transform`
        cache_path: the file. Best on a local disk: not every network file system shows one node at once what another
            has written, so two nodes might both make an item
        transform: a function of an item, applied to what comes out of the cache
        fingerprint: any text that says what the data set is, such as the path and version of its files. Three items are
            compared in any case, so you need it only where these would be equal
    Raises:
        CacheError: the data set cannot be cached, the file is the cache of another one, or there is no room
    """

    def __init__(self, dataset, cache_path, transform=None, fingerprint=""):
        self.prepare(dataset, transform, fingerprint, len(dataset))
        self.slots = Slots(cache_path, self.header)

    def prepare(self, dataset, transform, fingerprint, slots):
        if not len(dataset):
            raise CacheError("the data set is empty: there is nothing to cache")
        self.dataset, self.transform = dataset, transform
        self.layout = Layout(dataset[0])
        digest = hashlib.sha256(f"{fingerprint} {getattr(dataset, 'fingerprint', '')}".encode())
        for index in sorted({0, len(dataset) // 2, len(dataset) - 1}):
            row, again = (self.pack(index) for _ in range(2))
            if (row != again).any():
                raise CacheError(
                    f"item {index} came out in two ways, so something about it is random: cache what comes before, "
                    "and give the random part as transform"
                )
            digest.update(row)
        self.header = {
            "fingerprint": digest.hexdigest(),
            "items": len(dataset),
            "layout": self.layout.tree,
            "bytes": self.layout.bytes,
            "slots": slots,
        }

    def pack(self, index):
        try:
            return self.layout.pack(self.dataset[index])
        except CacheError as error:
            raise CacheError(f"item {index}: {error}") from None

    def row(self, index):
        """Item `index` as bytes, from its slot if it has one."""
        index = int(index)
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        if index >= self.slots.slots:
            return self.pack(index)
        return self.slots.get(index, lambda: self.pack(index))

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        item = self.layout.unpack(self.row(index))
        return self.transform(item) if self.transform else item

    def __getitems__(self, indices):
        """A batch. In a DataLoader of your own it takes collate_fn=torch.utils.data.default_convert."""
        if self.transform:
            return default_collate([self[index] for index in indices])
        return self.layout.unpack(np.stack([self.row(index) for index in indices]), batch=True)


class CachedDataset(FileCachedDataset):
    """The same in memory that all processes of this node share, freed when the last of them ends.

    All processes of one user that cache the same data share one cache; their workers, forked or spawned, too. In a job
    this memory counts as the job's.

    Args:
        dataset, transform, fingerprint: as in FileCachedDataset
        max_bytes: for so many bytes of items there is room; the rest is made anew each time
    """

    def __init__(self, dataset, max_bytes, transform=None, fingerprint=""):
        self.prepare(dataset, transform, fingerprint, 0)
        slots = self.header["slots"] = int(min(len(dataset), max_bytes / self.header["bytes"]))
        if slots < 1:
            raise CacheError(f"an item has {self.header['bytes']} bytes: max_bytes={max_bytes} has no room for one")
        prefix = f"cached-dataset-{os.getuid()}-"
        name = hashlib.sha256(str(sorted(self.header.items())).encode()).hexdigest()[:16]
        for left in MEMORY.glob(f"{prefix}*"):
            remove_if_unused(left)  # of processes that were killed
        self.slots, self.used = share(MEMORY / f"{prefix}{name}", self.header)
        # Forked processes have the same lock, and would give it up for all: only this process does.
        self.end = weakref.finalize(self, give_back, self.used, self.slots.path, os.getpid())

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key not in ("used", "end")}

    def __setstate__(self, state):
        self.__dict__ |= state
        self.slots, self.used = share(self.slots.path, self.header)
        self.end = weakref.finalize(self, give_back, self.used, self.slots.path, os.getpid())


def share(path, header):
    """Make or open the file, and hold a lock that says that it is in use. Returns slots, open file."""
    while True:
        slots = Slots(path, header)
        try:
            file = open(path, "rb", opener=open_cache)  # noqa: SIM115 (open as long as the cache is in use)
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_ino == os.stat(path).st_ino:
                return slots, file
        except FileNotFoundError:
            pass  # its last user deleted it between our two lines: make it again
        except OSError as error:
            raise CacheError(slots.reason(error)) from None


def give_back(file, path, pid):
    if pid == os.getpid():
        file.close()
        remove_if_unused(path)


def remove_if_unused(path):
    """Delete the file if no living process has a lock on it."""
    try:
        with open(path, "rb", opener=open_own) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except OSError:
        pass  # in use, or gone, or another user's
