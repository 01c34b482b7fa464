"""A line in the log after each epoch, with what the module has logged. `run.py list` shows the last one."""

import logging

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_only

log = logging.getLogger(__name__)


class EpochLine(L.Callback):
    """For modules that write no such line themselves."""

    def __init__(self):
        self.ended = None  # the number of an epoch that is over and whose line is still to be written

    def on_train_epoch_end(self, trainer, module):
        self.ended = trainer.current_epoch + 1

    # Not in on_train_epoch_end(): the module's own comes later, and may log more.

    def on_train_epoch_start(self, trainer, module):
        self.write(trainer)

    def on_train_end(self, trainer, module):
        self.write(trainer)

    @rank_zero_only
    def write(self, trainer):
        if self.ended is None:
            return
        log.info(f"epoch: {self.ended:02d}/{trainer.max_epochs:02d}{in_words(trainer.callback_metrics)}")
        self.ended = None


def in_words(metrics):
    """The averages of an epoch. Lightning keeps them as name_epoch, too, if there is a name_step."""
    names = [name for name in metrics if not name.endswith("_step")]
    names = [name for name in names if not (name.endswith("_epoch") and name.removesuffix("_epoch") in names)]
    names.sort(key=lambda name: not name.startswith("train"))
    return "".join(f"    {name.replace('/', ' ')}: {metrics[name]:.4f}" for name in names)
