"""Write checkpoints so that there is always a good one, and find it again."""

import contextlib
import logging
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.nn.parallel import DistributedDataParallel

from src.callbacks.agreement import send_buffers
from src.launch.files import open_regular
from src.launch.progress import NONE_YET, read_note, write_note
from src.settings import MONITORS, period, smaller_is_better
from src.utils.plain import plain, unreadable
from src.utils.processes import gather, largest
from src.utils.seeds import content_of, weights_checksum

log = logging.getLogger(__name__)
log_once = rank_zero_only(log.info)

# A checkpoint is a zip archive. Its last 22 bytes begin so, and end with the length of a comment (2) that follows.
SIGNATURE, END = b"PK\5\6", 22
COMMENT = 8  # bytes: the checksum of the archive without a comment


class Summed:
    """A file that is written, with the checksum (CRC-32) of all that was."""

    def __init__(self, file):
        self.file = file
        self.checksum = 0

    def write(self, data):
        self.checksum = zlib.crc32(data, self.checksum)
        return self.file.write(data)

    def flush(self):
        self.file.flush()


class AtomicCheckpointIO(TorchCheckpointIO):
    """A file has its name only when it is complete and on the disk. A disk that is full does not end the training."""

    def __init__(self):
        super().__init__()
        self.failed = False  # the last time

    def save_checkpoint(self, checkpoint, path, storage_options=None):
        path = Path(path)
        make_readable(checkpoint)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                summed = Summed(file)
                torch.save(checkpoint, summed)
                file.seek(-2, os.SEEK_END)
                file.write(struct.pack("<H", COMMENT) + b"%08x" % summed.checksum)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            self.failed = False
        except (OSError, RuntimeError) as error:
            # torch's writer makes a RuntimeError of an OSError, and of some mistakes
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            log.error(f"{path} could not be written ({reason.strerror}): the checkpoint before it stays the newest")
            self.failed = True
            with contextlib.suppress(OSError):  # there may be no file, and nothing may be removed from a read-only disk
                partial.unlink()


def make_readable(checkpoint):
    """Replace the values from save_hyperparameters() with plain values.

    Raises:
        SystemExit: something else in the checkpoint cannot be read again
    """
    for key in ("hyper_parameters", "datamodule_hyper_parameters"):
        if key in checkpoint:
            checkpoint[key] = plain(checkpoint[key])
    if reason := unreadable(checkpoint, "checkpoint"):
        raise SystemExit(
            f"{reason}, which torch.load(weights_only=True) refuses: save tensors, numbers, strings, lists, dicts"
        )


class SameFolder(L.Callback):
    """Ends a run whose folder was renamed or removed, before anything is written to a new folder of its old name."""

    def __init__(self, run_folder):
        self.folder = Path(run_folder)
        self.known = None

    def setup(self, trainer, module, stage):
        if stage == "fit" and trainer.is_global_zero:
            self.known = self.found()

    def found(self):
        """The identity of the folder, by whatever name; None if there is no such folder."""
        with contextlib.suppress(FileNotFoundError):
            state = self.folder.stat()
            return state.st_dev, state.st_ino
        return None

    def gone(self):
        """Whether it is another folder now. The first process knows."""
        return self.known is not None and self.found() != self.known

    def check(self, trainer):
        """All processes call this together."""
        if trainer.state.fn == "fit" and largest(int(self.gone()))[0]:
            self.stop(trainer)

    def stop(self, trainer):
        trainer.loggers = [DummyLogger()]  # what others have not yet written must not be written now
        raise SystemExit(
            f"the run's folder {self.folder} was renamed or removed while the run was at step {trainer.global_step}, "
            "so it stops. If the folder is renamed, resume it under its new name: python run.py resume PATH"
        )

    def on_validation_end(self, trainer, module):
        self.check(trainer)

    def on_train_epoch_end(self, trainer, module):
        self.check(trainer)

    def on_train_end(self, trainer, module):
        self.check(trainer)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        self.check(trainer)


