"""What the job does: train the network on MNIST. run.py describes the job and starts it."""

import sys
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_convert, random_split
from torchvision import datasets

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


class Classifier(L.LightningModule):
    """The network with all that training it needs: the loss, the optimizer, and what to do with a batch."""

    def __init__(self, lr):
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(
            nn.Flatten(),
            nn.Linear(28 * 28, 128),
            nn.ReLU(),
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        )
        self.loss_function = nn.CrossEntropyLoss()

    def forward(self, images):
        return self.network(images)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr, fused=True)

    def training_step(self, batch):
        return self.loss_and_log(batch, "train")

    def validation_step(self, batch):
        self.loss_and_log(batch, "val")

    def test_step(self, batch):
        self.loss_and_log(batch, "test")

    def loss_and_log(self, batch, stage):
        """Log the loss and the accuracy of a batch; Lightning averages them over the epoch. Returns the loss."""
        images, labels = batch
        logits = self(images)
        loss = self.loss_function(logits, labels)
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        self.log_dict(
            {f"{stage}/loss": loss, f"{stage}/accuracy": accuracy},
            on_step=False,
            on_epoch=True,
            batch_size=len(labels),  # the last batch is smaller: it counts for less in the average
        )
        return loss

    def on_train_epoch_end(self):  # runs after the epoch's validation
        metrics = self.trainer.callback_metrics
        self.print(
            f"epoch: {self.current_epoch + 1:02d}/{self.trainer.max_epochs:02d}"
            f"    training loss: {metrics['train/loss']:.4f}    training accuracy: {metrics['train/accuracy']:.4f}"
            f"    validation loss: {metrics['val/loss']:.4f}    validation accuracy: {metrics['val/accuracy']:.4f}"
        )


def main(hparams):
    """Train and test one run.

    hparams: a dictionary with run_folder, lr, batch_size, max_epochs, num_workers, seed, data_dir, nodes, gpus_per_node
    """
    # Lightning's advice to use more workers is for data that is decoded sample by sample.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    L.seed_everything(hparams["seed"])
    torch.set_num_threads(1)  # one, as before: the digits stay the same however many CPUs there are

    model = Classifier(lr=hparams["lr"])

    train_val_set = InMemoryMNIST(hparams["data_dir"], train=True)
    test_set = InMemoryMNIST(hparams["data_dir"], train=False)
    # The split has a generator of its own: it stays the same whatever the seed is.
    train_set, val_set = random_split(train_val_set, [55_000, 5_000], torch.Generator().manual_seed(0))

    train_loader = make_loader(train_set, hparams, shuffle=True)
    val_loader = make_loader(val_set, hparams)
    test_loader = make_loader(test_set, hparams)

    run_folder = hparams["run_folder"]
    logger = TensorBoardLogger(run_folder.parent, name="", version=run_folder.name, default_hp_metric=False)
    logger.log_hyperparams({key: hparams[key] for key in ("lr", "batch_size", "max_epochs", "num_workers", "seed")})

    timer = Timer()
    trainer = L.Trainer(
        accelerator="gpu" if hparams["gpus_per_node"] else "cpu",
        devices=hparams["gpus_per_node"] or 1,
        num_nodes=hparams["nodes"],
        max_epochs=hparams["max_epochs"],
        logger=logger,
        callbacks=[timer],
        enable_progress_bar=sys.stdout.isatty(),  # in a log file a progress bar is a thousand lines
    )
    trainer.fit(model, train_loader, val_loader)
    [metrics] = trainer.test(model, test_loader, verbose=False)
    if trainer.is_global_zero:
        print(
            f"test loss: {metrics['test/loss']:.4f}    test accuracy: {metrics['test/accuracy']:.4f}"
            f"    seconds per epoch: {timer.time_elapsed('train') / hparams['max_epochs']:.2f}"
        )
