"""The training loss in each of these lines is that of the epoch before.

python exercises/1_late_line.py

Repair Reporter, so that each line has the losses of its own epoch.
"""

import warnings

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Reporter(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = nn.Linear(20, 10)
        self.lines = []  # for each epoch: its number, training loss, validation loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(labels))
        return loss

    def validation_step(self, batch):
        images, labels = batch
        loss = nn.functional.cross_entropy(self.network(images), labels)
        self.log("val/loss", loss, batch_size=len(labels))

    def on_validation_epoch_end(self):
        metrics = self.trainer.callback_metrics
        if "train/loss" in metrics:
            self.lines.append((self.current_epoch + 1, metrics["train/loss"].item(), metrics["val/loss"].item()))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    L.seed_everything(0)
    loader = DataLoader(TensorDataset(torch.randn(64, 20), torch.randint(10, (64,))), batch_size=16)
    model = Reporter()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    L.Trainer(accelerator="cpu", max_epochs=3, enable_checkpointing=False, **quiet).fit(model, loader, loader)
    for epoch, train_loss, val_loss in model.lines:
        print(f"epoch: {epoch}/3    training loss: {train_loss:.4f}    validation loss: {val_loss:.4f}")
