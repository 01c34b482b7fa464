"""What may be in a file that torch's safe loader reads: it makes no object of a class that it does not know."""

import collections
import dataclasses
import datetime
import io
import pathlib
import pickle
from enum import Enum

import numpy as np
import torch
from torch.utils._pytree import tree_map

# These classes only hold values. numpy.dtype makes arrays, their scalars and the random generators' states readable.
KNOWN = [
    *(pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath, pathlib.PureWindowsPath),
    *(datetime.datetime, datetime.date, datetime.time, datetime.timedelta, datetime.timezone),
    *(slice, range, set, frozenset, complex, bytearray, list, dict, tuple, int, float, str, bool, bytes),
    *(collections.defaultdict, collections.deque, collections.OrderedDict, collections.Counter),
    *(np.ndarray, np.dtype, np.dtypes.StrDType, np.dtypes.ObjectDType, np.dtypes.BytesDType),
    *{type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?Mm"},
    np.core.multiarray._reconstruct if np.__version__ < "2" else np._core.multiarray._reconstruct,
    np.core.multiarray.scalar if np.__version__ < "2" else np._core.multiarray.scalar,
]
torch.serialization.add_safe_globals(KNOWN)
EMPTY = torch.empty(0)  # in place of each tensor when a content is tried: each of its own would be an entry in the file


def plain(value):
    """The value without classes: a Path becomes its text, an Enum its value, a dataclass a dictionary."""
    if value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, collections.abc.Mapping):
        return {plain(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, collections.deque)):
        return [plain(part) for part in value]
    for kind in (bool, int, float, str, bytes):  # a class made from one of these, such as jsonargparse's PositiveInt
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, (torch.device, torch.dtype, torch.Size)):
        return value
    return str(value)


def unreadable(content, name=""):
    """What in it the safe loader would refuse, in words; None if it can be read."""
    content = tree_map(lambda part: EMPTY if isinstance(part, torch.Tensor) else part, content)
    if readable(content):
        return None
    if isinstance(content, dict):
        parts = [(f"{name}[{key!r}]", part) for key, part in content.items()]
    elif isinstance(content, (list, tuple)):
        parts = [(f"{name}[{number}]", part) for number, part in enumerate(content)]
    else:
        parts = []
    for place, part in parts:
        if reason := unreadable(part, place):
            return reason
    kind = type(content)
    return f"{name or 'it'} is a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")


def readable(content):
    file = io.BytesIO()
    try:
        torch.save(content, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError):  # RuntimeError: torch's
        return False
    return True
