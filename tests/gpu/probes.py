"""A network and data with which the tests look into a training."""

from src.datasets.mnist import MNIST
from src.models.classifier import Classifier


class Times(Classifier):
    """In one step the loss is multiplied by a number."""

    def __init__(self, *args, step: int, number: float, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.step, self.number = step, number

    def training_step(self, batch):
        loss = super().training_step(batch)
        return loss * self.number if self.trainer.global_step + 1 == self.step else loss


class Transfers(MNIST):
    """Prints where each kind of batch is before it is copied to the network's device, and after it."""

    def transfer_batch_to_device(self, batch, device, dataloader_idx):
        moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        if self.trainer.training:
            print(
                f"batch: {batch[0].device.type}, pinned {batch[0].is_pinned()}, then {moved[0].device.type}", flush=True
            )
        return moved
