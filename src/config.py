"""The configuration of a training: read from files and flags, checked, merged, and made into objects.

    python src/train.py fit --config laptop --config mine.yaml --model.arch cnn --optimizer.lr 1e-3

The files are stacked, the last one wins, and flags win over files. What can be chosen by class path (data, model,
optimizer, lr_scheduler, logger, callbacks) is `class_path:` and `init_args:` in a file; as a flag the name of the class
is enough where this repository, torch or Lightning has it.

A class receives the values that its user gave. If nobody gave one, its own default holds. Only what is still missing is
filled in: batch_size, num_workers, seed and data_dir for the data, shape and num_classes for the model.

Paths become absolute here, because a run may be resumed or evaluated from another folder: see absolute_paths().
"""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import logging
import os
import pathlib
import pkgutil
import re
import sys
import traceback
import warnings
from dataclasses import fields
from enum import Enum
from typing import Literal

import lightning as L
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_dumper, set_loader
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import src.datasets
import src.models
from src.datasets.datamodule import DataModule
from src.launch.files import PRESETS, SETTINGS_KEYS, Loader, class_in, names_in, read_yaml
from src.settings import Settings, shortened
from src.utils.attributes import STDLIB
from src.utils.plain import plain

PLATEAU = "ReduceLROnPlateau"  # torch and Lightning have one each: the short name is Lightning's, which has a monitor


def load(text):
    """Read files and flags for jsonargparse with the SafeLoader that run.py uses."""
    content = yaml.load(text, Loader)
    scheduler = content.get("lr_scheduler") if isinstance(content, dict) else None
    if scheduler == PLATEAU or (isinstance(scheduler, dict) and scheduler.get("class_path") == PLATEAU):
        arguments = {} if scheduler == PLATEAU else scheduler
        content["lr_scheduler"] = arguments | {"class_path": f"lightning.pytorch.cli.{PLATEAU}"}
    return content


class Dumper(yaml.SafeDumper):
    """Writes a text in place of an object, which writable() omits."""


UNWRITABLE = "Unable to serialize instance"  # jsonargparse's words
Dumper.add_multi_representer(object, lambda dumper, value: dumper.represent_str(UNWRITABLE))
set_loader("yaml", load, exceptions=(yaml.YAMLError,))
set_dumper("yaml", lambda content: yaml.dump(content, Dumper=Dumper, sort_keys=False))

log = logging.getLogger(__name__)
log_once = rank_zero_only(log.info)

KNOWN = {
    "data": [],
    "model": [],
    "optimizer": ["SGD", "Adam", "AdamW", "RMSprop"],
    "lr_scheduler": ["StepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau"],
    "logger": ["tensorboard", "csv", "mlflow", "wandb"],
    "callbacks": ["EarlyStopping", "EMAWeightAveraging", "LearningRateMonitor"],
}


def in_one_line(error):
    """An exception with the line of code from which it comes."""
    frames = traceback.extract_tb(error.__traceback__)
    file, line = (error.filename, error.lineno) if isinstance(error, SyntaxError) else frames[-1][:2]
    reason = short_words(" ".join(str(error).split()))
    return f"{type(error).__name__}: {reason} ({os.path.basename(file or '?')}:{line})"


def short_words(text, longest=150):
    """The text with its long words cut: a sentence that repeats 5,000 letters cannot be read."""
    return re.sub(rf"\S{{{longest + 1},}}", lambda word: f"{word[0][: longest // 2]}...{word[0][-10:]}", text)


BROKEN = {}  # files in src/datasets and src/models that cannot be imported, with the reason
for package, key in ((src.datasets, "data"), (src.models, "model")):  # so that the classes in them are known by name
    for info in pkgutil.iter_modules(package.__path__):
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
        except (Exception, SystemExit) as error:  # an unfinished file must not stop a training that does not use it
            BROKEN[f"{package.__name__}.{info.name}"] = in_one_line(error)
            continue
        for name, thing in vars(module).items():
            ours = inspect.isclass(thing) and thing.__module__ == module.__name__
            if ours and issubclass(thing, (L.LightningDataModule, L.LightningModule)):
                KNOWN[key].append(name)

