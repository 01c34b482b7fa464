"""Attributes in which a module or a callback counts or collects something: numbers, texts, tensors, lists of them.

A buffer or a torchmetrics object would be in every checkpoint by itself. Many people write `self.losses.append(loss)`.
"""

import collections
import datetime
import hashlib
import pathlib
import pickle
import sys
import sysconfig
from types import NoneType, SimpleNamespace

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ProgressBar
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

LEAVES = {
    *(NoneType, bool, int, float, complex, str, bytes, bytearray, slice, range),
    *(torch.Tensor, torch.dtype, torch.device, torch.Size),
    *(pathlib.PosixPath, pathlib.PurePosixPath),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta),
}
LISTS = {list, tuple, set, frozenset, collections.deque}
DICTIONARIES = {dict, collections.OrderedDict, collections.Counter, collections.defaultdict}
INHERITED = {*vars(L.LightningModule())}
STDLIB = sysconfig.get_path("stdlib")
FACTORIES = (None, int, float, str, list, dict, set)


def is_plain(value):
    """Whether the value is data and nothing else, so that a checkpoint can hold it."""
    kind = type(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return not value.dtype.hasobject
    if kind in LISTS:
        return all(is_plain(part) for part in value)
    if kind in DICTIONARIES:
        made = getattr(value, "default_factory", None) in FACTORIES
        return made and all(is_plain(key) and is_plain(part) for key, part in value.items())
    return kind in LEAVES


def own(holder):
    """The attributes of a holder, without those that torch and Lightning give a module: {name: value}."""
    inherited = INHERITED if isinstance(holder, nn.Module) else ()
    return {
        name: value
        for name, value in vars(holder).items()
        if name not in inherited and not name.startswith(("_hparams", "_log_hyperparams"))
    }


def attributes(holder):
    """The plain ones among them: {name: value}."""
    return {name: value for name, value in own(holder).items() if is_plain(value)}


def holders(module, callbacks=()):
    """Whose attributes may count something: {name: holder}.

    These are the module, the modules in it, the callbacks, and the objects that they have, such as an AverageMeter.
    Objects of installed packages keep their state in other ways.

    Args:
        module: a LightningModule
        callbacks: the user's
    """
    found = {f"module.{name}": child for name, child in module.named_modules() if not name or is_users(child)}
    for number, callback in enumerate(callbacks):
        if is_users(callback) and not isinstance(callback, ProgressBar):
            found[f"{number} {type(callback).__qualname__}"] = callback
    for name, holder in list(found.items()):
        for attribute, value in own(holder).items():
            if is_users(value) and hasattr(value, "__dict__") and not isinstance(value, (nn.Module, type)):
                found[f"{name}.{attribute}"] = value
    return found


def is_users(thing):
    """Whether its class is in a file of the project, and not in an installed package."""
    file = getattr(sys.modules.get(type(thing).__module__), "__file__", None) or STDLIB
    return not file.startswith(STDLIB) and "-packages" not in file


def fingerprints(holder):
    """For each plain attribute a text that changes with its value: {name: text}."""
    return {name: fingerprint(value) for name, value in attributes(holder).items()}


def fingerprint(value):
    digest = hashlib.blake2b(digest_size=16)
    pickle.Pickler(SimpleNamespace(write=digest.update)).dump(on_cpu(value))
    return digest.hexdigest()


def changed(holder, before):
    """The attributes that have changed: {name: (value, whether it was on a GPU)}.

    Args:
        before: what fingerprints() returned
    """
    found = {}
    for name, value in attributes(holder).items():
        if fingerprint(value) != before.get(name):
            found[name] = (
                on_cpu(value),
                any(isinstance(part, torch.Tensor) and part.is_cuda for part in tree_leaves(value)),
            )
    return found


def restore(saved, module, callbacks=()):
    """Give the attributes of all holders their values.

    Args:
        saved: for each holder what changed() returned
    """
    for name, holder in holders(module, callbacks).items():
        for attribute, (value, on_gpu) in saved.get(name, {}).items():
            if on_gpu:
                value = tree_map(lambda part: part.to(module.device) if isinstance(part, torch.Tensor) else part, value)
            setattr(holder, attribute, value)


def on_cpu(value):
    """A copy, whose tensors have no gradients."""
    return tree_map(lambda part: part.detach().cpu().clone() if isinstance(part, torch.Tensor) else part, value)
