"""Read the YAML files of the configuration: site.yaml, presets, config files. A mistake ends in one sentence."""

import difflib
import os
import re
import stat
import sys
from dataclasses import fields
from pathlib import Path

import yaml

from src.launch.job import ROOT, Job
from src.settings import Settings, path_of, shortened

PRESETS = ROOT / "src/presets"
JOB_KEYS = [field.name for field in fields(Job)]
SETTINGS_KEYS = [field.name for field in fields(Settings)]
SECTIONS = ["model", "data", "optimizer", "lr_scheduler", "lr_interval", "logger", "callbacks", "trainer"]
STORED_KEYS = ["run", "ckpt"]  # what stands besides in the config.yaml of a run


LARGEST = 10 * 1024**2  # bytes of a file of a configuration or a run


class Unreadable(Exception):
    """A file is not what it should be. The text says which file, and why."""


def open_regular(path):
    """Open a file to read its bytes, if it is a regular file. A pipe would block forever, and a device has no end.

    Raises:
        OSError: it cannot be opened
        Unreadable: it is something else
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise Unreadable(f"{path} is not a regular file")
    return os.fdopen(number, "rb")


def read_bytes(path, largest=LARGEST):
    """All bytes of a regular file.

    Raises:
        Unreadable: with one sentence
    """
    try:
        with open_regular(path) as file:
            content = file.read(largest + 1)
    except (OSError, ValueError) as error:
        raise Unreadable(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > largest:
        raise Unreadable(f"{path} is larger than {largest} bytes, so it is not what it should be")
    return content


def read_text(path, largest=LARGEST):
    """All text of a regular file.

    Raises:
        Unreadable: with one sentence
    """
    content = read_bytes(path, largest)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise Unreadable(f"{path} is not UTF-8 in line {line}: save it as UTF-8") from None


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: in 1.1, which yaml reads, 10:00:00 is the number 36000 and 1e-3 is no number.

    A key that is there twice is refused, and so is a value that contains itself.
    """

    def compose_node(self, parent, index):
        place = self.peek_event().start_mark
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > 100:
            raise yaml.constructor.ConstructorError(None, None, "it is nested more than 100 levels deep", place)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if (key.tag, key.value) in seen:
                    reason = f"the key {shortened(key.value)} is there twice"
                    raise yaml.constructor.ConstructorError(None, None, reason, key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def construct_object(self, node, deep=False):
        return super().construct_object(node, deep=True)  # else what contains itself is not noticed

    def construct_yaml_int(self, node):
        if len(node.value) > 100:
            raise yaml.constructor.ConstructorError(None, None, "a number has more than 100 digits", node.start_mark)
        return super().construct_yaml_int(node)


Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)

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
    """The path of the preset with this name, or of a config file. A file called as a preset is ./NAME."""
    presets = sorted(path.stem for path in PRESETS.glob("*.yaml"))
    if name in presets:
        return PRESETS / f"{name}.yaml"
    path = path_or_exit(name, "--config")
    if path.is_file():
        return path
    known = ", ".join(presets) or "none"
    sys.exit(f"--config {shortened(name)}: there is no such file, and no such preset: these are {known}")


def path_or_exit(text, what):
    """path_of(), which ends the program with its sentence."""
    try:
        return path_of(text, what)
    except ValueError as error:
        sys.exit(str(error))


def read_yaml(path):
    """A YAML file as a dictionary."""
    try:
        text = read_text(path).removeprefix("\ufeff")  # some editors begin a file with this mark
        content = yaml.load(text, Loader)
    except Unreadable as error:
        sys.exit(str(error))
    except yaml.constructor.ConstructorError as error:
        place = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = "a value contains itself" if "recursive" in error.problem else error.problem
        sys.exit(f"{path}: {problem}{place}")
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        sys.exit(f"{path} is not YAML: it holds a control character in line {line}")
    except yaml.YAMLError as error:
        place = f" in line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        problem = getattr(error, "problem", None) or "a mistake"
        if "another document" in problem:
            problem = "it holds several documents (---), and one is allowed"
        sys.exit(f"{path} is not YAML: {problem}{place}")
    except (ValueError, OverflowError, KeyError, AttributeError) as error:  # a date 2026-13-45, or !!bool x
        sys.exit(f"{path} is not YAML: {shortened(error)}")
    if content is None:
        return {}
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
        near = nearest(str(key)[:100], known)
        hint = f"did you mean {near}?" if near else "python run.py --help names them all"
        sys.exit(f"{path}: there is no {where}{shortened(key)}: {hint}")


def read_config(path):
    """The keys of Job and of Settings in a config file, as two dictionaries."""
    content = read_yaml(path)
    if not content and path.stat().st_size == 0:
        print(f"WARNING: {path} is empty, so it has no effect", file=sys.stderr)
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


def class_in(section, key):
    """The class that a section of a config file names, if any."""
    name = section.get("class_path") if isinstance(section, dict) else section
    if isinstance(section, dict) and name is not None and not isinstance(name, str):
        sys.exit(f"{key}: class_path: {shortened(name)} is not the name of a class")
    return name if isinstance(name, str) else None


def names_in(arguments, contents, key):
    """The classes that config files and flags name under this key, the one that counts last.

    Args:
        arguments: flags
        contents: of the config files
    """
    names = [class_in(content.get(key), key) for content in contents]
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
    path = path_or_exit(os.environ.get("RUN_SITE") or ROOT / "src/launch/site.yaml", "RUN_SITE")
    if not path.is_file():
        if os.environ.get("RUN_SITE"):
            sys.exit(f"RUN_SITE names {path}, and there is no such file")
        return {}, path
    content = read_yaml(path)
    check_keys(content, JOB_KEYS, path, "key ")
    return content, path


def log_path():
    """The folder of the runs, where no flag says otherwise."""
    folder, path = read_site()
    folder = folder.get("log_path")
    if not isinstance(folder, str | None):
        sys.exit(f"{path}: log_path: {shortened(folder)} is not a text")
    return path_or_exit(folder or ROOT / "logs", f"{path}: log_path:")