DEFAULTS = {"data": "src.datasets.mnist.MNIST", "model": "src.models.classifier.Classifier"}
FOR_DATA = ("batch_size", "num_workers", "seed", "data_dir")
OPTIMIZATION = ("optimizer", "lr_scheduler", "lr_interval")
# Arguments of Lightning's Trainer that have a flag of their own here, and those that src/train.py decides.
TRAINER_FLAGS = {
    "accumulate_grad_batches": "accumulate",
    "check_val_every_n_epoch": "validate_every",
    "devices": "gpus_per_node",
    "gradient_clip_val": "gradient_clip",
    "num_nodes": "nodes",
    "profiler": "profile",
    "val_check_interval": "validate_every",
}
TRAINER_OURS = [
    "default_root_dir",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "plugins",
    "use_distributed_sampler",
]


def make_parser(links=True):
    """The parser of all flags.

    Args:
        links: whether the values that are filled in later may be missing
    """
    parser = ArgumentParser(prog="train.py", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file, or the name of one in src/presets")
    parser.add_argument("--job", type=dict | None, help="what the job asked Slurm for: run.py notes it here")
    parser.add_argument("--run", type=str | None, help="validate, test, predict: the run's folder")
    parser.add_argument("--ckpt", type=str, default="last", help="validate, test, predict: last, best, or a file")
    parser.add_class_arguments(Settings, None)
    parser.add_subclass_arguments(L.LightningDataModule, "data", fail_untyped=False)
    parser.add_subclass_arguments(L.LightningModule, "model", fail_untyped=False)
    parser.add_argument("--optimizer", type=OptimizerCallable | None)
    parser.add_argument("--lr_scheduler", type=LRSchedulerCallable | None)
    parser.add_argument("--lr_interval", type=Literal["epoch", "step"], default="epoch", help="of the scheduler")
    parser.add_argument("--logger", type=Literal["tensorboard", "csv", "mlflow", "wandb"] | Logger)
    parser.add_argument("--callbacks", type=list[Callback], default=[], help="besides those that every run has")
    parser.add_argument(
        "--trainer",
        type=dict[str, bool | int | float | str],
        default={},
        help="more for Lightning's Trainer, such as benchmark",
    )
    parser.set_defaults(
        {
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3, "fused": True}},
            "logger": "tensorboard",
        }
    )
    if links:  # nothing flows through these links: instantiate() fills in what they allow to be missing
        parser.link_arguments("data.shape", "model.init_args.shape", apply_on="instantiate")
        parser.link_arguments("data.classes", "model.init_args.num_classes", apply_on="instantiate")
    return parser


def settings_of(config):
    """The part of a configuration that is Settings."""
    return Settings(**{field.name: config[field.name] for field in fields(Settings)})


def sources_of(argv):
    """The flags, split into files and the rest. The classes come first: the flags for their arguments need them."""
    files, classes, flags, words = [], [], [], iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--config":
            value = value or next(words, "")
            preset = PRESETS / f"{value}.yaml"
            files.append(str(preset) if os.path.isfile(preset) else value)
        elif flag in ("--lr_scheduler", "--lr_scheduler.class_path"):
            value = value or next(words, "")
            flags.append(f"{flag}={f'lightning.pytorch.cli.{PLATEAU}' if value == PLATEAU else value}")
        elif flag in ("--data", "--model"):
            classes.append(f"{flag}={value or next(words, '')}")
        elif flag == "--callbacks" and not value.startswith(("[", "{")):  # the name of a class: one more callback
            flags.append(f"--callbacks+={value or next(words, '')}")
        else:
            flags.append(word)
    return files, classes + flags


