"""What is searched, and how: --search.optimizer.lr log:1e-4..1e-1 --search.batch_size 64,128,256 --trials 12

Behind --search. stands a flag of run.py, then where its values come from. torch is not imported here, nor is Optuna.
"""

import itertools
import re
import sys
from dataclasses import dataclass, fields
from typing import Literal

from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import PositiveInt

from src.launch.files import SECTIONS, SETTINGS_KEYS
from src.launch.flags import allowed, check_types
from src.settings import shortened

SYNTAX = "values such as 64,128,256, or a range such as 0.1..0.9, 2..8 (whole numbers) or log:1e-4..1e-1"
COMMON = ["monitor", "fast_dev_run", "smoke"]  # with others in each trial they could not be compared


@dataclass
class Search:
    """The search.

    Args:
        trials: how many trainings, all together; default: 12, with a grid all combinations
        at_once: how many of them at the same time, on Slurm; elsewhere they come one after the other
        sampler: what chooses values: tpe learns from the trials before, random does not, grid takes all combinations
        pruner: what ends trials that do badly: median of those before, halving (ASHA), or none
    """

    trials: PositiveInt | None = None
    at_once: PositiveInt = 4
    sampler: Literal["tpe", "random", "grid"] = "tpe"
    pruner: Literal["none", "median", "halving"] = "none"


OWN = {field.name: field.type for field in fields(Search)}


def make_parser():
    parser = ArgumentParser(prog="run.py", exit_on_error=False, usage="python run.py search --search.FLAG VALUES ...")
    parser.add_class_arguments(Search, None)
    return parser


def read_search(texts):
    """A Search of {flag: text}."""
    parser = make_parser()
    for name, text in texts.items():
        try:
            parser.parse_args([f"--{name}={text}"])
        except ArgumentError:
            sys.exit(f"--{name} {shortened(text)} is not {allowed(OWN[name])}")
    return Search(**parser.parse_args([f"--{name}={text}" for name, text in texts.items()]))


def split(argv):
    """What is searched, how, and the other flags: {flag: text}, {flag: text}, [word]."""
    texts, own, rest, words = {}, {}, [], list(argv)
    while words:
        word = words.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--search.") and not (word.startswith("--") and name in OWN):
            rest.append(word)
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                sys.exit(f"--{name} needs a value: {SYNTAX if name not in OWN else allowed(OWN[name])}")
            text = words.pop(0)
        (own if name in OWN else texts)[name.removeprefix("search.")] = text
    return texts, own, rest


@dataclass
class Range:
    """Numbers from low to high, both included; whole ones if both are int. log: as many in 0.1..1 as in 1..10."""

    low: float
    high: float
    log: bool

    @property
    def ends(self):
        return [str(self.low), str(self.high)]


def values_of(name, text):
    """Where the values of a flag come from: a list of texts, as they would be typed, or a Range."""

    def wrong(reason):
        sys.exit(f"--search.{name} {text}: {reason}. It takes {SYNTAX}")

    number = r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?"
    log, rest = text.startswith("log:"), text.removeprefix("log:")
    low, dots, high = rest.partition("..")
    if "," in rest:  # a list, perhaps of paths such as ../a,../b
        if any(re.fullmatch(rf"{number}\.\.{number}", part.strip()) for part in rest.split(",")):
            wrong("a range stands alone, not in a list")
        dots = ""
    if not dots:
        if log:
            wrong("log: is for a range")
        values = [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", text)]  # [64,64],[128] are two lists
        if "" in values or len(set(values)) < len(values):
            wrong("a value is empty or there twice")
        if len(values) == 1:
            wrong("one value alone is no choice")
        return values
    if not all(re.fullmatch(number, end.strip()) for end in (low, high)):
        wrong("the ends of a range are numbers")
    try:
        ends = [int(end) if re.fullmatch(r"[-+]?\d+", end.strip()) else float(end) for end in (low, high)]
    except ValueError:
        wrong("the ends of a range are numbers")
    if isinstance(ends[0], float) or isinstance(ends[1], float):
        ends = [float(end) for end in ends]
    if not float("-inf") < ends[0] < ends[1] < float("inf"):
        wrong("the range is empty, or has no end")
    if log and ends[0] <= 0:
        wrong("a logarithm needs numbers above 0")
    return Range(*ends, log)


def read_space(texts):
    """{flag: text} as {flag: list or Range}. Ends with one sentence if a flag or a value cannot be right."""
    space = {}
    for name, text in texts.items():
        section = re.split(r"[.+]", name)[0]
        if section not in SECTIONS + SETTINGS_KEYS or name in COMMON:
            sys.exit(
                f"--search.{name}: only flags of the training can be searched, other than {', '.join(COMMON)}: "
                "python run.py --help names them"
            )
        space[name] = values_of(name, text)
        if name in SETTINGS_KEYS:
            for value in examples(space[name]):
                check_types({name: value})
    return space


def examples(values):
    """The values that can be checked: all of a list, the ends of a range."""
    return values.ends if isinstance(values, Range) else values


def combinations(space):
    """All combinations of the values, each a dictionary. Ends with one sentence if there is a range."""
    for name, values in space.items():
        if isinstance(values, Range):
            sys.exit(f"--search.{name}: a grid needs values, such as 0.1,0.2,0.3: a range has no end of them")
    return [dict(zip(space, chosen, strict=True)) for chosen in itertools.product(*space.values())]