class Checkpoints(L.Callback):
    """Writes checkpoints/step=<steps>.ckpt in the run's folder every so often and at the end, and best.ckpt.

    Each holds everything that is needed to go on, see exact_resume.py.
    """

    def __init__(self, run_folder, every, keep, monitor):
        self.folder = Path(run_folder) / "checkpoints"
        self.same_folder = SameFolder(run_folder)  # a callback of its own, because it comes before the pages
        self.every, self.unit = period(every, "--checkpoint_every")
        self.keep = keep
        self.monitor = monitor
        self.best = None  # the score, with its sign changed if the smallest is the best
        self.best_of = None  # the name of its metric
        self.saved_step = None
        self.seen_step = 0

    def setup(self, trainer, module, stage):
        for callback in trainer.checkpoint_callbacks:  # the user's, which are for other purposes
            callback.dirpath = callback.dirpath or str(self.folder.with_name("model_checkpoints"))

    def state_dict(self):
        return {"best": self.best, "best_of": self.best_of}

    def load_state_dict(self, state):
        self.best, self.best_of = state["best"], state.get("best_of")  # older checkpoints lack the name

    def on_train_start(self, trainer, module):
        # It came from a checkpoint, or there is nothing to save yet.
        self.seen_step = self.saved_step = trainer.global_step
        if trainer.is_global_zero:
            for path in self.folder.glob(".*.partial"):  # of a process that was killed while it wrote
                path.unlink(missing_ok=True)
        if not isinstance(trainer.strategy, ModelParallelStrategy):  # it would collect all weights
            make_readable(trainer._checkpoint_connector.dump_checkpoint(weights_only=False))  # now, not after a kill

    # When these two hooks run, the last step is complete, including its validation and the end of its epoch.

    def on_train_epoch_start(self, trainer, module):  # the first of all: what the others do here is still to be done
        self.save_if_due(trainer, new_epoch=True)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self.save_if_due(trainer, new_epoch=False)

    def save_if_due(self, trainer, new_epoch):
        step = trainer.global_step
        if step == self.saved_step:
            return
        epochs_done = trainer.fit_loop.epoch_progress.current.processed
        # With several optimizers a batch is several steps.
        passed = step // self.every > self.seen_step // self.every
        self.seen_step = step
        if (self.unit == "steps" and passed) or (self.unit == "epochs" and new_epoch and epochs_done % self.every == 0):
            self.save(trainer)

    def on_validation_end(self, trainer, module):
        if self.keep != "best" or trainer.state.fn != "fit":
            return
        if trainer.sanity_checking:
            self.check_monitor(trainer)
            return
        name = monitored(trainer, self.monitor)
        if name is None:
            return
        value = trainer.callback_metrics[name].item()
        score = value * (-1 if smaller_is_better(name) else 1)
        [better] = largest(int(self.is_better(score, name) and trainer.is_global_zero))  # the first process decides
        if better:
            self.best, self.best_of = score, name
            self.write(trainer, "best.ckpt")
        elif not math.isfinite(value):
            log_once(f"{name} is {value} at step {trainer.global_step}: best.ckpt stays as it is")

    def is_better(self, score, name):
        """Whether the score is better than the best until now. NaN and infinity are never the best."""
        if not math.isfinite(score):
            return False
        comparable = self.best is not None and math.isfinite(self.best) and self.best_of in (None, name)
        return not comparable or score > self.best

    def on_train_epoch_end(self, trainer, module):
        # --max_steps or --max_time may end an epoch in its middle. Now its metrics are not yet begun anew.
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.save(trainer)

    def on_train_end(self, trainer, module):
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.save(trainer)

    def check_monitor(self, trainer):
        """Before the training, from what the first batches of the validation have logged, if anything."""
        if trainer.callback_metrics and monitored(trainer, self.monitor) is None:
            log_once(
                "no best.ckpt is saved, only the last checkpoints: no metric decides which is the best; "
                f"set --monitor to one of {names_of(trainer)}"
            )

    def save(self, trainer):
        """All processes call this together."""
        self.same_folder.check(trainer)
        for logger in trainer.loggers:  # what was logged until now must not be lost when the process is killed
            flush(logger)
        step = trainer.global_step
        self.write(trainer, f"step={step:08d}.ckpt")
        self.saved_step = step
        if self.keep != "all" and not trainer.strategy.checkpoint_io.failed:
            self.remove_old()

    def write(self, trainer, name):
        """All processes call this together."""
        trainer.save_checkpoint(self.folder / name, weights_only=False)
        if trainer.is_global_zero and not trainer.strategy.checkpoint_io.failed:
            step = f" of step={trainer.global_step:08d}" if name == "best.ckpt" else ""
            write_note(self.folder.parent, f"{name}{step}")

    @rank_zero_only
    def remove_old(self):
        for path in by_age(self.folder)[:-2]:  # the last two stay: if the newest is damaged there is the one before
            path.unlink(missing_ok=True)


class FinalWeights(L.Callback):
    """Comes last: the training has ended for the other callbacks, and some of them may have changed the weights."""

    def __init__(self, checkpoints):
        self.checkpoints = checkpoints  # the callback that saves

    def on_train_end(self, trainer, module):
        model = trainer.strategy.model
        if isinstance(trainer.strategy, ModelParallelStrategy):  # each process has a part
            return
        if isinstance(model, DistributedDataParallel):
            send_buffers(model)
            checksums = gather(weights_checksum(module))
            if len(set(checksums)) > 1:
                raise SystemExit(f"the processes have ended with different weights: {', '.join(checksums)}")
        if self.checkpoints in trainer.callbacks:
            [changed] = largest(int(trainer.is_global_zero and differs(module, self.checkpoints.folder.parent)))
            if changed:
                self.checkpoints.save(trainer)


