"""Write checkpoints so that there is always a good one, and find it again."""

import contextlib
import logging
import os
import struct
import zipfile
import zlib
from pathlib import Path

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from src.settings import period, smaller_is_better

log = logging.getLogger(__name__)

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


class Checkpoints(L.Callback):
    """Writes checkpoints/step=<steps>.ckpt in the run's folder every so often and at the end, and best.ckpt.

    Each holds everything that is needed to go on, see exact_resume.py.
    """

    def __init__(self, run_folder, every, keep, monitor):
        self.folder = Path(run_folder) / "checkpoints"
        self.every, self.unit = period(every, "--checkpoint_every")
        self.keep = keep
        self.monitor = monitor
        self.sign = -1 if smaller_is_better(monitor) else 1
        self.best = None
        self.saved_step = None

    def state_dict(self):
        return {"best": self.best}

    def load_state_dict(self, state):
        self.best = state["best"]

    def on_train_start(self, trainer, module):
        self.saved_step = trainer.global_step  # it came from a checkpoint, or there is nothing to save yet
        if trainer.is_global_zero:
            for path in self.folder.glob(".*.partial"):  # of a process that was killed while it wrote
                path.unlink(missing_ok=True)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        # Here everything about the last step is done, also the validation after it and the end of its epoch.
        step = trainer.global_step
        if step == self.saved_step or batch_idx % trainer.accumulate_grad_batches:
            return
        epochs_done = trainer.fit_loop.epoch_progress.current.processed
        if (self.unit == "steps" and step % self.every == 0) or (
            self.unit == "epochs" and batch_idx == 0 and epochs_done % self.every == 0
        ):
            self.save(trainer)

    def on_validation_end(self, trainer, module):
        if self.keep != "best" or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        score = self.sign * monitored(trainer, self.monitor)
        if self.best is None or score > self.best:
            self.best = score
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=False)

    def on_train_epoch_end(self, trainer, module):
        # --max_steps or --max_time may end an epoch in its middle. Now its metrics are not yet begun anew.
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.save(trainer)

    def on_train_end(self, trainer, module):
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.save(trainer)

    def save(self, trainer):
        """All processes call this together."""
        for logger in trainer.loggers:  # what was logged until now must not be lost when the process is killed
            flush(logger)
        step = trainer.global_step
        trainer.save_checkpoint(self.folder / f"step={step:08d}.ckpt", weights_only=False)
        self.saved_step = step
        if self.keep != "all" and not trainer.strategy.checkpoint_io.failed:
            self.remove_old()

    @rank_zero_only
    def remove_old(self):
        for path in by_age(self.folder)[:-2]:  # the last two stay: if the newest is damaged there is the one before
            path.unlink(missing_ok=True)


def monitored(trainer, name):
    """What the last validation reports under this name."""
    if name not in trainer.callback_metrics:
        names = ", ".join(sorted(trainer.callback_metrics))
        raise SystemExit(f"--monitor {name} is not among what the validation reports: {names}")
    return trainer.callback_metrics[name].item()


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
        with open(path, "rb") as file:
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
    for path in reversed(by_age(Path(run_folder) / "checkpoints")):
        if is_complete(path):
            return path
        log.warning(f"{path} is damaged: the checkpoint before it is taken")
    return None


def load_weights(model, path):
    """Give the model the weights of a checkpoint; returns the step at which it was written."""
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(checkpoint["state_dict"])
    return checkpoint["global_step"]


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
