"""End a training after some time, when a step is done: not while the gradients of several batches are added up."""

from lightning.pytorch.callbacks import Timer


class TimeLimit(Timer):
    """Lightning's Timer; what is left of the time is in the checkpoint, so a training that goes on has the rest."""

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer)
