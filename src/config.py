"""The configuration of a training: read from files and flags, checked, merged, and made into objects.

    python src/train.py fit --config laptop --config mine.yaml --model.arch cnn --optimizer.lr 1e-3

The files are stacked, the last one wins, and flags win over files. What can be chosen by class path (data, model,
optimizer, lr_scheduler, logger, callbacks) is `class_path:` and `init_args:` in a file; as a flag the name of the class
is enough where this repository, torch or Lightning has it.
"""

import importlib
import pkgutil
from dataclasses import fields
from pathlib import Path
from typing import Literal

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.loggers import Logger

import src.datasets
import src.models
from src.settings import Settings

PRESETS = Path(__file__).parent / "presets"

for package in (src.datasets, src.models):  # so that the classes in them are known by name
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def make_parser():
    parser = ArgumentParser(prog="train.py", exit_on_error=False)
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
    parser.add_argument("--trainer", type=dict[str, bool | int | float | str], default={}, help="more for Lightning's Trainer, such as benchmark")
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
    parser.link_arguments("data.classes", "model.init_args.num_classes", len, apply_on="instantiate")
    return parser


def settings_of(config):
    """The part of a configuration that is Settings."""
    return Settings(**{field.name: config[field.name] for field in fields(Settings)})


def merge(argv) -> str:
    """Flags and the files they name, as one YAML text.

    Raises:
        ValueError: with one sentence that says what is wrong
    """
    parser = make_parser()
    argv = list(argv)
    for number, flag in enumerate(argv[:-1]):
        preset = PRESETS / f"{argv[number + 1]}.yaml"
        if flag == "--config" and preset.is_file():
            argv[number + 1] = str(preset)
    try:
        config = parser.parse_args(argv)
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
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
    return make_parser().instantiate_classes(config)
