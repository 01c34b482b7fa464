"""What a loss is made of: terms that are weighted and added up. They are checked when the model is built.

A mistake ends the program with one sentence (SystemExit) before anything is trained.
"""

import difflib
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torchmetrics import Metric as TorchMetric

NETWORK = "network"  # an argument of this name gets the network itself, not one of its outputs


@dataclass
class Loss:
    """Compares an output of the network with a part of the batch.

    Args:
        function: called with the output and the target, it returns one number
        target: the name of a part of the batch
        output: the name of an output; can be left out if there is only one
        weight: the number that the loss is multiplied by before all are added up
    """

    function: nn.Module | Callable
    target: str
    output: str | None = None
    weight: float = 1.0


@dataclass
class Regularizer:
    """Looks at outputs, or at the network, without a target.

    Args:
        function: called as bind() says, it returns one number
        outputs: the names of the outputs that it is called with, in this order; None: see bind()
        weight: the number that it is multiplied by before all are added up
    """

    function: nn.Module | Callable
    outputs: list[str] | None = None
    weight: float = 1.0


@dataclass
class Metric:
    """Is counted and reported, nothing is trained with it.

    Args:
        function: of torchmetrics; it is updated with the output and the target
        target: the name of a part of the batch
        output: the name of an output; can be left out if there is only one
    """

    function: TorchMetric
    target: str
    output: str | None = None


def check_known(what, name, kind, known):
    """name has to be one of known."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        sys.exit(f"{what}: there is no {kind} {name!r}, but {', '.join(known)}{f': {near[0]}?' if near else ''}")


def check_name(what, name):
    """A name becomes a part of train/<name>, and of a flag."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or name in ("loss", "lr"):
        sys.exit(f"{what} {name!r}: a name has letters, digits and _, and loss and lr are taken")


def check_pair(what, term, method, outputs, batch):
    """A loss or a metric: whether `method` can be called with the output and the target; returns the output's name."""
    if term.output is None and len(outputs) > 1:
        sys.exit(f"{what}: say with output: which of {', '.join(outputs)} it compares")
    output = term.output or outputs[0]
    check_known(what, output, "output", outputs)
    check_known(what, term.target, "target", batch)
    try:
        signature(what, method).bind(None, None)
    except TypeError as error:
        sys.exit(f"{what}: it is called with an output and a target, but {name_of(method)}: {error}")
    return output


def bind(what, function, chosen, outputs):
    """Which outputs a regularizer is called with. Decided once, by its signature.

    With `chosen` it is called with those, in their order. Otherwise by name, if all its arguments that have no default
    are called like outputs (or "network"). Otherwise by position, with all outputs in their order, if none of its
    arguments is called like an output: a match of some names only is a mistake, not a reason to go by position.

    Args:
        what: the regularizer's name, for messages
        function: the regularizer
        chosen: names of outputs, or None
        outputs: names of all outputs, in their order
    Returns:
        positions, keywords: a list of outputs' names, and a dictionary {argument: output's name}
    """
    method = forward_of(function)
    arguments = signature(what, method)
    if chosen is None:
        kinds = {argument.kind for argument in arguments.parameters.values()}
        by_any_name = outputs if inspect.Parameter.VAR_KEYWORD in kinds else []  # it takes **outputs
        keywords = {name: name for name in [*arguments.parameters, *by_any_name] if name in outputs or name == NETWORK}
        bound = ([], keywords) if keywords else (outputs, {})
    else:
        for name in chosen:
            check_known(what, name, "output", [*outputs, NETWORK])
        bound = chosen, {}
    positions, keywords = bound
    try:
        arguments.bind(*positions, **keywords)
    except TypeError as error:
        called = ", ".join([*positions, *(f"{name}={name}" for name in keywords)])
        sys.exit(f"{what}: {name_of(method)}{arguments} cannot be called with ({called}): {error}")
    return bound


def forward_of(function):
    """What has the signature: of a Module its forward()."""
    return function.forward if isinstance(function, nn.Module) else function


def name_of(method):
    return getattr(method, "__qualname__", type(method).__name__)


def signature(what, method):
    """The arguments of a function."""
    try:
        return inspect.signature(method)
    except (TypeError, ValueError):  # not callable, or written in C
        sys.exit(f"{what}: the arguments of {method!r} cannot be read: put it into a function of your own")