def differs(module, run_folder):
    """Whether the weights differ from those in the newest checkpoint; False if there is none."""
    path = newest(run_folder)
    if path is None:
        return False
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    now = module.state_dict()
    return any(name not in saved or content_of(value) != content_of(saved[name]) for name, value in now.items())


def monitored(trainer, name):
    """The name of the metric that decides which checkpoint is the best.

    Args:
        name: what was asked for; None: the first of MONITORS that the validation reports, or none
    """
    if name is None:
        return next((name for name in MONITORS if name in trainer.callback_metrics), None)
    if name not in trainer.callback_metrics:
        raise SystemExit(f"--monitor {name} is not among what the validation reports: {names_of(trainer)}")
    return name


def names_of(trainer):
    return ", ".join(sorted(trainer.callback_metrics))


@rank_zero_only
def flush(logger):
    logger.save()
    if hasattr(logger.experiment, "flush"):
        logger.experiment.flush()


def by_age(folder):
    """The checkpoints in the folder, the oldest first."""
    return sorted(Path(folder).glob("step=*.ckpt"))


def is_complete(path):
    """Whether a checkpoint can be read as it was written."""
    try:
        with open_regular(path) as file:  # opening a pipe would block forever
            left = file.seek(-END - COMMENT, os.SEEK_END) + END - 2
            end = file.read()
            if end.startswith(SIGNATURE) and end[END - 2 :].startswith(struct.pack("<H", COMMENT)):
                file.seek(0)
                checksum = 0
                while left:
                    part = file.read(min(left, 2**20))
                    checksum = zlib.crc32(part, checksum)
                    left -= len(part)
                return end[END:] == b"%08x" % zlib.crc32(bytes(2), checksum)
        # Not written here, or damaged. The parts of the archive have checksums of their own, what is between has none.
        if not end[COMMENT:].startswith(SIGNATURE):
            return False
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return False
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return True
    except Exception:  # a wrong byte may stand for another compression, a password, ...: each has an error of its own
        return False


def newest(run_folder):
    """The newest checkpoint of a run that is complete; None if it has none."""
    paths = by_age(Path(run_folder) / "checkpoints")
    while paths:
        path = paths.pop()
        if is_complete(path):
            return path
        log.warning(f"{path} is damaged{': the checkpoint before it is taken' if paths else ''}")
    return None


def to_resume(run_folder):
    """The checkpoint from which a training in this folder continues; None if it starts at its beginning.

    A run that was killed before its first checkpoint starts again. If its checkpoints have disappeared or are damaged,
    it does not, because it would overwrite what is left of the run.

    Raises:
        FileNotFoundError: with one sentence
    """
    run_folder = Path(run_folder)
    if path := newest(run_folder):
        return path
    best = run_folder / "checkpoints/best.ckpt"
    if best.exists() and is_complete(best):
        log.warning(f"{run_folder} has no complete checkpoint but {best.name}: the training continues from that one")
        return best
    known = read_note(run_folder)
    damaged = [path.name for path in (run_folder / "checkpoints").glob("*.ckpt")]
    curves = [*run_folder.glob("events.out.tfevents.*"), *run_folder.glob("metrics.csv")]
    # Without a note: of a version that wrote none, or removed with the rest.
    if not damaged and (known == NONE_YET or (known is None and not curves)):
        return None
    missing = f"{known} is missing" if known else "it has curves, but no checkpoint"
    why = f"{max(damaged)} is damaged, and there is no other checkpoint" if damaged else missing
    raise FileNotFoundError(
        f"the run {run_folder} cannot be resumed: {why}. A start at step 0 would overwrite the run: "
        f"start a new one with python run.py repeat {run_folder.name}, or from other weights with --init_from"
    )


def load_weights(model, path):
    """Give the model the weights of a checkpoint, or of a file that holds a state_dict alone."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    if "state_dict" in checkpoint:
        model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint.get("state_dict", checkpoint), strict=model.strict_loading)


def find(run, which="last"):
    """A checkpoint of a run by name.

    Args:
        run: the run's folder
        which: last, best, or the path of a file
    Raises:
        FileNotFoundError: with one sentence that says what is missing
    """
    named = Path(run) / "checkpoints/best.ckpt" if which == "best" else Path(which)
    path = newest(run) if which == "last" else named
    if path is None or not path.is_file():
        raise FileNotFoundError(
            f"there is no checkpoint {'' if path is None else path} of the run {run}".replace("  ", " ")
        )
    if not is_complete(path):
        raise FileNotFoundError(f"the checkpoint {path} is damaged")
    return path
