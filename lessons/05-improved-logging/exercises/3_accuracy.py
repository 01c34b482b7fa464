"""The accuracy that this network logs is not the share of images that it gets right. Two mistakes.

python exercises/3_accuracy.py

Repair Watched: val/accuracy is the share of this epoch's images whose class is right.
"""

import warnings

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy


class Watched(L.LightningModule):
    """A stand-in for a network: the images are the logits already."""

    def __init__(self, num_classes=2):
        super().__init__()
        self.val_accuracy = MulticlassAccuracy(num_classes)

    def forward(self, images):
        return images

    def validation_step(self, batch):
        images, labels = batch
        self.val_accuracy.update(self(images), labels)

    def on_validation_epoch_end(self):
        self.log("val/accuracy", self.val_accuracy.compute())


def validate(model, logits, labels):
    """One validation; returns what it logs. logits (N, num_classes), labels int64 (N)."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet)
    loader = DataLoader(TensorDataset(logits, labels), batch_size=32)
    return trainer.validate(model, loader, verbose=False)[0]["val/accuracy"]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    labels = torch.tensor([0] * 95 + [1] * 5)  # the rare class has 5 of 100 images
    model = Watched()
    always_0 = torch.tensor([[1.0, 0.0]]).repeat(100, 1)
    print(f"epoch 1, right are 95 of 100:  {validate(model, always_0, labels):.3f}")
    perfect = torch.nn.functional.one_hot(labels, 2).float()
    print(f"epoch 2, right are 100 of 100: {validate(model, perfect, labels):.3f}")
