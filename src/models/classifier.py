"""The network with all that training it needs."""

import logging
import os
import shutil
import sys
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torchmetrics import CatMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from src.callbacks.tensorboard import TensorBoardPages
from src.datasets.images import ImageDataModule
from src.models.networks import add_dropout, make_network, normalisation, without_weights
from src.utils.mean import Mean

log = logging.getLogger(__name__)
log_once = rank_zero_only(log.info)  # what is the same in all processes of the job: one of them says it


def evaluation_metrics(stage, num_classes):
    """Four numbers about an epoch. In a macro average each class counts the same, however many images it has."""
    return MetricCollection(
        {
            # micro: each image counts the same (not the default)
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "precision": MulticlassPrecision(num_classes, average="macro"),
            "recall": MulticlassRecall(num_classes, average="macro"),
            "f1": MulticlassF1Score(num_classes, average="macro"),
        },
        prefix=f"{stage}/",
    )


class Classifier(L.LightningModule):
    """The network with all that training it needs: the loss, the optimizer, and what to do with a batch."""

    writes_epoch_line = True
    reports = [f"val/{name}" for name in ("loss", "accuracy", "precision", "recall", "f1")]
    reports += ["train/loss", "train/accuracy", "train/lr"]  # the metrics that --monitor and callbacks may look at

    def __init__(
        self,
        shape: list[int],
        num_classes: int,
        arch: str = "mlp",
        stem: Literal["imagenet", "cifar"] = "imagenet",
        pretrained: bool = False,
        dropout: float = 0.0,
        criterion: Literal["CrossEntropyLoss", "MultiMarginLoss"] = "CrossEntropyLoss",
        label_smoothing: float = 0.0,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        """The network.

        Args:
            shape: of an image: channels, height, width; the data say it
            num_classes: the data say it
            arch: mlp, mlp_wide, cnn, or a classifier of torchvision, such as resnet18
            stem: how a ResNet begins; cifar: without making small images smaller still
            pretrained: begin with torchvision's weights
            dropout: share of the last layer's inputs that is left out in training
            criterion: the loss; it takes logits
            label_smoothing: share of the target that CrossEntropyLoss gives to all classes alike
            channels_last: how images lie in memory; on a GPU convolutions in 16 bits are faster so
            compile: have torch.compile make one program of the network: takes a minute, then steps are faster
        """
        super().__init__()
        for name, share in (("dropout", dropout), ("label_smoothing", label_smoothing)):
            if not 0 <= share <= 1:
                sys.exit(f"{name} {share} is not from 0 to 1")
        if pretrained:  # the weights know images in colour, normalised as they were when they were trained
            shape = [3, *shape[1:]]
        self.network = make_network(arch, stem, pretrained, shape, num_classes)
        if pretrained:
            self.normalisation = normalisation(arch)
        if dropout:
            add_dropout(self.network, dropout)
        if label_smoothing and criterion != "CrossEntropyLoss":
            sys.exit(f"label_smoothing {label_smoothing} is for CrossEntropyLoss, not for {criterion}")
        self.loss_function = getattr(nn, criterion)(**({"label_smoothing": label_smoothing} if label_smoothing else {}))
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network.to(memory_format=self.memory_format)
        self.compile_network = compile
        self.example_input_array = torch.zeros(1, *shape)  # lets the summary show shapes

        self.train_loss = Mean()
        self.train_accuracy = Mean()
        self.val_loss = Mean()
        self.val_metrics = evaluation_metrics("val", num_classes)
        self.val_confusion = MulticlassConfusionMatrix(num_classes)
        # To look for NaN, and then leave it out, torchmetrics would wait for the GPU in every batch.
        self.val_probabilities, self.val_labels = (CatMetric(nan_strategy="disable") for _ in range(2))
        self.test_loss = Mean()
        self.test_metrics = evaluation_metrics("test", num_classes)

    @classmethod
    def load_from_checkpoint(cls, *args, **kwargs):
        """As Lightning's. All weights come from the checkpoint: torchvision's need not be here."""
        with without_weights():
            return super().load_from_checkpoint(*args, **kwargs)

    def forward(self, images):
        return self.network(images.contiguous(memory_format=self.memory_format))

    def on_train_start(self):  # not before: TensorBoard's graph is drawn of a network that is not compiled
        if self.compile_network:
            compilers = [os.environ.get("CXX", "g++"), "clang++"]
            if not any(map(shutil.which, compilers)):
                sys.exit("compile needs a C++ compiler on the node, such as g++: load a module that has one")
            self.network.compile()  # the names of its weights stay as they are

    # In a step the metrics only count. They are logged once an epoch, because a self.log in every step takes longer
    # than the counting. And they are logged as objects, not as numbers: so Lightning knows that it has to reset them.

    def training_step(self, batch):
        images, labels = batch
        logits = self(images)
        loss = self.loss_function(logits, labels)
        self.train_loss.update(loss.detach() * len(labels), len(labels))  # the last batch is smaller, so it counts less
        self.train_accuracy.update((logits.argmax(dim=1) == labels).sum(), len(labels))
        return loss

    def validation_step(self, batch):
        images, labels = batch
        logits = self(images)
        self.val_loss.update(self.loss_function(logits, labels) * len(labels), len(labels))
        self.val_metrics.update(logits, labels)
        self.val_confusion.update(logits, labels)
        self.val_probabilities.update(logits.softmax(dim=1).nan_to_num(0.0))
        self.val_labels.update(labels)

    def test_step(self, batch):
        images, labels = batch
        logits = self(images)
        self.test_loss.update(self.loss_function(logits, labels) * len(labels), len(labels))
        self.test_metrics.update(logits, labels)

    def predict_step(self, batch):
        """Probabilities (N, num_classes)."""
        images, _ = batch
        return self(images).softmax(dim=1)

    def tensorboard_pages(self, data):
        """What TensorBoard shows besides curves, as callbacks."""
        return [TensorBoardPages()] if isinstance(data, ImageDataModule) else []

    def on_validation_epoch_start(self):
        # What is not a number cannot be logged, so nobody but us resets it.
        for metric in (self.val_confusion, self.val_probabilities, self.val_labels):
            metric.reset()

    def on_validation_epoch_end(self):
        self.log("val/loss", self.val_loss)
        self.log_dict(self.val_metrics)

    def on_test_epoch_end(self):
        self.log("test/loss", self.test_loss)
        self.log_dict(self.test_metrics)

    def on_train_epoch_end(self):  # runs after the epoch's validation
        self.log("train/loss", self.train_loss)
        self.log("train/accuracy", self.train_accuracy)
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], rank_zero_only=True)
        columns = {
            "training loss": "train/loss",
            "training accuracy": "train/accuracy",
            "validation loss": "val/loss",
            "validation accuracy": "val/accuracy",
        }
        metrics = self.trainer.callback_metrics
        numbers = [f"    {name}: {metrics[key]:.4f}" for name, key in columns.items() if key in metrics]
        log_once(f"epoch: {self.current_epoch + 1:02d}/{self.trainer.max_epochs:02d}{''.join(numbers)}")
