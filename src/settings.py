"""How a training runs: the flags that do not depend on the network or the data.

torch is not imported here, so that run.py can check these flags at once.
"""

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

MONITORS = ["val/accuracy", "val_accuracy", "val_acc", "val/loss", "val_loss"]  # where --monitor names none


LARGEST = 2**31 - 1  # of a number


@dataclass
class Settings:
    """How the training runs.

    Args:
        seed: decides everything that is random: 0 to 4294967295
        batch_size: images in a step, of all processes together
        num_workers: processes that load data, for each training process
        data_dir: where the data lie; default: data/ beside run.py
        max_epochs: how often all training images are seen
        max_steps: end after so many steps, if that is earlier
        max_time: end after HH:MM:SS or D-HH:MM:SS of training, if that is earlier
        precision: mixed is 16 bits where that is safe, 32 elsewhere
        accelerator: gpu, cpu, or what there is
        threads: of each process on a CPU; default: the CPUs of the task less its workers
        strategy: ddp: each process holds the whole network; fsdp: a part of it, for networks too large for one GPU;
            ddp_find_unused_parameters_true: ddp for networks of which a step does not use all weights
        sync_batchnorm: BatchNorm over the batch of all processes; for GPUs
        accumulate: add up the gradients of so many batches before a step
        gradient_clip: scale gradients down to this norm
        scale_lr: the batch size for which the learning rate is meant; it is scaled to --batch_size
        checkpoint_every: 500 for steps, 2epochs for epochs; also at the end, and before a job is stopped
        validate_every: 100 for steps, 1epoch for epochs
        keep: the best checkpoint and the last two, the last two, or all
        monitor: the metric that decides which is the best; the largest, unless its name holds loss or error; default:
            the first of val/accuracy, val_accuracy, val_acc, val/loss and val_loss
        init_from: begin with the weights of this run's folder or of this checkpoint
        fast_dev_run: one batch of training, validation and test; nothing is written
        smoke: one batch of training and one of validation, and a checkpoint
        overfit_batches: train on the same few batches again and again: they must be learned by heart
        limit_train_batches: only so many in an epoch
        limit_val_batches: only so many in a validation
        stuck_after: seconds in which a run of several processes makes no progress, after which it ends and is requeued;
            0: never
        profile: measure where the time goes; the report lies in the run's folder
    """

    seed: NonNegativeInt = 1
    batch_size: PositiveInt = 64
    num_workers: NonNegativeInt = 0
    data_dir: str | None = None
    max_epochs: PositiveInt = 10
    max_steps: PositiveInt | None = None
    max_time: str | None = None
    precision: Literal["32", "16-mixed", "bf16-mixed"] = "32"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    threads: PositiveInt | None = None
    strategy: Literal["ddp", "ddp_find_unused_parameters_true", "fsdp"] = "ddp"
    sync_batchnorm: bool = False
    accumulate: PositiveInt = 1
    gradient_clip: PositiveFloat | None = None
    scale_lr: PositiveInt | None = None
    checkpoint_every: int | str = "1epoch"
    validate_every: int | str = "1epoch"
    keep: Literal["best", "last", "all"] = "best"
    monitor: str | None = None
    init_from: str | None = None
    fast_dev_run: bool = False
    smoke: bool = False
    overfit_batches: NonNegativeInt = 0
    limit_train_batches: PositiveInt | None = None
    limit_val_batches: PositiveInt | None = None
    stuck_after: NonNegativeInt = 600
    profile: Literal["simple", "advanced", "pytorch"] | None = None

    def __post_init__(self):
        for name, value in vars(self).items():
            if name != "seed" and isinstance(value, int) and value > LARGEST:
                raise ValueError(f"--{name} {shortened(value)} is too large: at most {LARGEST}")
        if self.threads and self.threads > 1024:
            raise ValueError(f"--threads {self.threads} is more than a node has: at most 1024")
        if self.seed >= 2**32:
            raise ValueError(f"--seed {shortened(self.seed)} is too large: seeds are 0 to {2**32 - 1}")
        if self.gradient_clip is not None and not math.isfinite(self.gradient_clip):
            raise ValueError(f"--gradient_clip {self.gradient_clip} is not a finite number: omit it to clip nothing")
        for name in ("data_dir", "init_from"):
            if (text := getattr(self, name)) is not None:
                path_of(text, f"--{name}")
        period(self.checkpoint_every, "--checkpoint_every")
        period(self.validate_every, "--validate_every")
        if self.max_time is not None:
            seconds(self.max_time, "--max_time")
        if self.strategy == "fsdp" and self.precision == "16-mixed":
            raise ValueError("--strategy fsdp goes with --precision 32 or bf16-mixed, not with 16-mixed")
        if self.overfit_batches and (self.limit_train_batches or self.limit_val_batches):
            raise ValueError(
                "--overfit_batches sets both limits: leave out --limit_train_batches and --limit_val_batches"
            )


def shortened(value):
    """The value as a text of at most 150 characters, without control characters: it may be very long."""
    try:
        text = str(value)
    except ValueError:  # an integer of more than 4300 digits
        text = "a number of thousands of digits"
    text = printable(text)
    return text if len(text) <= 150 else f"{text[:75]}...{text[-40:]} ({len(text)} characters)"


def printable(text):
    """The text with ? for each control character: in a terminal they would be commands."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def path_of(text, what):
    """An absolute path.

    Args:
        what: the flag or the file that names the path, for the sentence
    Raises:
        ValueError: no file can have this path
    """
    text = str(text)
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
        return path.resolve()
    except RuntimeError:
        reason = "there is no such user"
    except OSError as error:
        reason = error.strerror
    except ValueError:  # a NUL character, or a surrogate
        reason = "it holds characters that no path can hold"
    raise ValueError(f"{what} {shortened(text)} is not a usable path: {reason}")


def period(text, flag):
    """A number of steps or epochs: 500 and "500" are (500, "steps"), "2epochs" is (2, "epochs").

    Raises:
        ValueError: it is neither
    """
    match = re.fullmatch(r"([1-9][0-9]{0,17}) ?(step|epoch)?s?", shortened(text))
    if not match:
        text = shortened(text)
        raise ValueError(f"{flag} {text} is neither a number of steps, such as 500, nor of epochs, such as 1epoch")
    return int(match[1]), "epochs" if match[2] == "epoch" else "steps"


def seconds(text, flag):
    """HH:MM:SS or D-HH:MM:SS in seconds. A single number is refused: Slurm takes it for minutes, few people do.

    Raises:
        ValueError: it is neither
    """
    total = clock_seconds(text)
    if total is None:
        raise ValueError(f"{flag} {shortened(text)} is not HH:MM:SS or D-HH:MM:SS, such as 00:10:00")
    return total


def smaller_is_better(monitor):
    """Whether less of the metric of this name is better."""
    return "loss" in monitor or "error" in monitor


def clock_seconds(text):
    """HH:MM:SS or D-HH:MM:SS in seconds; None if it is neither, or no time at all."""
    match = re.fullmatch(r"(?:([0-9]{1,6})-)?([0-9]{1,2}):([0-5][0-9]):([0-5][0-9])", text)
    if not match or not re.search("[1-9]", text):
        return None
    days, hours, minutes, rest = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def indivisible(batch_size, processes):
    """One sentence with the nearest sizes if a batch cannot be divided among these processes; else None."""
    if batch_size % processes == 0:
        return None
    below = batch_size // processes * processes
    nearest = f"{below} or {below + processes}" if below else processes
    return f"--batch_size {batch_size} cannot be divided among {processes} processes: the nearest are {nearest}"
