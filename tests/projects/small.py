"""Regression with a backbone and a head: for Lightning's callbacks, and for processes that have to agree."""

import time
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset


class Lines(L.LightningDataModule):
    eval_batch_size = 10

    def setup(self, stage=None):
        x = torch.randn(331, 4, generator=torch.Generator().manual_seed(1))
        y = (x**2).sum(dim=1, keepdim=True)
        self.parts = TensorDataset(x[:250], y[:250]), TensorDataset(x[250:], y[250:])

    def train_dataloader(self):
        return DataLoader(self.parts[0], batch_size=10, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.parts[1], batch_size=self.eval_batch_size)


class Single(Lines):
    """One process has a batch more in the validation."""

    eval_batch_size = 1


class Net(L.LightningModule):
    def __init__(self, logs: str = "as usual", late: bool = False, slow: float = 0.0, slow_val: float = 0.0):
        """The network.

        Args:
            logs: as usual, first (the first process alone), differently (each process something else), or in_steps
                (the average of the processes after each batch of the validation)
            late: whether one process comes late to the validation
            slow, slow_val: seconds of each step
        """
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(32, 1))
        self.logs, self.late, self.slow, self.slow_val = logs, late, slow, slow_val

    def training_step(self, batch, index):
        time.sleep(self.slow)
        loss = mse_loss(self.head(self.backbone(batch[0])), batch[1])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_validation_start(self):
        if self.late and self.global_rank == 1:
            time.sleep(2)

    def validation_step(self, batch, index):
        time.sleep(self.slow_val)
        loss = mse_loss(self.head(self.backbone(batch[0])), batch[1])
        if self.logs == "differently":  # each process would decide for itself that nothing gets better
            loss = loss + self.global_step * (-1) ** self.global_rank
        if self.logs != "first" or self.global_rank == 0:
            steps = {"on_step": True, "on_epoch": True, "sync_dist": True} if self.logs == "in_steps" else {}
            self.log("val_loss", loss, **steps)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.01)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class Mark(L.Callback):
    """Says that a validation has begun."""

    def on_validation_start(self, trainer, module):
        if not trainer.sanity_checking:
            Path(trainer.default_root_dir, "validating").touch()
