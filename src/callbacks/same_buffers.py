"""BatchNorm's running means and deviations: those of the first process for all, before they are used or saved.

DDP can do so in every step, and it would in every step of a validation, too. There the processes may have different
numbers of batches, because no image counts twice, and one would wait for ever.
"""

import lightning as L
import torch.distributed as dist


class SameBuffers(L.Callback):
    def on_validation_start(self, trainer, module):
        share(trainer)

    def on_train_end(self, trainer, module):
        share(trainer)


def share(trainer):
    if dist.is_initialized():
        for buffer in trainer.lightning_module.buffers():
            dist.broadcast(buffer, src=0)
