"""`run.py predict` writes predictions.npz if the results are tensors with a row per sample, else a file per batch.

Each batch is written as soon as it is predicted, to predictions/, so that an interruption loses nothing. A file is read
with torch.load(path, weights_only=True): {"samples": their places in the data set, "result": as predict_step gave it}.
"""

import logging
import os
import shutil
import sys
import zipfile
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils._pytree import tree_map

from src.datasets.batches import Batches
from src.utils.plain import plain, unreadable
from src.utils.processes import close_channel, gather, open_channel

log = logging.getLogger(__name__)

NUMPY_FLOATS = (torch.float16, torch.float32, torch.float64)


class Predictions(L.Callback):
    """Writes what predict_step returns."""

    def __init__(self, run_folder):
        self.folder = Path(run_folder) / "predictions"
        self.samples = []  # for each loader: an iterator over the samples of its batches; None if they are not known

    def on_predict_start(self, trainer, module):
        self.folder.mkdir(parents=True, exist_ok=True)  # --fast_dev_run has made no folder
        open_channel()
        if trainer.is_global_zero:
            for path in self.folder.glob("loader=*"):  # of a command that was interrupted
                path.unlink()
        gather(None)  # before that nobody writes
        loaders = trainer.predict_loop._combined_loader.flattened
        self.samples = [
            iter(loader.sampler) if isinstance(getattr(loader, "sampler", None), Batches) else None
            for loader in loaders
        ]

    def on_predict_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        samples = self.samples[dataloader_idx]
        samples = samples and torch.from_numpy(next(samples)[1])
        if outputs is None:  # the model writes its results itself
            return
        result = tree_map(lambda part: part.cpu() if isinstance(part, torch.Tensor) else plain(part), outputs)
        if reason := unreadable(result):
            sys.exit(f"what predict_step returns cannot be written: {reason}")
        path = self.folder / f"loader={dataloader_idx}_batch={batch_idx:08d}_rank={trainer.global_rank:04d}.pt"
        partial = path.with_suffix(".partial")
        torch.save({"samples": samples, "result": result}, partial)
        os.replace(partial, path)

    def on_predict_end(self, trainer, module):
        gather(None)  # all have written
        close_channel()
        if trainer.is_global_zero:
            join(self.folder, len(self.samples), getattr(trainer.datamodule, "classes", None))


@rank_zero_only
def join(folder, loaders, classes):
    """Make one .npz of the files of each loader if all of them are tensors with a row per sample.

    Args:
        folder: that of the files
        loaders: how many there are
        classes: the names of the classes; None if the data module has none
    """
    for loader in range(loaders):
        files = sorted(folder.glob(f"loader={loader}_*.pt"))
        if not files:
            continue
        target = folder.with_name("predictions.npz" if loaders == 1 else f"predictions_{loader}.npz")
        arrays = arrays_of(files)
        if arrays is None:
            log.info(f"wrote {len(files)} files in {folder}: torch.load(path, weights_only=True) reads one batch")
            continue
        shapes = write_npz(target, arrays, files, classes)
        log.info(f"wrote {target}: {', '.join(f'{name} {shape}' for name, shape in shapes.items())}")
        for path in files:
            path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def arrays_of(files):
    """The arrays that the results make: {name: (shape, dtype)}; None if they are not tensors with a row per sample."""
    found, places = None, []
    for path in files:
        batch = torch.load(path, weights_only=True, mmap=True)
        result, samples = named(batch["result"]), batch["samples"]
        if samples is None or result is None or not all(len(rows) == len(samples) for rows in result.values()):
            return None
        shapes = {name: (rows.shape[1:], known_to_numpy(rows).numpy().dtype) for name, rows in result.items()}
        if found not in (None, shapes):
            return None
        found = shapes
        places.append(samples)
    places = torch.cat(places)
    length = int(places.max()) + 1
    if len(places.unique()) != length:  # Some samples have no prediction. The files name those that have one.
        return None
    return {name: ((length, *shape), dtype) for name, (shape, dtype) in found.items()}


def named(result):
    """Tensors by name; None if a result is something else."""
    result = {"predictions": result} if isinstance(result, torch.Tensor) else result
    if not isinstance(result, dict) or not result:
        return None
    return result if all(map(has_rows, result.values())) else None


def has_rows(part):
    """Whether a part of a result is an ordinary tensor with a row per sample."""
    return isinstance(part, torch.Tensor) and part.dim() > 0 and part.layout is torch.strided and not part.is_quantized


def known_to_numpy(rows):
    """The same numbers in a type that NumPy has."""
    return rows.float() if rows.is_floating_point() and rows.dtype not in NUMPY_FLOATS else rows.resolve_conj()


def write_npz(target, arrays, files, classes):
    """Fill the arrays, which need not fit into memory. Returns {name: shape}."""
    folder = target.with_suffix(".partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    [only] = arrays if len(arrays) == 1 else [None]
    # A row with a number for each class: these are probabilities, or logits, of classes.
    scores = only == "predictions" and classes and arrays[only][0][1:] == (len(classes),)
    names = {name: "probabilities" if scores else name for name in arrays}
    maps = {
        name: np.lib.format.open_memmap(folder / f"{names[name]}.npy", mode="w+", dtype=dtype, shape=shape)
        for name, (shape, dtype) in arrays.items()
    }
    for path in files:
        batch = torch.load(path, weights_only=True, mmap=True)
        for name, rows in named(batch["result"]).items():
            maps[name][batch["samples"].numpy()] = known_to_numpy(rows)
    shapes = {names[name]: tuple(shape) for name, (shape, _) in arrays.items()}
    if scores:
        for name, array in (("predicted", maps[only].argmax(1)), ("classes", np.array(classes))):
            np.save(folder / f"{name}.npy", array)
            shapes[name] = array.shape
    for array in maps.values():
        array.flush()
    partial = target.with_suffix(".partial.npz")
    with zipfile.ZipFile(partial, "w") as archive:
        for name in shapes:
            archive.write(folder / f"{name}.npy", f"{name}.npy")
    os.replace(partial, target)
    shutil.rmtree(folder)
    return shapes
