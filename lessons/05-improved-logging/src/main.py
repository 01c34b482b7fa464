"""What the job does: train the network on MNIST. run.py describes the job and starts it."""

import logging
import os
import sys
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities.model_summary import ModelSummary
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_convert, random_split
from torchmetrics import CatMetric, MeanMetric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)
from torchvision import datasets

from src.utils.logs import setup_logging
from src.utils.tensorboard import TensorBoardPages

log = logging.getLogger(__name__)

# Mean and standard deviation of MNIST's pixels, so that the inputs have mean 0 and deviation 1.
MEAN, STD = 0.1307, 0.3081


class InMemoryMNIST(Dataset):
    """MNIST as one tensor: decoded and normalised once, 188 MB, instead of in every epoch again."""

    def __init__(self, root, train):
        mnist = datasets.MNIST(root, train=train)
        self.images = ((mnist.data / 255 - MEAN) / STD).unsqueeze(dim=1)  # (N, 1, 28, 28)
        self.labels = mnist.targets

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]

    def __getitems__(self, indices):
        """The DataLoader calls this with the indices of a whole batch: one fetch instead of 64."""
        indices = torch.tensor(indices)
        # Copies image by image. images[indices] is the same, but copies number by number, and takes twice as long.
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)


def make_loader(dataset, hparams, shuffle=False):
    return DataLoader(
        dataset,
        batch_size=hparams["batch_size"],
        shuffle=shuffle,
        collate_fn=default_convert,  # a fetched batch needs no collating
        num_workers=hparams["num_workers"],
        persistent_workers=hparams["num_workers"] > 0,  # started once, not in every epoch
    )


def make_network(arch):
    """The network of that name: images (N, 1, 28, 28) to logits (N, 10)."""
    if arch == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(28 * 28, 128),
            nn.ReLU(),
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        )
    if arch == "mlp_wide":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(28 * 28, 512),
            nn.ReLU(),
            nn.Linear(512, 10),
        )
    if arch == "cnn":
        return nn.Sequential(
            nn.Conv2d(1, 8, kernel_size=3, stride=2, padding=1),  # (N, 8, 14, 14)
            nn.ReLU(),
            nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),  # (N, 16, 7, 7)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 7 * 7, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
    raise ValueError(f"there is no network {arch!r}")


def evaluation_metrics(stage):
    """Four numbers about an epoch. In a macro average each class counts the same, however many images it has."""
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(10, average="micro"),  # micro: each image counts the same (not the default)
            "precision": MulticlassPrecision(10, average="macro"),
            "recall": MulticlassRecall(10, average="macro"),
            "f1": MulticlassF1Score(10, average="macro"),
        },
        prefix=f"{stage}/",
    )


class Classifier(L.LightningModule):
    """The network with all that training it needs: the loss, the optimizer, and what to do with a batch."""

    def __init__(self, arch, optimizer, criterion, lr):
        super().__init__()
        self.save_hyperparameters()
        self.network = make_network(arch)
        self.loss_function = getattr(nn, criterion)()
        self.example_input_array = torch.zeros(1, 1, 28, 28)  # lets the summary show shapes

        # A mean with a NaN in it shall be NaN. The default leaves it out, so a failed training looks well.
        # (Not nan_strategy="disable": torchmetrics 1.9 then forgets the weights.)
        nan = float("nan")
        self.train_loss = MeanMetric(nan_strategy=nan)
        self.train_accuracy = MulticlassAccuracy(10, average="micro")
        self.val_loss = MeanMetric(nan_strategy=nan)
        self.val_metrics = evaluation_metrics("val")
        self.val_confusion = MulticlassConfusionMatrix(10)
        self.val_probabilities = CatMetric(nan_strategy=0.0)  # the default leaves NaN out: then rows would be missing
        self.val_labels = CatMetric()
        self.test_loss = MeanMetric(nan_strategy=nan)
        self.test_metrics = evaluation_metrics("test")

    def forward(self, images):
        return self.network(images)

    def configure_optimizers(self):
        options = {} if self.hparams.optimizer == "RMSprop" else {"fused": True}  # there is no fused RMSprop
        return getattr(torch.optim, self.hparams.optimizer)(self.parameters(), lr=self.hparams.lr, **options)

    # In a step the metrics only count. They are logged once an epoch, because a self.log in every step takes longer
    # than the counting. And they are logged as objects, not as numbers: so Lightning knows that it has to reset them.

    def training_step(self, batch):
        images, labels = batch
        logits = self(images)
        loss = self.loss_function(logits, labels)
        self.train_loss.update(loss.detach(), weight=len(labels))  # the last batch is smaller: it counts for less
        self.train_accuracy.update(logits, labels)
        return loss

    def validation_step(self, batch):
        images, labels = batch
        logits = self(images)
        self.val_loss.update(self.loss_function(logits, labels), weight=len(labels))
        self.val_metrics.update(logits, labels)
        self.val_confusion.update(logits, labels)
        self.val_probabilities.update(logits.softmax(dim=1))
        self.val_labels.update(labels)

    def test_step(self, batch):
        images, labels = batch
        logits = self(images)
        self.test_loss.update(self.loss_function(logits, labels), weight=len(labels))
        self.test_metrics.update(logits, labels)

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
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"])
        metrics = self.trainer.callback_metrics
        log_once(
            f"epoch: {self.current_epoch + 1:02d}/{self.trainer.max_epochs:02d}"
            f"    training loss: {metrics['train/loss']:.4f}    training accuracy: {metrics['train/accuracy']:.4f}"
            f"    validation loss: {metrics['val/loss']:.4f}    validation accuracy: {metrics['val/accuracy']:.4f}"
        )


