"""The configuration of a training: read from files and flags, checked, merged, and made into objects.

    python src/train.py fit --config laptop --config mine.yaml --model.arch cnn --optimizer.lr 1e-3

The files are stacked, the last one wins, and flags win over files. What can be chosen by class path (data, model,
optimizer, lr_scheduler, logger, callbacks) is `class_path:` and `init_args:` in a file; as a flag the name of the class
is enough where this repository, torch or Lightning has it.
"""

import difflib
import importlib
import inspect
import pkgutil
import re
from dataclasses import fields
from typing import Literal

import lightning as L
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_loader
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import Logger

import src.datasets
import src.models
from src.launch.files import PRESETS, Loader
from src.settings import Settings

set_loader("yaml", lambda text: yaml.load(text, Loader))  # a SafeLoader, the one with which run.py reads

KNOWN = {
    "data": [],
    "model": [],
    "optimizer": ["SGD", "Adam", "AdamW", "RMSprop"],
    "lr_scheduler": ["StepLR", "CosineAnnealingLR", "OneCycleLR", "ReduceLROnPlateau"],
    "logger": ["tensorboard", "csv", "mlflow", "wandb"],
    "callbacks": ["EarlyStopping", "StochasticWeightAveraging", "LearningRateMonitor"],
}
for package, key in ((src.datasets, "data"), (src.models, "model")):  # so that the classes in them are known by name
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for name, thing in vars(module).items():
            ours = inspect.isclass(thing) and thing.__module__ == module.__name__
            if ours and issubclass(thing, (L.LightningDataModule, L.LightningModule)):
                KNOWN[key].append(name)


def make_parser():
    parser = ArgumentParser(prog="train.py", exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="a YAML file, or the name of one in src/presets")
    parser.add_argument("--job", type=dict | None, help="what the job asked Slurm for: run.py notes it here")
    parser.add_argument("--run", type=str | None, help="validate, test, predict: the run's folder")
    parser.add_argument("--ckpt", type=str, default="last", help="validate, test, predict: last, best, or a file")
    parser.add_class_arguments(Settings, None)
    parser.add_subclass_arguments(L.LightningDataModule, "data")
    parser.add_subclass_arguments(L.LightningModule, "model")
    parser.add_argument("--optimizer", type=OptimizerCallable)
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
            "data": {"class_path": "src.datasets.mnist.MNIST"},
            "model": {"class_path": "src.models.classifier.Classifier"},
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3, "fused": True}},
            "logger": "tensorboard",
        }
    )
    for name in ("batch_size", "num_workers", "seed", "data_dir"):
        parser.link_arguments(name, f"data.init_args.{name}")
    # What the network has to know about the data, it is told when both are made.
    parser.link_arguments("data.shape", "model.init_args.shape", apply_on="instantiate")
    parser.link_arguments("data.classes", "model.init_args.num_classes", count, apply_on="instantiate")
    return parser


def count(classes):
    """How many classes the data have; None if they have none, as where numbers are predicted."""
    return None if classes is None else len(classes)


def settings_of(config):
    """The part of a configuration that is Settings."""
    return Settings(**{field.name: config[field.name] for field in fields(Settings)})


def merge(argv) -> str:
    """Flags and the files they name, as one YAML text.

    Raises:
        ValueError: with one sentence that says what is wrong
    """
    parser = make_parser()
    files, flags, words = [], [], iter(argv)
    for word in words:
        flag, _, value = word.partition("=")
        if flag == "--config":
            value = value or next(words, "")
            preset = PRESETS / f"{value}.yaml"
            files += ["--config", str(preset) if preset.is_file() else value]
        else:
            flags.append(word)
    try:
        config = parser.parse_args([*files, *flags])  # what comes last wins
    except ArgumentError as error:
        raise ValueError(one_sentence(error)) from error
    settings_of(config)  # checks what goes beyond types
    config.pop("config", None)
    return parser.dump(config)


def read(text) -> Namespace:
    """A text that merge() made, as a namespace."""
    return make_parser().parse_string(text)


def instantiate(config):
    """The objects that the configuration describes, under the same names: data, model, optimizer, ..."""
    if config.scale_lr:
        config.optimizer.init_args.lr *= config.batch_size / config.scale_lr
    if config.gradient_clip and config.precision != "32" and config.optimizer.get("init_args.fused"):
        config.optimizer.init_args.fused = False  # in mixed precision Lightning cannot clip for a fused optimizer
    return make_parser().instantiate(config)


def one_sentence(error):
    """jsonargparse tells all that it tried. This is the part that helps."""
    text = " ".join(str(error).split())
    key, reason = re.fullmatch(r'(?:Parser key "(.*?)": )?(.*)', text).groups()
    unknown = re.search(r"class_path '(?P<path>\S+)': Option '(?P<option>\S+)' is not accepted", reason)
    callable_class = r"Option '(?P<option>\S+)' is not accepted\. Got value: Namespace\(class_path='(?P<path>[^']+)'"
    if unknown := unknown or re.search(callable_class, reason):
        path, option = unknown["path"], unknown["option"]
        package, name = path.rsplit(".", 1)
        options = list(inspect.signature(getattr(importlib.import_module(package), name)).parameters)
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
    if "Errors: - " in reason:
        reason = reason.rsplit("Errors: - ", 1)[1].split(" - Expected a ")[0].split(" Given value type")[0]
    return f"--{key}: {reason}" if key else reason