def content_of(path):
    """Read a config file as a dictionary, before jsonargparse does and as run.py does.

    Raises:
        ValueError, SystemExit: with one sentence that says what is wrong with it
    """
    if not os.path.isfile(path):
        presets = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml"))) or "none"
        raise ValueError(f"--config {shortened(path)}: there is no such file, and no such preset: these are {presets}")
    try:
        return read_yaml(pathlib.Path(path))
    except ValueError as error:  # bytes that are no text, or a number that is no number
        raise ValueError(f"{shortened(path)} cannot be read: {error}") from error


def parse(parser, arguments, **options):
    """parser.parse_args(), whose error is one sentence.

    Raises:
        ValueError: with that sentence
    """
    try:
        return parser.parse_args(arguments, **options)
    except ArgumentError as error:
        raise ValueError(one_sentence(error)) from error


def merge(argv) -> str:
    """Flags and the files they name, as one YAML text.

    Raises:
        ValueError: with one sentence that says what is wrong
    """
    for file, reason in BROKEN.items() if rank_zero_only.rank == 0 else ():
        print(f"warning: {file} cannot be imported, its classes are not known: {reason}", file=sys.stderr)
    files, flags = sources_of(argv)
    pairs = [(path, content) for path in files if (content := content_of(path))]  # not the empty ones
    contents = [content for _, content in pairs]
    arguments = [word for path, _ in pairs for word in ("--config", path)] + flags
    typed = {flag.partition("=")[0].rstrip("+") for flag in flags if flag.startswith("--")}
    for key, default in DEFAULTS.items():
        if f"--{key}" in typed or any(class_in(content.get(key), key) for content in contents):
            continue
        if importlib.util.find_spec(default.rpartition(".")[0]) is None:
            known = f": {', '.join(KNOWN[key])}, or a path such as mine.Mine" if KNOWN[key] else ""
            raise ValueError(f"--{key} is missing: it takes the name of a class{known}")
        arguments = [f"--{key}={default}", *arguments]
    for before, word in zip(["", *arguments], arguments, strict=False):
        name, equals, value = word.partition("=")
        if not equals:
            name, value = before, word
        if re.fullmatch(r"[-+]?[0-9]+_[0-9_]*(\.[0-9_]*)?(e[-+]?[0-9]+)?", value):
            raise ValueError(f"{name} {shortened(value)} is a number for Python alone: write it without _")
        if re.fullmatch(r"[-+]?[0-9]{300,}", value):
            raise ValueError(f"{name} {shortened(value)} is too large for a whole number")
    for content in contents:
        check_trainer(content["trainer"] if isinstance(content.get("trainer"), dict) else {})
    parser = make_parser()
    named = {key: names_in(arguments, contents, key) for key in DEFAULTS}
    if reason := why_unknown([names[-1] for names in named.values()]):
        raise ValueError(reason)
    for key, base in (("data", L.LightningDataModule), ("model", L.LightningModule)):
        name, found = named[key][-1], find_class(named[key][-1], base)
        if found is not None and "." in name and not (isinstance(found, type) and issubclass(found, base)):
            raise ValueError(f"--{key} {shortened(name)} is not a {base.__name__}")
    data = find_class(named["data"][-1], L.LightningDataModule)
    # What the class of the data needs, has no default for, and was not given: it receives the setting below.
    typed_for_data = {name for name in FOR_DATA if typed & {f"--data.{name}", f"--data.init_args.{name}"}}
    missing = [
        f"--data.{name}={getattr(Settings, name)}"
        for name in FOR_DATA
        if data
        and needed(data, name)
        and name not in typed_for_data
        and not any(name in arguments_in(content.get("data")) for content in contents)
    ]
    try:
        given = parse(parser, arguments + missing, defaults=False)  # only what somebody has given
        config = parse(parser, arguments + missing)
    except ValueError as error:
        raise ValueError(why_unknown(named["data"] + named["model"]) or str(error)) from error
    classes = {key: class_of(given, key) for key in DEFAULTS}
    given_to_data = given.data.get("init_args") or {}
    init_args = config.data.init_args if config.data.get("init_args") is not None else {}
    for name in FOR_DATA:
        if name not in init_args:
            if name in ("batch_size", "data_dir") and f"--{name}" in typed:
                raise ValueError(f"--{name} has no effect: {classes['data'].__name__} has no argument {name}")
            continue
        for content in contents:  # the later wins, and in a file what is said of the class
            inner = arguments_in(content.get("data"))
            if name in inner:
                init_args[name] = inner[name]
            elif name in content:
                init_args[name] = content[name]
        if name in typed_for_data:
            init_args[name] = given_to_data[name]
        elif f"--{name}" in typed:
            value = config[name]
            init_args[name] = int(value) if isinstance(value, int) else value  # not a PositiveInt
        value = init_args[name]
        plain = {"data_dir": str, "batch_size": PositiveInt, "num_workers": NonNegativeInt}.get(name)
        if plain is str and isinstance(value, os.PathLike):
            init_args[name] = config[name] = os.fspath(value)
        elif plain is str or (plain and isinstance(value, int) and value >= (plain is PositiveInt)):
            config[name] = value  # else its class gives it a meaning of its own
    check_trainer(config.trainer)
    if overrides(classes["model"], "configure_optimizers"):
        check_optimization(classes["model"], given, contents)
        config.optimizer, config.lr_scheduler = None, None
    settings_of(config)  # checks what goes beyond types
    for key in DEFAULTS:
        omit_objects(config[key].get("init_args"), given[key].get("init_args") or {})
    absolute_paths(config)
    config.pop("config", None)
    return dump(config)


