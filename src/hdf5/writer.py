"""Write many items into one HDF5 file, data.h5, and its index, data.json.

class Waves(HDF5Writer):
    def prepare_globals(self):
        return [1.0, 2.5, 4.0], np.linspace(0, 1, 1000)

    def prepare_group(self, frequency, times):
        return {f"wave-{frequency}": {"frequency": frequency, "values": np.sin(frequency * times)}}

Waves().write("waves.h5")
"""

import itertools
import json
from uuid import uuid4

import h5py
import numpy as np

from src.hdf5.index import ATTRIBUTE, Index, PackError, checked_path
from src.hdf5.new_file import finish, new_file, publish, refuse_to_overwrite
from src.utils.progress import tqdm


class HDF5Writer:
    """Say in a subclass what to write; write() does it.

    Attributes:
        stacked: True if each group holds many items, one above the other: all its arrays have the same length
        about: what is to be noted in the index, a dictionary for JSON; prepare_globals() may set it
    """

    stacked = False
    about = {}

    def prepare_globals(self):
        """Returns (items, context): a sequence with whatever each item needs, and whatever all of them need.

        With parallel=True each task calls it, and must get the same items in the same order.
        """
        raise NotImplementedError

    def prepare_group(self, item, context):
        """Returns {group: {dataset: value}}: what becomes of this item; {} leaves it out.

        A value is an array, a tensor, a number, a text, or an array of texts. The name of a group may be a path, such
        as train/000017, and no other item has it.
        """
        raise NotImplementedError

    def write(self, path, parallel=False):
        """Write all items. `path` and its index are there when everything is complete, and not before.

        Args:
            path: such as data.h5; must not be there yet
            parallel: share the items among all tasks of this Slurm step, mpirun or torchrun (src/hdf5/parallel.py)
        Returns:
            the path, absolute
        Raises:
            PackError: with one sentence, which names the item if it was an item's fault
        """
        path = checked_path(path).absolute()
        if path.suffix not in (".h5", ".hdf5"):
            raise PackError(f"{path.name} has to end with .h5 or .hdf5")
        refuse_to_overwrite(path)
        if parallel:
            from src.hdf5.parallel import write_parallel

            return write_parallel(self, path)
        items, context, about = self.prepare()
        with publish(path) as partial:
            with new_file(partial) as file:
                groups = list(itertools.chain(*self.write_items(file, items, context)))
                index = Index(uuid4().hex, self.stacked, about, groups, {})
                file.attrs[ATTRIBUTE] = index.digest()
            finish(partial, path, index)
        return path

    def prepare(self):
        """The result of prepare_globals(), and `about` as JSON gives it back. Raises PackError if it cannot hold it."""
        items, context = self.prepare_globals()
        try:
            about = json.loads(json.dumps(self.about))
            if not isinstance(about, dict):
                raise TypeError(f"it is a {type(self.about).__name__}")
        except (TypeError, ValueError, RecursionError) as error:
            raise PackError(f"about has to be a dictionary for JSON: {error}") from None
        return items, context, about

    def write_items(self, file, items, context, before_each=lambda: None, show=True):
        """Write these items into a new file. Returns for each item a list with [name, length] of its groups."""
        groups = []
        for item in tqdm(items, "packing", disable=None if show else True):  # None: only on a terminal
            before_each()
            groups.append(self.write_item(file, item, context))
            file.check()
        return groups

    def write_item(self, file, item, context):
        try:
            prepared = self.prepare_group(item, context)
            return [[name, self.write_group(file, name, values)] for name, values in prepared.items()]
        except PackError:
            raise
        except Exception as error:
            raise PackError(f"item {shorten(item)}: {type(error).__name__}: {error}") from error

    def write_group(self, file, name, values):
        """Write one group; returns how many items it holds."""
        parts = name.split("/")
        if not all(parts) or "." in parts or ".." in parts:
            raise ValueError(f"{name!r} cannot be the name of a group")
        group = file.create_group(name)
        for key, value in values.items():
            if not key or "/" in key or key == ".":
                raise ValueError(f"{key!r} cannot be the name of a dataset")
            group.create_dataset(key, **storable(key, value))
        if not self.stacked:
            return 1
        lengths = {key: len(dataset) if dataset.shape else None for key, dataset in group.items()}
        if len(set(lengths.values())) != 1 or None in lengths.values():
            raise ValueError(f"stacked arrays need one length, these have {lengths}")
        return next(iter(lengths.values()))


def storable(key, value):
    """The arguments of h5py's create_dataset for this value. Texts are UTF-8.

    Raises:
        TypeError: HDF5 cannot hold it
    """
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    array = np.asarray(value) if not isinstance(value, bytes) else None
    if array is not None and array.dtype.kind in "biufc":
        return {"data": np.asarray(array, array.dtype.newbyteorder("="))}  # the byte order that torch knows
    texts = array is not None and array.size and all(isinstance(text, str) for text in array.flat)
    if texts or (array is not None and array.dtype.kind == "U"):
        return {"data": array.astype(object), "shape": array.shape, "dtype": h5py.string_dtype()}
    kind = type(value).__name__ if array is None else f"{type(value).__name__} of {array.dtype}"
    raise TypeError(f"{key!r} is a {kind}: give an array of numbers, a number, a text or an array of texts")


def shorten(item):
    text = repr(item)
    return text if len(text) <= 200 else f"{text[:200]}..."
