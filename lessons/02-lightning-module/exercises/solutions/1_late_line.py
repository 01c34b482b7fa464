"""Solution: the validation is a part of the epoch: when it ends, the epoch's training loss is not yet there.

python exercises/solutions/1_late_line.py
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

    def on_train_epoch_end(self):  # runs after the epoch's validation
        metrics = self.trainer.callback_metrics
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
