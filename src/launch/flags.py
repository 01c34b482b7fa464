"""Read what the user typed. A mistake ends in one sentence.

The later wins: the defaults of Job and Settings, site.yaml, config files in their order, flags. Flags of the network,
the data, ... (SECTIONS) need torch to be checked: they are handed to src/train.py as they are.
"""

import re
import sys
import types
import typing
from dataclasses import dataclass

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from src.launch.files import JOB_KEYS, SECTIONS, SETTINGS_KEYS, find_config, nearest, read_config, read_site
from src.launch.job import Job
from src.settings import Settings, path_of, shortened

OWN_FLAGS = {"dry_run": bool, "print_config": bool, "config": str, "ckpt": str}
TYPES = typing.get_type_hints(Job) | typing.get_type_hints(Settings) | OWN_FLAGS


@dataclass
class Request:
    """What the user wants.

    Args:
        job: the job that is asked for
        settings: the training's flags, as far as they can be checked without torch
        arguments: for src/train.py: config files, then flags
        dry_run: only show it
        print_config: only show the whole configuration
        ckpt: the weights to begin with: best, last or a file
    """

    job: Job
    settings: Settings
    arguments: list[str]
    dry_run: bool
    print_config: bool
    ckpt: str | None


def make_parser():
    """The parser that knows the types, the defaults and the help of all flags but those of SECTIONS."""
    parser = ArgumentParser(prog="run.py", exit_on_error=False, usage="python run.py [COMMAND] [RUN] [FLAGS]")
    parser.add_argument("--dry_run", action="store_true", help="show the script and the checks, submit nothing")
    parser.add_argument("--print_config", action="store_true", help="print the whole configuration as YAML, and end")
    parser.add_argument("--config", help="YAML file with any of these flags; may be given again, the last wins")
    parser.add_argument("--ckpt", help="with validate, test, predict: best, last or a file")
    parser.add_class_arguments(Job, None)
    parser.add_class_arguments(Settings, None)
    return parser


def allowed(kind):
    """What a flag of this type may be, in words."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return " or ".join(allowed(part) for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is typing.Literal:
        return f"one of {', '.join(typing.get_args(kind))}"
    words = {
        PositiveInt: "a whole number above 0",
        NonNegativeInt: "a whole number, 0 or more",
        PositiveFloat: "a number above 0",
        bool: "true or false",
        int: "a whole number",
        list[str]: "a list, such as [one, two]",
    }
    return words.get(kind, "a text")


def split_flags(argv):
    """["--nodes", "2", "--smoke"] as [("nodes", "2"), ("smoke", "true")]."""
    known = JOB_KEYS + SETTINGS_KEYS + list(OWN_FLAGS) + SECTIONS
    pairs, rest = [], list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            sys.exit(f"{shortened(word)!r} is not expected here: a flag begins with --, and takes one value")
        name, has_value, value = word[2:].partition("=")
        section = re.split(r"[.+]", name)[0]
        if name not in known and section not in SECTIONS:
            near = nearest(section[:100].replace("-", "_"), known)
            hint = f"did you mean --{near}{name[len(section) :]}?" if near else "python run.py --help names them all"
            sys.exit(f"there is no flag --{shortened(name)}: {hint}")
        if not has_value:
            if TYPES.get(name) is bool and (not rest or rest[0].lower() not in ("true", "false")):
                value = "true"
            elif not rest or rest[0].startswith("--"):
                sys.exit(f"--{name} needs a value: {allowed(TYPES.get(name, str))}")
            else:
                value = rest.pop(0)
        if not value and name in TYPES:
            sys.exit(f"--{name} needs a value: {allowed(TYPES[name])}")
        pairs.append((name, value))
    return pairs


def check_number(kind, text):
    """Refuse what is a number for Python alone, such as 1_000.

    Raises:
        ValueError: without a sentence
    """
    kinds = typing.get_args(kind) or (kind,)
    numbers = [part for part in kinds if isinstance(part, type) and issubclass(part, (int, float))]
    if numbers and ("_" in text or not text.isascii()):
        raise ValueError


def flag_value(parser, name, text):
    """The typed value in the type of its flag. A text is the text itself, and no YAML, for which #x is nothing.

    Raises:
        ArgumentError, ValueError, yaml.YAMLError: it cannot be that type
    """
    kind = TYPES[name]
    if kind in (str, str | None):
        return text
    if kind == list[str]:
        value = yaml.load(text, yaml.BaseLoader)  # all its values are texts
        if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
            raise ValueError
        return value
    check_number(kind, text)
    return parser.parse_args([f"--{name}={text}"])[name]


def check_types(values, path=None):
    """The values in their types. path: of the file in which they stand; None: they are flags."""
    parser = make_parser()
    typed = {}
    for name, value in values.items():
        try:
            if path is None:
                typed[name] = flag_value(parser, name, value)
            else:
                if value is None and type(None) not in typing.get_args(TYPES[name]):
                    raise ValueError
                check_number(TYPES[name], str(value))
                typed[name] = parser.parse_object({name: value})[name]
        except (ArgumentError, ValueError, OverflowError, yaml.YAMLError):
            given = f"--{name} {shortened(value)}" if path is None else f"{path}: {name}: {shortened(value)}"
            sys.exit(f"{given} is not {allowed(TYPES[name])}")
    return typed


def for_training(name, value):
    """The value as src/train.py has to receive it: that program reads YAML, for which ~ and #x are nothing."""
    if TYPES.get(name) != str | None or value.partition("#")[0].strip() not in ("", "~", "null", "Null", "NULL"):
        return value
    return sys.exit(f"--{name} {value} is no name") if name == "monitor" else str(path_of(value, f"--{name}"))


