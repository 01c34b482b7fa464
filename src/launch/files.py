"""Read the YAML files of the configuration: site.yaml, presets, config files. A mistake ends in one sentence."""

import difflib
import os
import re
import sys
from dataclasses import fields
from pathlib import Path

import yaml

from src.launch.job import ROOT, Job
from src.settings import Settings

PRESETS = ROOT / "src/presets"
JOB_KEYS = [field.name for field in fields(Job)]
SETTINGS_KEYS = [field.name for field in fields(Settings)]
SECTIONS = ["model", "data", "optimizer", "lr_scheduler", "lr_interval", "logger", "callbacks", "trainer"]
STORED_KEYS = ["run", "ckpt"]  # what stands besides in the config.yaml of a run


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: in 1.1, which yaml reads, 10:00:00 is the number 36000 and 1e-3 is no number."""


INT, FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
Loader.yaml_implicit_resolvers = {
    letter: [(tag, regexp) for tag, regexp in resolvers if tag not in (INT, FLOAT)]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
NUMBER = r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
Loader.add_implicit_resolver(INT, re.compile(r"[-+]?\d+$"), list("-+0123456789"))
Loader.add_implicit_resolver(FLOAT, re.compile(NUMBER), list("-+.0123456789"))


def nearest(word, known):
    """The known word that was probably meant, or None."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return near[0] if near else None


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


def read_config(path):
    """The keys of Job and of Settings in a config file, as two dictionaries."""
    content = read_yaml(path)
    check_keys(content, SETTINGS_KEYS + SECTIONS + ["job", *STORED_KEYS], path)
    job = content.get("job") or {}
    if not isinstance(job, dict):
        sys.exit(f"{path}: job: has to hold lines such as   nodes: 2")
    check_keys(job, JOB_KEYS, path, "job: ")
    return job, {key: value for key, value in content.items() if key in SETTINGS_KEYS}


def data_class(arguments):
    """The class of the data that flags and config files name, such as MNIST or src.datasets.mine.Mine; None if none.

    Args:
        arguments: --config=PATH and flags, the last of which counts
    """
    files = [word.partition("=")[2] for word in arguments if word.startswith("--config=")]
    names = names_in(arguments, [read_yaml(Path(file)) for file in files], "data")
    return names[-1] if names else None


def class_in(section):
    """The class that a section of a config file names, if any."""
    return section if isinstance(section, str) else isinstance(section, dict) and section.get("class_path")


def names_in(arguments, contents, key):
    """The classes that config files and flags name under this key, the one that counts last.

    Args:
        arguments: flags
        contents: of the config files
    """
    names = [class_in(content.get(key)) for content in contents]
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = word.partition("=")
        if flag in (f"--{key}", f"--{key}.class_path"):
            names.append(value if equals else following)
    return [name for name in names if name]


def divides_batches(name):
    """Whether the class divides a batch among the processes: those of src/datasets that are a DataModule do.

    This reads their code, because to import them takes seconds.
    """
    bases = {}
    for path in (ROOT / "src/datasets").glob("*.py"):
        text = path.read_text()
        bases |= dict(re.findall(r"^class (\w+)\((?:\w+\.)*(\w+)\):", text, re.MULTILINE))
    name = name.rpartition(".")[2]
    while name in bases and name != "DataModule":
        name = bases[name]
    return name == "DataModule"


def read_site():
    """The defaults of Job at this site, and their file: src/launch/site.yaml, or what RUN_SITE names."""
    path = Path(os.environ.get("RUN_SITE") or ROOT / "src/launch/site.yaml")
    if not path.is_file():
        if os.environ.get("RUN_SITE"):
            sys.exit(f"RUN_SITE names {path}, and there is no such file")
        return {}, path
    content = read_yaml(path)
    check_keys(content, JOB_KEYS, path, "key ")
    return content, path


def log_path():
    """The folder of the runs, where no flag says otherwise."""
    return Path(read_site()[0].get("log_path") or ROOT / "logs").expanduser().resolve()