def omit_objects(arguments, given):
    """Omit defaults that are or hold objects: a file cannot hold them, and without them the class's own default holds.

    Args:
        arguments: of a class, with its defaults; changed in place
        given: those that somebody has given
    """
    for name in list(vars(arguments or Namespace())):
        if name not in given and not is_plain_data(arguments[name]):
            del arguments[name]


def is_plain_data(value):
    if type(value) in (list, tuple):
        return all(is_plain_data(part) for part in value)
    if isinstance(value, dict):
        return all(is_plain_data(part) for part in value.values())
    return value is None or isinstance(value, (bool, int, float, str, Enum, os.PathLike, Namespace))


def absolute_paths(config):
    """Make paths absolute, in place: those of the data and the model, init_from, run and ckpt.

    In the arguments of the data and the model a path is what has the type Path, each data_dir, and a text whose name is
    path, root or stage or ends with _dir, _path, _file or _root, if it begins with ~ or ./ or ../ or if there is such a
    file or folder here. Any other text stays as it is: it may be the name of something on the internet.
    """
    for name in ("data_dir", "init_from", "run"):
        if config[name]:
            config[name] = absolute(config[name])
    if config.ckpt not in ("last", "best"):
        config.ckpt = absolute(config.ckpt)
    for part in (config.data, config.model):
        if part.get("init_args") is not None:
            part.init_args = with_absolute_paths(part.init_args)


def with_absolute_paths(value, name=""):
    """The value of an argument of this name, and of all arguments in it."""
    if isinstance(value, (dict, Namespace)):
        for key, part in value.items(**({"branches": True} if isinstance(value, Namespace) else {})):
            if "." not in str(key):
                value[key] = with_absolute_paths(part, str(key))
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(with_absolute_paths(part, name) for part in value)
    if isinstance(value, pathlib.PurePath):
        return type(value)(absolute(value))
    if isinstance(value, str) and value and (name == "data_dir" or (PATH_NAMES.search(name) and is_path(value))):
        return absolute(value)
    return value


PATH_NAMES = re.compile(r"^(path|root|stage)$|_(dir|path|file|root)$")


def is_path(text):
    return text.startswith(("~", "./", "../")) or ("://" not in text and os.path.exists(text))


def absolute(path):
    return os.path.abspath(os.path.expanduser(path))