def parse(argv, stored_config=None, stored_job=None):
    """Read flags and config files; a Request.

    Args:
        argv: the flags
        stored_config: config.yaml of the run that is evaluated, repeated or resumed; all other config files win over it
        stored_job: the job of the run that is repeated or resumed, as a dictionary
    """
    pairs = split_flags(argv)
    configs = [find_config(value) for name, value in pairs if name == "config"]
    flags = {name: value for name, value in pairs if name in JOB_KEYS + SETTINGS_KEYS}

    job = check_types(*read_site()) | (stored_job or {})
    settings = check_types(read_config(stored_config)[1], stored_config) if stored_config else {}
    settings.pop("accelerator", None)  # what that run had; this one has it from its own GPUs
    for path in configs:
        job_part, settings_part = read_config(path)
        job |= check_types(job_part, path)
        settings |= check_types(settings_part, path)
    typed = check_types(flags)
    if "gpus_per_node" in typed:
        job.pop("tasks_per_node", None)  # what fitted the GPUs that a file or a run before had
    job |= {name: value for name, value in typed.items() if name in JOB_KEYS}
    settings |= {name: value for name, value in typed.items() if name in SETTINGS_KEYS}
    try:
        request_job, request_settings = Job(**job), Settings(**settings)
        if request_job.container and request_settings.data_dir:
            folder = str(path_of(request_settings.data_dir, "--data_dir"))
            if found := re.search("[,:]", folder):
                raise ValueError(f"--data_dir {shortened(folder)} holds {found[0]}, which --container cannot bind")
            request_job.container_binds = list(dict.fromkeys([*request_job.container_binds, folder]))
    except ValueError as error:
        sys.exit(str(error))

    arguments = [f"--config={path}" for path in ([stored_config] if stored_config else []) + configs]
    arguments += [
        f"--{name}={for_training(name, value)}" for name, value in pairs if name not in [*JOB_KEYS, *OWN_FLAGS]
    ]
    if request_settings.accelerator == "auto" and "accelerator" not in flags:
        request_settings.accelerator = "gpu" if request_job.gpus_per_node else "cpu"
        arguments.append(f"--accelerator={request_settings.accelerator}")
    last = dict(pairs)
    dry_run, print_config = (last.get(name, "false").lower() == "true" for name in ("dry_run", "print_config"))
    return Request(request_job, request_settings, arguments, dry_run, print_config, last.get("ckpt"))