@rank_zero_only
def log_once(message):
    """Log what is the same in all processes of the job: one of them says it."""
    log.info(message)


def make_logger(hparams, shown):
    """Where the metrics go. shown: the hyperparameters that are shown beside them."""
    run_folder = hparams["run_folder"]
    if hparams["logger"] == "tensorboard":
        logger = TensorBoardLogger(run_folder.parent, name="", version=run_folder.name, default_hp_metric=False)
    elif hparams["logger"] == "csv":
        logger = CSVLogger(run_folder.parent, name="", version=run_folder.name)
    elif hparams["logger"] == "mlflow":
        store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run_folder.parent / 'mlflow.db'}")
        logger = MLFlowLogger(hparams["experiment_name"], run_name=run_folder.name, tracking_uri=store)
    else:
        logger = WandbLogger(run_folder.name, save_dir=run_folder, project=hparams["experiment_name"])
    logger.log_hyperparams(shown)
    return logger


def main(hparams):
    """Train and test one run.

    hparams: a dictionary with run_folder, arch, optimizer, criterion, lr, batch_size, max_epochs, num_workers, seed,
    data_dir, nodes, gpus_per_node, logger, experiment_name
    """
    setup_logging()
    # Lightning's advice to use more workers is for data that is decoded sample by sample.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    L.seed_everything(hparams["seed"])
    torch.set_num_threads(1)  # one, as before: the digits stay the same however many CPUs there are

    model = Classifier(hparams["arch"], hparams["optimizer"], hparams["criterion"], hparams["lr"])
    summary = str(ModelSummary(model, max_depth=-1))  # -1: down to the last layer
    log_once(f"the network\n{summary}")

    train_val_set = InMemoryMNIST(hparams["data_dir"], train=True)
    test_set = InMemoryMNIST(hparams["data_dir"], train=False)
    # The split has a generator of its own: it stays the same whatever the seed is.
    train_set, val_set = random_split(train_val_set, [55_000, 5_000], torch.Generator().manual_seed(0))

    train_loader = make_loader(train_set, hparams, shuffle=True)
    val_loader = make_loader(val_set, hparams)
    test_loader = make_loader(test_set, hparams)

    run_folder = hparams["run_folder"]
    names = ("arch", "optimizer", "criterion", "lr", "batch_size", "max_epochs", "num_workers", "seed")
    shown = {key: hparams[key] for key in names}

    timer = Timer()
    callbacks = [ModelCheckpoint(run_folder / "checkpoints")]
    if hparams["logger"] == "tensorboard":  # the others get the numbers, not the pictures
        callbacks.append(TensorBoardPages(val_set, shown))
    callbacks.append(timer)  # the last, so that it counts what the others take
    profiler = SimpleProfiler(run_folder, "profiler")
    trainer = L.Trainer(
        accelerator="gpu" if hparams["gpus_per_node"] else "cpu",
        devices=hparams["gpus_per_node"] or 1,
        num_nodes=hparams["nodes"],
        max_epochs=hparams["max_epochs"],
        logger=make_logger(hparams, shown),
        callbacks=callbacks,
        profiler=profiler,
        enable_model_summary=False,  # it is in the log already
        enable_progress_bar=sys.stdout.isatty(),  # in a log file a progress bar is a thousand lines
    )
    if trainer.is_global_zero:
        (run_folder / "model_summary.txt").write_text(f"{summary}\n")
    trainer.fit(model, train_loader, val_loader)
    log_once("\n".join(profiler.summary().splitlines()[:20]))  # the costliest; all are in fit-profiler.txt
    [metrics] = trainer.test(model, test_loader, verbose=False)
    log_once(
        f"test loss: {metrics['test/loss']:.4f}    test accuracy: {metrics['test/accuracy']:.4f}"
        f"    seconds per epoch: {timer.time_elapsed('train') / hparams['max_epochs']:.2f}"
    )
