"""Read the items of an HDF5 file: one by one, or a whole batch in one call."""

import bisect
import contextlib
import itertools
import os

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from src.hdf5.index import PackError, checked_path, inside, noted_digest, open_file, read_index
from src.hdf5.rows import Rows, lies_as_in_memory

SMALL = 1 << 16  # bytes: stacked numbers or texts of this size, such as labels, are read once and kept
MAX_LINKS = 20  # one after the other, until they are taken for a circle
UNREADABLE = (OSError, KeyError, TypeError, RuntimeError, UnicodeError, MemoryError)  # of h5py, for a damaged file


def place_of(group):
    """Tells an open group from all others, whatever name it was opened by."""
    info = h5py.h5o.get_info(group.id)
    return info.fileno, info.addr


class RawHDF5Dataset(Dataset):
    """The items of any HDF5 file, whoever wrote it, as NumPy: {dataset: array, number or text}.

    Without an index all groups have to be looked at, which takes a minute for a million: HDF5Dataset does not.

    Links and datasets that lead to files outside of the file's folder are refused: the file may come from anybody.

    The file is opened by the first read of each process, so the data set may be pickled, and sent to workers that were
    forked or spawned, at any time.

    Args:
        path: the file
        part: only the groups below this one, such as train
        transform: a function of an item, which returns what is to come in its place
        stacked: True if a group holds many items, one above the other; its datasets have the same length
    Raises:
        PackError: one sentence, if the file is not there, is damaged, or is not such a file
    """

    def __init__(self, path, part="", transform=None, stacked=False):
        self.path = checked_path(path).absolute()
        self.part = part.strip("/")
        self.transform = transform
        self.stacked = stacked
        self.file, self.pid, self.open_groups, self.linked = None, None, {}, {}
        below = f"{self.part}/" if self.part else ""
        groups = [(name, count) for name, count in self.find_groups() if f"{name}/".startswith(below)]
        if self.part and not groups:
            raise PackError(f"{self.path} holds nothing below {self.part}")
        self.names = [name for name, _ in groups]
        self.ends = list(itertools.accumulate(count for _, count in groups)) if self.stacked else []
        self.counts = dict(groups) if self.stacked else {}

    def find_groups(self):
        """Returns [name, number of items] of each group."""
        try:
            return list(self.walk(self.opened(), ()))
        except RecursionError:
            raise PackError(f"{self.path}: its groups are nested too deeply to be read") from None
        except UNREADABLE as error:
            raise PackError(f"{self.path} cannot be read: {' '.join(str(error).split())[:200]}") from None
        finally:
            self.close()

    def walk(self, group, above):
        """above: where the groups are that this one is in; a link that leads back to one of them is left out."""
        children = self.children(group)
        datasets = [child for child in children.values() if isinstance(child, h5py.Dataset)]
        if datasets:
            lengths = {len(dataset) if dataset.shape else None for dataset in datasets}
            if self.stacked and (len(lengths) > 1 or None in lengths):
                raise PackError(f"{self.path}: the datasets of {group.name} have not one length, so it is not stacked")
            yield group.name.strip("/"), lengths.pop() if self.stacked else 1
        above = (*above, place_of(group))
        for child in children.values():
            if isinstance(child, h5py.Group) and place_of(child) not in above:
                yield from self.walk(child, above)

    def children(self, group):
        """The content of a group: {name: group or dataset}, without links that lead nowhere."""
        found = {}
        for name in group:
            with contextlib.suppress(KeyError, FileNotFoundError):
                found[name] = self.follow(group, name)
        return found

    def follow(self, group, path, links=0):
        """The object at this path below a group. All links on the way are looked at before HDF5 follows them.

        Raises:
            KeyError, FileNotFoundError: nothing is there
            PackError: it is in a file outside of the folder, or links lead in a circle
        """
        for name in filter(None, path.split("/")):
            if not isinstance(group, h5py.Group):
                raise KeyError(name)
            raw = name.encode(errors="surrogateescape")
            if not group.id.links.exists(raw):
                raise KeyError(name)
            if group.id.links.get_info(raw).type == h5py.h5l.TYPE_HARD:
                group = group[name]
                continue
            if links >= MAX_LINKS:
                raise PackError(f"{self.path}: the links at {name} lead in a circle")
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                start = self.linked_file(link.filename)
            elif isinstance(link, h5py.SoftLink):
                start = group.file if link.path.startswith("/") else group
            else:
                raise PackError(f"{self.path}: {name} is a link of an unknown kind")
            group = self.follow(start, link.path, links + 1)
        if isinstance(group, h5py.Dataset):
            for name, *_ in group.external or ():
                inside(self.path.parent, os.path.relpath(name, self.path.parent))
            if group.is_virtual:
                raise PackError(
                    f"{self.path}: {group.name} is a virtual dataset, and the files that it leads to could be any of "
                    "yours: if you trust it, copy its numbers into an ordinary dataset"
                )
        return group

    def linked_file(self, name):
        """The open file that an external link names."""
        path = inside(self.path.parent, name)
        if path not in self.linked:
            if not path.exists():
                raise FileNotFoundError(path)
            self.linked[path] = open_file(path)
        return self.linked[path]

    def __len__(self):
        return (self.ends or [0])[-1] if self.stacked else len(self.names)

    def __getitem__(self, index):
        return self.item(*self.checked([index]))

    def item(self, index):
        item = self.read(index)
        return self.transform(item) if self.transform else item

    def checked(self, indices):
        """As a list of ints from 0 on."""
        indices, length = np.asarray(indices), len(self)
        outside = indices[(indices < -length) | (indices >= length)]
        if outside.size:
            raise IndexError(f"item {outside[0]} of {length}")
        return (indices % max(1, length)).tolist()

    def __getitems__(self, indices):
        """A batch: of each dataset the values of all these items, one above the other. Texts: a list.

        In a DataLoader of your own it takes collate_fn=torch.utils.data.default_convert: the batch is made here.
        """
        indices = self.checked(indices)
        order = sorted(range(len(indices)), key=indices.__getitem__)  # as they lie in the file
        if self.transform:
            return default_collate(self.read_each(indices, order))
        try:
            if self.stacked:
                return self.read_rows([self.find(index) for index in indices], order)
            items = self.read_each(indices, order)
            return {key: self.stack([item[key] for item in items]) for key in items[0]}
        except PackError:
            raise
        except (KeyError, ValueError, RuntimeError):
            raise PackError(
                f"{self.path}: the items {indices} do not have the same datasets and shapes, so they make no batch: "
                "give a transform that makes them alike"
            ) from None

    def read_each(self, indices, order):
        items = {place: self.item(indices[place]) for place in order}
        return [items[place] for place in range(len(indices))]

    def read_rows(self, found, order):
        """A batch of stacked items. Numbers go from the file straight to their place in it."""
        groups = [self.open_group(name) for name, _ in found]
        batch = {}
        for key, first in groups[0].items():
            datasets = [group[key] for group in groups]
            in_place = isinstance(first, Rows) and all(first.is_like(dataset) for dataset in datasets)
            values = np.empty((len(found), *first.shape), first.dtype) if in_place else [None] * len(found)
            for place in order:
                name, row = found[place]
                try:
                    if in_place:
                        datasets[place].read_into(values[place], row)
                    else:
                        values[place] = datasets[place][row]
                except UNREADABLE as error:
                    raise self.unreadable(name, error) from None
            if in_place or isinstance(values[0], np.number):  # a number: such as labels
                batch[key] = self.convert(np.asarray(values))
            else:
                batch[key] = self.stack([self.convert(value) for value in values])
        return batch

    def read(self, index):
        """One item as it is stored."""
        name, row = self.find(index)
        group = self.open_group(name)
        try:
            return {key: self.convert(dataset[row]) for key, dataset in group.items()}
        except UNREADABLE as error:
            raise self.unreadable(name, error) from None

    def find(self, index):
        """The group that holds an item, and its row there; () if it is all of the group."""
        if not self.stacked:
            return self.names[index], ()
        number = bisect.bisect_right(self.ends, index)
        return self.names[number], index - (self.ends[number - 1] if number else 0)

    def unreadable(self, name, error):
        reason = "a text in it is not UTF-8" if isinstance(error, UnicodeError) else " ".join(str(error).split())[:200]
        return PackError(f"{self.path}: the group {name} cannot be read: {reason}")

    def open_group(self, name):
        """The datasets of a group. Stacked groups are few and read again and again: they stay open."""
        file = self.opened()
        if name in self.open_groups:
            return self.open_groups[name]
        try:
            children = self.children(self.follow(file, name))
            datasets = {key: data for key, data in children.items() if isinstance(data, h5py.Dataset)}
            for key, dataset in datasets.items():
                rows = len(dataset) if dataset.shape else None
                if self.stacked and rows != self.counts[name]:
                    has = "is no array" if rows is None else f"has {rows} rows"
                    raise PackError(
                        f"{self.path}: {key} in the group {name} {has}, but the index says {self.counts[name]}: pack "
                        "the data again"
                    )
                small = self.stacked and dataset.ndim == 1 and dataset.nbytes <= SMALL
                as_in_memory = self.stacked and lies_as_in_memory(dataset)
                dataset = dataset.asstr("utf-8") if h5py.check_string_dtype(dataset.dtype) else dataset
                datasets[key] = dataset[()] if small else Rows(dataset) if as_in_memory else dataset
        except UNREADABLE as error:
            raise self.unreadable(name, error) from None
        if self.stacked:
            self.open_groups[name] = datasets
        return datasets

    def opened(self):
        """The open file of this process."""
        if self.file is not None and self.pid != os.getpid():
            self.close()  # it was opened before a fork: reading it here would move our parent's place in it
        if self.file is None:
            self.file, self.pid = self.open(), os.getpid()
        return self.file

    def open(self):
        return open_file(self.path)

    def close(self):
        for file in (self.file, *self.linked.values()):
            if file is not None:
                file.close()
        self.file, self.open_groups, self.linked = None, {}, {}

    def __getstate__(self):
        """What is pickled: everything but the open file."""
        return self.__dict__ | {"file": None, "open_groups": {}, "linked": {}}

    def convert(self, value):
        return value

    def stack(self, values):
        return values if isinstance(values[0], str) else np.stack(values)