def why_unknown(names):
    """A reason for which a class with one of these names is not taken, if it is one that its file gives."""
    for name in names:
        package, _, last = name.rpartition(".")
        for file, reason in BROKEN.items():
            in_file = not package and re.search(rf"^class {re.escape(last)}\b", source(file), re.MULTILINE)
            if file == package or in_file:
                return f"{shortened(name)} cannot be used, because {file} cannot be imported: {reason}"
        try:
            bases = imported(name).__mro__ if package else []
        except (Exception, SystemExit) as error:  # whatever happens in the user's file
            bases = []
            if getattr(error, "name", None) == "pytorch_lightning":
                return f"{name} imports pytorch_lightning, which is not installed: import lightning.pytorch instead"
            absent = isinstance(error, ModuleNotFoundError) and package.startswith(error.name or "?")
            if not absent and not isinstance(error, AttributeError):  # then the parser says that there is no such class
                return f"{name} cannot be used, because {package} cannot be imported: {in_one_line(error)}"
        if any(base.__module__.startswith("pytorch_lightning") for base in bases):
            return (
                f"{name} derives from the package pytorch_lightning, and this program uses lightning: the two are not "
                "compatible. Import lightning.pytorch instead"
            )
    return None


def source(module):
    """The text of a module's file; nothing if it cannot be read."""
    try:
        return pathlib.Path(importlib.util.find_spec(module).origin).read_text(errors="replace")
    except (OSError, ImportError, AttributeError, TypeError):
        return ""


def arguments_in(section):
    """The init_args in a section of a config file."""
    inner = section.get("init_args") if isinstance(section, dict) else None
    return inner if isinstance(inner, dict) else {}


def find_class(name, base):
    """The class of this name or path; None if there is none: the parser says so."""
    package, _, last = name.rpartition(".")
    if package:
        try:
            return getattr(importlib.import_module(package), last, None)
        except (Exception, SystemExit):  # whatever happens in the user's file
            return None
    kinds = [base]
    for kind in kinds:
        kinds += kind.__subclasses__()
    return next((kind for kind in kinds if kind.__name__ == last), None)


def class_of(config, key):
    """The class that the configuration names under this key."""
    return imported(config[key].class_path)


def imported(path):
    """The class of this path, such as torch.optim.SGD."""
    package, _, name = path.rpartition(".")
    return getattr(importlib.import_module(package), name)


def needed(cls, name):
    """Whether the class has an argument of this name and no default for it."""
    parameter = inspect.signature(cls.__init__).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def overrides(cls, method):
    """Whether the class of a model has this method of its own."""
    return getattr(cls, method) is not getattr(L.LightningModule, method)


def check_trainer(more):
    """Refuse Trainer arguments that have their own flag here: their value would be ignored."""
    for name in more:
        if not isinstance(name, str):
            raise ValueError(f"trainer: {shortened(name)} is not the name of an argument of Lightning's Trainer")
        flag = TRAINER_FLAGS.get(name, name)
        if flag in SETTINGS_KEYS + ["nodes", "gpus_per_node", "logger", "callbacks"]:
            raise ValueError(f"--trainer.{name} is not accepted: use --{flag}")
        if name in TRAINER_OURS:
            raise ValueError(f"--trainer.{name} cannot be set: src/train.py sets it")
        if name not in inspect.signature(L.Trainer.__init__).parameters:
            near = difflib.get_close_matches(name, inspect.signature(L.Trainer.__init__).parameters)
            hint = f": did you mean --trainer.{near[0]}?" if near else ""
            raise ValueError(f"Lightning's Trainer has no argument {shortened(name)}{hint}")
        try:
            trainer_parser().parse_object({name: more[name]})
        except ArgumentError as error:
            raise ValueError(one_sentence(error).replace("--", "--trainer.", 1)) from error


def trainer_parser():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(L.Trainer, None, fail_untyped=False)
    return parser


def check_optimization(cls, given, contents):
    """An optimizer that the model would not use is refused."""
    unset = (None, {}, "epoch")  # "epoch" is the default of --lr_interval, and is in each run's config.yaml
    for name in (*OPTIMIZATION, "scale_lr"):
        if any(source.get(name) not in unset for source in (given, *contents)):
            raise ValueError(f"--{name} has no effect: {cls.__name__} makes its optimizer in configure_optimizers")


