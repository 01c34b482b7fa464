"""Read what the user typed and the files it names. A mistake ends in one sentence.

The later wins: the defaults of Job and Settings, site.yaml, config files in their order, flags. Flags of the network,
the data, ... (SECTIONS) need torch to be checked: they are handed to src/train.py as they are.
"""

import difflib
import os
import re
import sys
import types
import typing
from dataclasses import dataclass, fields
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

from src.launch.job import ROOT, Job
from src.settings import Settings

SECTIONS = ["model", "data", "optimizer", "lr_scheduler", "lr_interval", "logger", "callbacks", "trainer"]
JOB_KEYS = [field.name for field in fields(Job)]
SETTINGS_KEYS = [field.name for field in fields(Settings)]
OWN_FLAGS = {"dry_run": bool, "config": str, "ckpt": str}
STORED_KEYS = ["run", "ckpt", "command"]  # what stands besides in the config.yaml of a run
TYPES = typing.get_type_hints(Job) | typing.get_type_hints(Settings) | OWN_FLAGS
PRESETS = ROOT / "src/presets"


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: in 1.1, which yaml reads, 10:00:00 is the number 36000."""


Loader.yaml_implicit_resolvers = {
    letter: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:int"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?\d+$"), list("-+0123456789"))


@dataclass
class Request:
    """What the user wants.

    Args:
        job: the job that is asked for
        settings: the training's flags, as far as they can be checked without torch
        arguments: for src/train.py: config files, then flags
        dry_run: only show it
        ckpt: the weights to begin with: best, last or a file
    """

    job: Job
    settings: Settings
    arguments: list[str]
    dry_run: bool
    ckpt: str | None


def make_parser():
    """The parser that knows the types, the defaults and the help of all flags but those of SECTIONS."""
    parser = ArgumentParser(prog="run.py", exit_on_error=False, usage="python run.py [COMMAND] [RUN] [FLAGS]")
    parser.add_argument("--dry_run", action="store_true", help="show the script and the checks, submit nothing")
    parser.add_argument("--config", help="YAML file with any of these flags; may be given again, the last wins")
    parser.add_argument("--ckpt", help="with validate, test, predict: best, last or a file")
    parser.add_class_arguments(Job, None)
    parser.add_class_arguments(Settings, None)
    return parser


def nearest(word, known):
    """A hint, such as ": did you mean --nodes?", or nothing."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return near[0] if near else None


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
            sys.exit(f"{word!r} is not expected here: a flag begins with --, and takes one value")
        name, has_value, value = word[2:].partition("=")
        section = re.split(r"[.+]", name)[0]
        if name not in known and section not in SECTIONS:
            near = nearest(section.replace("-", "_"), known)
            hint = f"did you mean --{near}{name[len(section) :]}?" if near else "python run.py --help names them all"
            sys.exit(f"there is no flag --{name}: {hint}")
        if not has_value:
            if TYPES.get(name) is bool and (not rest or rest[0].lower() not in ("true", "false")):
                value = "true"
            elif not rest or rest[0].startswith("--"):
                sys.exit(f"--{name} needs a value: {allowed(TYPES.get(name, str))}")
            else:
                value = rest.pop(0)
        pairs.append((name, value))
    return pairs


def find_config(name):
    """The path of a config file, or of the preset with this name."""
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    if (PRESETS / f"{name}.yaml").is_file():
        return PRESETS / f"{name}.yaml"
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    sys.exit(f"--config {name}: there is no such file, and no such preset: these are {', '.join(presets) or 'none'}")


def read_yaml(path):
    """A YAML file as a dictionary."""
    try:
        content = yaml.load(path.read_text(), Loader) or {}
    except OSError as error:
        sys.exit(f"cannot read {path}: {error.strerror}")
    except yaml.YAMLError as error:
        place = f" in line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        sys.exit(f"{path} is not YAML: {getattr(error, 'problem', None) or 'a mistake'}{place}")
    if not isinstance(content, dict):
        sys.exit(f"{path} has to hold lines such as   name: value")
    return content


def check_keys(content, known, path, where=""):
    """Every key of a YAML file is known."""
    for key in content:
        if key in known:
            continue
        if key in JOB_KEYS and not where:
            sys.exit(f"{path}: {key} belongs under job:")
        near = nearest(str(key), known)
        hint = f"did you mean {near}?" if near else "python run.py --help names them all"
        sys.exit(f"{path}: there is no {where}{key}: {hint}")


def read_config(path, stored=False):
    """The keys of Job and of Settings in a config file, as two dictionaries. stored: it is a run's own config.yaml."""
    content = read_yaml(path)
    check_keys(content, SETTINGS_KEYS + SECTIONS + ["job"] + (STORED_KEYS if stored else []), path)
    job = content.get("job") or {}
    if not isinstance(job, dict):
        sys.exit(f"{path}: job: has to hold lines such as   nodes: 2")
    check_keys(job, JOB_KEYS, path, "job: ")
    return job, {key: value for key, value in content.items() if key in SETTINGS_KEYS}


def read_site():
    """The defaults of Job at this site: src/launch/site.yaml, or the file that RUN_SITE names."""
    path = Path(os.environ.get("RUN_SITE") or ROOT / "src/launch/site.yaml")
    if not path.is_file():
        if os.environ.get("RUN_SITE"):
            sys.exit(f"RUN_SITE names {path}, and there is no such file")
        return {}
    content = read_yaml(path)
    check_keys(content, JOB_KEYS, path, "key ")
    return check_types(content, path)


def log_path():
    """The folder of the runs, where no flag says otherwise."""
    return Path(read_site().get("log_path") or ROOT / "logs").expanduser().resolve()


def check_types(values, path=None):
    """The values in their types. path: of the file in which they stand; None: they are flags."""
    parser = make_parser()
    typed = {}
    for name, value in values.items():
        try:
            if path is None:
                typed[name] = parser.parse_args([f"--{name}={value}"])[name]
            else:
                typed[name] = parser.parse_object({name: value})[name]
        except ArgumentError:
            given = f"--{name} {value}" if path is None else f"{path}: {name}: {value}"
            sys.exit(f"{given} is not {allowed(TYPES[name])}")
    return typed


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

    job = read_site() | (stored_job or {})
    settings = check_types(read_config(stored_config, stored=True)[1], stored_config) if stored_config else {}
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
    except ValueError as error:
        sys.exit(str(error))

    arguments = [f"--config={path}" for path in ([stored_config] if stored_config else []) + configs]
    arguments += [f"--{name}={value}" for name, value in pairs if name not in JOB_KEYS and name not in OWN_FLAGS]
    if request_settings.accelerator == "auto" and "accelerator" not in flags:
        request_settings.accelerator = "gpu" if request_job.gpus_per_node else "cpu"
        arguments.append(f"--accelerator={request_settings.accelerator}")
    last = dict(pairs)
    return Request(
        request_job, request_settings, arguments, last.get("dry_run", "false").lower() == "true", last.get("ckpt")
    )
