"""A network that says by which angle an image was turned."""

import lightning as L
from torch import nn
from torch.nn import functional as F
from torchmetrics import MeanAbsoluteError, MeanMetric


class AngleFinder(L.LightningModule):
    def __init__(self, shape: list[int], width: int = 16) -> None:
        """The network.

        Args:
            shape: of an image: channels, height, width; the data say it
            width: channels of the first layer
        """
        super().__init__()
        channels, height, width_of_image = shape
        self.network = nn.Sequential(
            nn.Conv2d(channels, width, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * width * (height // 4) * (width_of_image // 4), 64),
            nn.ReLU(),
            nn.Linear(64, 1),
        )
        self.train_loss = MeanMetric()
        self.val_error = MeanAbsoluteError()
        self.test_error = MeanAbsoluteError()

    def forward(self, images):
        """Angles in degrees (N)."""
        return 45 * self.network(images).squeeze(dim=1)

    def training_step(self, batch):
        images, angles = batch
        loss = F.mse_loss(self(images) / 45, angles / 45)
        self.train_loss.update(loss.detach(), weight=len(angles))
        return loss

    def validation_step(self, batch):
        images, angles = batch
        self.val_error.update(self(images), angles)

    def test_step(self, batch):
        images, angles = batch
        self.test_error.update(self(images), angles)

    def predict_step(self, batch):
        images, _ = batch
        return {"angle": self(images)}

    # The metrics are logged as objects, not as numbers: Lightning adds up what all processes have counted.

    def on_validation_epoch_end(self):
        self.log("val/error", self.val_error)

    def on_test_epoch_end(self):
        self.log("test/error", self.test_error)

    def on_train_epoch_end(self):
        self.log("train/loss", self.train_loss)