def dump(config) -> str:
    """The configuration as YAML, without what cannot be written: then the default of its class holds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = make_parser(links=False).dump(config, skip_validation=True, skip_none=False)
    content = {key: part for key, part in writable(yaml.load(text, Loader)).items() if part is not None}
    arguments = (content.get("model") or {}).get("init_args") or {}
    for name in ("shape", "num_classes"):
        if arguments.get(name) is None:  # the data will say it
            arguments.pop(name, None)
    return yaml.safe_dump(content, sort_keys=False)


def writable(value):
    """Without the entries for which jsonargparse has no text, such as a tensor that is a default."""
    if isinstance(value, dict):
        return {key: writable(part) for key, part in value.items() if not unwritable(part)}
    return [writable(part) for part in value] if isinstance(value, list) else value


def unwritable(value):
    if isinstance(value, list):
        return any(unwritable(part) for part in value)
    return isinstance(value, str) and value.startswith(UNWRITABLE)


def read(text) -> Namespace:
    """A text that merge() made, as a namespace.

    Raises:
        ValueError: with one sentence
    """
    try:
        return make_parser().parse_string(text)
    except ArgumentError as error:
        raise ValueError(one_sentence(error)) from error


def instantiate(config, processes=1):
    """The objects that the configuration describes, under the same names: data, model, optimizer, ...

    Args:
        processes: how many train together
    Returns:
        a Namespace, with filled_in: the arguments of the model that the data have given, a dictionary, and with
        model_arguments: all of them, as a checkpoint can hold them
    Raises:
        ValueError, SystemExit: with one sentence
    """
    config = config.clone()
    if (
        config.gradient_clip
        and config.precision != "32"
        and config.optimizer
        and config.optimizer.get("init_args.fused")
    ):
        config.optimizer.init_args.fused = False  # in mixed precision Lightning cannot clip for a fused optimizer
    data = make("data", config.data, L.LightningDataModule)
    factor = 1.0
    if config.scale_lr:
        factor = global_batch(data, config, processes) / config.scale_lr
        scale_schedule(config, factor)
    filled_in = fill_in(config, data)
    model = make("model", config.model, L.LightningModule)
    written = yaml.load(dump(config), Loader)["model"].get("init_args") or {}
    is_logger = isinstance(config.logger, Namespace)
    logger = make("logger", config.logger, Logger) if is_logger else config.logger
    config.data = config.model = config.logger = None
    with its_own_errors("--callbacks, --optimizer, --lr_scheduler"):
        parts = make_parser(links=False).instantiate(config)
    parts.data, parts.model, parts.logger = data, model, logger
    parts.filled_in, parts.model_arguments = filled_in, plain(written | filled_in)
    if factor != 1:
        parts.optimizer = scaled(parts.optimizer, factor)
    return parts


def make_model(text, filled_in):
    """The model of a configuration that merge() made. Nothing else of it is looked at: data, optimizer, logger, ...

    Args:
        filled_in: the arguments that the data have given when it was trained
    Raises:
        ValueError: with one sentence
    """
    section = yaml.load(text, Loader)["model"]
    section["init_args"] = (section.get("init_args") or {}) | filled_in
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(L.LightningModule, "model", fail_untyped=False, required=True)
    try:
        config = parser.parse_object({"model": section})
    except ArgumentError as error:
        raise ValueError(one_sentence(error)) from error
    return make("model", config.model, L.LightningModule)


def make(key, config, base):
    """The object of a class that the configuration names."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, key, fail_untyped=False, required=True)
    with its_own_errors(f"--{key} {config.class_path.rpartition('.')[2]}"):
        return parser.instantiate(Namespace({key: config}))[key]


