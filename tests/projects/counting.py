"""A module and a callback that count and collect in plain attributes, as many people write them."""

import random
import time

import lightning as L
import torch
from small import Lines, Net
from torch import nn
from torch.nn.functional import mse_loss


class Curriculum(Lines):
    """The data become noisier in each epoch."""

    noise = 0.0

    def test_dataloader(self):
        return self.val_dataloader()

    def on_after_batch_transfer(self, batch, index):
        x, y = batch
        return (x + self.noise * torch.randn_like(x), y) if self.trainer.training else batch


class Meter:
    """Counts outside the module."""

    def __init__(self):
        self.sum, self.count = 0.0, 0

    def add(self, value):
        self.sum, self.count = self.sum + value, self.count + 1
        return self.sum / self.count


class Memory(nn.Module):
    """A ring of the last losses, whose place is an attribute."""

    def __init__(self):
        super().__init__()
        self.register_buffer("values", torch.ones(7))
        self.place = 0

    def forward(self, value):
        self.values[self.place] = value
        self.place = (self.place + 1) % 7
        return self.values.mean()


class Counting(Net):
    def __init__(self, slow: float = 0.0, slow_val: float = 0.0):
        super().__init__(slow=slow, slow_val=slow_val)
        self.seen, self.mean_loss = 0, 1.0
        self.meter, self.memory = Meter(), Memory()
        self.val_losses = []
        self.register_buffer("temperature", torch.tensor(1.0))

    def on_train_epoch_start(self):
        self.losses = []
        self.temperature *= 0.9
        self.weight = random.random() + 0.5  # of this epoch
        self.trainer.datamodule.noise = 0.1 * self.current_epoch

    def training_step(self, batch, index):
        time.sleep(self.slow)
        loss = mse_loss(self.head(self.backbone(batch[0])) * self.temperature, batch[1])
        self.seen += len(batch[0])
        self.mean_loss = 0.9 * self.mean_loss + 0.1 * loss.item()
        self.losses.append(loss.detach())
        return loss * self.weight / self.mean_loss + self.meter.add(loss.item()) * loss / self.memory(loss.detach())

    def on_train_epoch_end(self):
        self.log("seen", float(self.seen))
        self.log("train_loss", torch.stack(self.losses).mean(), sync_dist=True)

    def validation_step(self, batch, index):
        time.sleep(self.slow_val)
        self.val_losses.append(mse_loss(self.head(self.backbone(batch[0])), batch[1]))

    def on_validation_epoch_end(self):
        self.log("val_loss", torch.stack(self.val_losses).mean(), sync_dist=True)
        self.val_losses.clear()

    def test_step(self, batch, index):
        self.log("test_loss", mse_loss(self.head(self.backbone(batch[0])), batch[1]) / self.mean_loss)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Slower(L.Callback):
    """Lowers the learning rate each 30 batches, and at the start of each epoch."""

    def __init__(self):
        self.batches = 0

    def on_train_epoch_start(self, trainer, module):
        trainer.optimizers[0].param_groups[0]["lr"] *= 0.9

    def on_train_batch_end(self, trainer, module, *_):
        self.batches += 1
        if self.batches % 30 == 0:
            trainer.optimizers[0].param_groups[0]["lr"] *= 0.5