class HDF5Dataset(RawHDF5Dataset):
    """The items of a file of HDF5Writer, as tensors: {dataset: tensor or text}. Its index says which there are.

    Index and file are compared when the data set is made, and once more when a process opens the file.

    Args:
        path: data.h5, with data.json beside it
        part: only the groups below this one, such as train
        transform: a function of an item, which returns what is to come in its place
    """

    def __init__(self, path, part="", transform=None):
        index = read_index(path)
        self.about = index.about  # what the writer noted
        self.digest = index.digest()
        self.fingerprint = f"{self.digest} {part}"  # other items have another: for the caches in src/datasets/cached.py
        self.groups = index.groups
        super().__init__(path, part, transform, index.stacked)
        del self.groups

    def find_groups(self):
        return self.groups

    def open(self):
        file = open_file(self.path)
        if noted_digest(file) != self.digest:
            raise PackError(f"{self.path} was replaced while it was in use: start again")
        return file

    def convert(self, value):
        if isinstance(value, str):
            return value
        if isinstance(value, np.ndarray) and value.dtype == object:
            return value.tolist()  # texts
        try:
            return torch.as_tensor(value)
        except TypeError:
            raise PackError(f"{self.path} has values of type {value.dtype}, which torch does not know") from None

    def stack(self, values):
        return torch.stack(values) if isinstance(values[0], torch.Tensor) else values