@contextlib.contextmanager
def its_own_errors(name):
    """Run code inside a class that the user has named.

    If only installed packages take part, as when an optimizer refuses a number, their message is the sentence. If code
    of the user's does, its traceback is shown, and one line that says which class it is. A SystemExit passes.

    Raises:
        ValueError, SystemExit: in place of any other exception
    """
    try:
        yield
    except Exception as error:
        while error.__cause__ and "jsonargparse" in files_of(error)[-1]:  # it wraps what it does not understand
            error = error.__cause__
        if not any(is_users_file(file) for file in files_of(error)):
            kind = "" if isinstance(error, (ValueError, ImportError)) else f"{type(error).__name__}: "
            raise ValueError(short_words(f"{name}: {kind}{' '.join(str(error).split())}")) from error
        traceback.print_exception(error)
        sys.exit(f"{name}: the error above comes from its code")


def files_of(error):
    """The files of the code through which an exception has come."""
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def is_users_file(file):
    """Whether code in this file may be the user's: it is not installed, and not what only calls the user's."""
    installed = "-packages" in file or file.startswith((STDLIB, "<"))
    return not installed and not file.endswith(("src/config.py", "src/train.py", "src/models/parameter_groups.py"))


def scale_schedule(config, factor):
    """Multiply the learning rates in the arguments of the schedule, in place, and log what --scale_lr scales."""
    names = ["the learning rates of the optimizer's groups"]
    schedule = config.lr_scheduler or {}
    arguments = schedule.get("init_args") or {}
    for name in list(arguments.keys() if isinstance(arguments, dict) else vars(arguments)):
        value = arguments[name]
        if name == "lr" or name.endswith("_lr") or name == "eta_min":
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                arguments[name] = value * factor
            elif isinstance(value, (list, tuple)):
                arguments[name] = [part * factor for part in value]
            names += [f"--lr_scheduler.{name}"] if arguments[name] != value else []
    log_once(f"--scale_lr {config.scale_lr} multiplies by {factor:g}: {', '.join(names)}")


def scaled(optimizer, factor):
    """The optimizer of the configuration with all learning rates multiplied, also those that groups have of their own.

    Args:
        optimizer: a function of parameters or groups that returns a torch optimizer
    """

    def make_scaled(parameters):
        made = optimizer(parameters)
        if "lr" not in made.defaults:
            sys.exit(f"--scale_lr cannot be used with {type(made).__name__}: it has no argument lr")
        for settings in (made.defaults, *made.param_groups):
            settings["lr"] = settings["lr"] * factor
        return made

    return make_scaled


def global_batch(data, config, processes):
    """How many samples one step of all processes takes.

    Raises:
        ValueError: the class of the data does not say it
    """
    if "batch_size" not in (config.data.get("init_args") or {}):
        raise ValueError(f"--scale_lr needs the batch size, and {type(data).__name__} has no argument batch_size")
    return config.batch_size if isinstance(data, DataModule) else config.batch_size * processes


def fill_in(config, data):
    """Set the arguments of the model that depend on the data and that the user has not set.

    Returns:
        them, {name: value}
    Raises:
        SystemExit: with one sentence, if the data do not say it either
    """
    cls = class_of(config, "model")
    if config.model.get("init_args") is None:
        config.model.init_args = Namespace()
    arguments = config.model.init_args
    filled_in = {}
    for name, attribute in (("shape", "shape"), ("num_classes", "classes")):
        if arguments.get(name) is not None or not (name in arguments or needed(cls, name)):
            continue
        value = getattr(data, attribute, None)
        if value is None and needed(cls, name):
            sys.exit(
                f"--model.{name} is missing: {cls.__name__} needs it, and {type(data).__name__} has no {attribute}"
            )
        arguments[name] = len(value) if value is not None and name == "num_classes" else value
        filled_in[name] = plain(arguments[name])
    return filled_in


KINDS = {
    "<class 'int'>": "a whole number",
    "<class 'float'>": "a number",
    "<class 'bool'>": "true or false",
    "<class 'str'>": "a text",
    "<class 'list'>": "a list, such as [1, 2]",
    "<class 'dict'>": "a dictionary, such as {name: value}",
    "PositiveInt": "a whole number above 0",
    "NonNegativeInt": "a whole number, 0 or more",
    "PositiveFloat": "a number above 0",
}


