"""End a training after some time, when a step is done: not while the gradients of several batches are added up."""

from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.utils.processes import largest


class TimeLimit(Timer):
    """Lightning's Timer; what is left of the time is in the checkpoint, so a training that goes on has the rest.

    Lightning's processes would tell each other by way of the GPUs whether the time is up, and so wait for them in
    every step. These do so by way of the CPUs.
    """

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.time_remaining() is None or (batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        [over] = largest(int(self.time_remaining() <= 0))
        if over:
            trainer.should_stop = True
            rank_zero_info(f"Time limit reached: stopping at step {trainer.global_step}")
