"""Lesson 2 with faster data: decoded once and fetched by the batch, or sample by sample with several workers.

sbatch ./run.sh     on a Slurm cluster
bash ./run.sh       on your own machine
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_convert, random_split
from torchvision import datasets, transforms

MAX_EPOCHS = 10
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
SEED = 1
DATA_DIR = Path(__file__).resolve().parents[3] / "data"

# Mean and standard deviation of MNIST's pixels, so that the inputs have mean 0 and deviation 1.
MEAN, STD = 0.1307, 0.3081


def allocated_cpus():
    """CPUs this job may use: what Slurm gave the task, else what the operating system lets this process run on."""
    if "SLURM_CPUS_PER_TASK" in os.environ:
        return int(os.environ["SLURM_CPUS_PER_TASK"])
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


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


def make_dataset(root, train, fetch):
    if fetch == "batch":
        return InMemoryMNIST(root, train)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    return datasets.MNIST(root, train=train, transform=transform)


def make_loader(dataset, args, shuffle=False):
    return DataLoader(
        dataset,
        batch_size=args.batch_size,
        shuffle=shuffle,
        collate_fn=default_convert if args.fetch == "batch" else None,  # a fetched batch needs no collating
        num_workers=args.num_workers,
        persistent_workers=args.num_workers > 0,  # started once, not in every epoch
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


def main(args):
    if args.fetch == "batch":  # Lightning's advice to use more workers is for data that is decoded sample by sample
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    L.seed_everything(args.seed)
    torch.set_num_threads(1)  # one, as before: the digits stay the same however many CPUs there are

    model = Classifier(lr=args.lr)

    print(f"fetch by the {args.fetch}, {args.num_workers} workers, {allocated_cpus()} CPUs")
    train_val_set = make_dataset(args.data_dir, train=True, fetch=args.fetch)
    test_set = make_dataset(args.data_dir, train=False, fetch=args.fetch)
    # The split has a generator of its own: it stays the same whatever --seed is.
    train_set, val_set = random_split(train_val_set, [55_000, 5_000], torch.Generator().manual_seed(0))

    train_loader = make_loader(train_set, args, shuffle=True)
    val_loader = make_loader(val_set, args)
    test_loader = make_loader(test_set, args)

    timer = Timer()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=args.max_epochs,
        callbacks=[timer],
        enable_progress_bar=sys.stdout.isatty(),  # in a log file a progress bar is a thousand lines
    )
    trainer.fit(model, train_loader, val_loader)
    [metrics] = trainer.test(model, test_loader, verbose=False)
    print(
        f"test loss: {metrics['test/loss']:.4f}    test accuracy: {metrics['test/accuracy']:.4f}"
        f"    seconds per epoch: {timer.time_elapsed('train') / args.max_epochs:.2f}"
    )


def positive_int(text):
    """What argparse calls to read a whole number from 1 up (2**32 is where seeds end)."""
    if not 1 <= int(text) < 2**32:
        raise ValueError
    return int(text)


def positive_float(text):
    """What argparse calls to read a number above 0."""
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_epochs", type=positive_int, default=MAX_EPOCHS)
    parser.add_argument("--batch_size", type=positive_int, default=BATCH_SIZE)
    parser.add_argument("--lr", type=positive_float, default=LEARNING_RATE)
    parser.add_argument("--seed", type=positive_int, default=SEED, help="of the weights and of the order of the images")
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR)
    parser.add_argument("--fetch", choices=["batch", "sample"], default="batch", help="whole batches or single images")
    parser.add_argument("--num_workers", type=int, help="default: 0 for --fetch batch; for sample all CPUs but one")
    args = parser.parse_args()
    cpus = allocated_cpus()
    if args.num_workers is None:
        args.num_workers = 0 if args.fetch == "batch" else cpus - 1
    if not 0 <= args.num_workers <= cpus:
        parser.error(f"--num_workers {args.num_workers}: this job has {cpus} CPUs, so 0 to {cpus} workers")
    if not (args.data_dir / "MNIST/raw/train-images-idx3-ubyte").exists():
        parser.error(f"no MNIST in {args.data_dir}: unpack it with `python {DATA_DIR}/get_data.py mnist`")
    try:
        Path("lightning_logs").mkdir(exist_ok=True)
    except OSError as error:
        parser.error(f"cannot write lightning_logs to {Path.cwd()}: {error.strerror}")
    return args


if __name__ == "__main__":
    main(parse_args())
