"""Weights that somebody has saved, in whatever way, for a model."""

import argparse
import pickle
import re
import zipfile
from pathlib import Path

import torch

from src.callbacks.checkpoints import is_complete
from src.launch.files import Unreadable, open_regular


def read_weights(path) -> dict:
    """A checkpoint, or a file with a state_dict alone or under a name of its own, such as model: as a checkpoint.

    Raises:
        OSError: the file cannot be read
        ValueError: there are no weights in it; with one sentence
    """
    path = Path(path)
    try:
        open_regular(path).close()  # opening a pipe would block forever, and a device has no end
    except Unreadable as error:
        raise ValueError(error) from error
    is_zip = zipfile.is_zipfile(path)  # what torch writes; mmap reads only what is used, and works for these alone
    try:
        # A Namespace, in which older programs keep their arguments, holds values and nothing else.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
            damaged = is_zip and not is_complete(path)
    except pickle.UnpicklingError as error:
        unknown = re.search(r"GLOBAL (\S+)", str(error))
        if unknown is None:
            raise ValueError("it is no file of weights: write one with torch.save(model.state_dict(), path)") from error
        raise ValueError(
            f"it holds a {unknown[1]}, which is not loaded because it could run any code: save the weights alone, with "
            "torch.save(model.state_dict(), path)"
        ) from error
    except Exception as error:  # each way to be broken has its own error
        raise ValueError("it is damaged, or no file of torch.save()") from error
    if damaged:
        raise ValueError("it is damaged")
    if isinstance(content, dict) and is_state(content.get("state_dict")):
        return content
    if is_state(content):
        return {"state_dict": content}
    found = {key: part for key, part in content.items() if is_state(part)} if isinstance(content, dict) else {}
    if len(found) != 1:
        held = f"it holds {', '.join(map(str, found))}, each with weights" if found else "there are no weights in it"
        raise ValueError(f"{held}: save those that you need with torch.save(model.state_dict(), path)")
    return {"state_dict": next(iter(found.values()))}


def is_state(value):
    """Whether the value is a state_dict: names and tensors."""
    return (
        isinstance(value, dict)
        and any(isinstance(part, torch.Tensor) for part in value.values())
        and all(isinstance(key, str) for key in value)
        and not any(isinstance(part, dict) for part in value.values())
    )


def load_into(model, checkpoint) -> None:
    """Give the model the weights.

    Args:
        checkpoint: what read_weights() returned
    Raises:
        ValueError: they are those of another network; with one sentence
    """
    if len(checkpoint) > 1:  # Lightning's
        model.on_load_checkpoint(checkpoint)
    state, own = checkpoint["state_dict"], model.state_dict()
    if own and all(name.startswith("module.") for name in state) and not any(name in own for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}  # DDP's prefix
    if model.strict_loading:
        missing, unknown = [name for name in own if name not in state], [name for name in state if name not in own]
        if missing or unknown:
            parts = [f"lack {some(missing)}"] * bool(missing) + [f"have {some(unknown)}"] * bool(unknown)
            raise ValueError(f"these are the weights of another network: they {' and '.join(parts)}")
    for name, value in own.items():
        if name in state and getattr(value, "shape", None) != getattr(state[name], "shape", None):
            raise ValueError(
                f"these are the weights of another network: {name} has the shape {shape(state[name])}, and this "
                f"network needs {shape(value)}"
            )
    model.load_state_dict(state, strict=model.strict_loading)


def some(names):
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def shape(value):
    return list(getattr(value, "shape", []))