GIVEN = r"(?:Given value: |Got value: |base 10: |Not of type \w+: (?!invalid))"  # after these stands what was given


def one_sentence(error):
    """jsonargparse tells all that it tried. This is the part that helps."""
    return short_words(plain_sentence(" ".join(str(error).split())))


def plain_sentence(text):
    key, reason = re.fullmatch(r'(?:Parser key "(.*?)": )?(.*)', text).groups()
    unknown = re.search(r"class_path '(?P<path>\S+)': Option '(?P<option>\S+)' is not accepted", reason)
    callable_class = r"Option '(?P<option>\S+)' is not accepted\. Got value: Namespace\(class_path='(?P<path>[^']+)'"
    if unknown := unknown or re.search(callable_class, reason):
        path, option = unknown["path"], unknown["option"]
        name = path.rpartition(".")[2]
        options = list(inspect.signature(imported(path)).parameters)
        near = difflib.get_close_matches(option, options) or options
        return f"--{key}.{option}: {name} has no {option}, but {', '.join(near)}"
    unknown = re.search(r"Expected a dot import path string: (\S+)", reason)
    if unknown and "float" not in reason:
        near = difflib.get_close_matches(unknown[1], KNOWN.get(key, []), cutoff=0.3) or KNOWN.get(key, [])
        known = f": {', '.join(near)}, or a path such as src.models.mine.Mine" if near else ""
        return f"--{key} {unknown[1]}: there is no class of this name. It takes the name of a class{known}"
    if unknown := re.search(r"unrecognized arguments: (--\S+)", reason):
        flags = [action.option_strings[0] for action in make_parser()._actions if action.option_strings]
        near = difflib.get_close_matches(unknown[1].split("=")[0], flags)
        return f"there is no flag {unknown[1]}{': did you mean ' + ' or '.join(near) + '?' if near else ''}"
    if missing := re.search(r"the following arguments are required: ([\w., ]+?)(?: - |$)", reason):
        first, path = missing[1].split(",")[0].strip(), re.findall(r"class_path[ =]'([\w.]+)'", reason)
        needs = f": {path[-1].rpartition('.')[2]} needs it" if path else ""
        return f"--{key}.{first} is missing{needs}" if key else f"--{first} is missing{needs}"
    flag = ".".join([key or "", *re.findall(r'Parser key "([^"]+)": ', reason)])
    inner = reason.rpartition('Parser key "')[2] if flag != key else reason
    kinds = re.findall(r"Expected a (<class '\w+'>|typing\.Literal\[.*?\])|Not of type (\w+):", inner)
    kinds = [first or second for first, second in kinds if first != "<class 'NoneType'>"]
    value = re.search(rf"{GIVEN}'?(.*?)'?(?:\. Got value: | - Expected a | does not |$)", inner)
    if flag and kinds and all(kind in KINDS or kind.startswith("typing.Literal") for kind in kinds):
        words = [KINDS.get(kind) or "one of " + ", ".join(re.findall(r"'([^']*)'", kind)) for kind in kinds]
        given = f" {value[1]}" if value and "Namespace(" not in value[1] and "NestedArg(" not in value[1] else ""
        return f"--{flag}{given} is not {' or '.join(dict.fromkeys(words))}"
    if "Errors: - " in reason:
        reason = reason.rsplit("Errors: - ", 1)[1].split(" - Expected a ")[0].split(" Given value type")[0]
    reason = re.sub(r"^Type typing\..*? expects a function or a callable class: ", "", reason)
    reason = re.sub(r"\. Got value: Namespace\(.*", "", reason)
    reason = re.sub(r'^(?:.*?: )?Parser key "[^"]+": ', "", reason)
    reason = re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", reason)
    return f"--{flag}: {reason}" if key else reason
