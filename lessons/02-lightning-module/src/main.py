"""Train lesson 1's network as a LightningModule: the loop, checkpoints and TensorBoard come with the Trainer.

sbatch ./run.sh     on a Slurm cluster
bash ./run.sh       on your own machine
"""

import argparse
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision import datasets, transforms

MAX_EPOCHS = 10
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
SEED = 1
DATA_DIR = Path(__file__).resolve().parents[3] / "data"


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
    L.seed_everything(args.seed)
    torch.set_num_threads(1)  # one CPU is what run.sh asks for

    model = Classifier(lr=args.lr)

    # Mean and standard deviation of MNIST's pixels, so that the inputs have mean 0 and deviation 1.
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_val_set = datasets.MNIST(args.data_dir, train=True, transform=transform)
    test_set = datasets.MNIST(args.data_dir, train=False, transform=transform)
    # The split has a generator of its own: it stays the same whatever --seed is.
    train_set, val_set = random_split(train_val_set, [55_000, 5_000], torch.Generator().manual_seed(0))

    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    val_loader = DataLoader(val_set, batch_size=args.batch_size)
    test_loader = DataLoader(test_set, batch_size=args.batch_size)

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
    args = parser.parse_args()
    if not (args.data_dir / "MNIST/raw/train-images-idx3-ubyte").exists():
        parser.error(f"no MNIST in {args.data_dir}: unpack it with `python {DATA_DIR}/get_data.py mnist`")
    try:
        Path("lightning_logs").mkdir(exist_ok=True)
    except OSError as error:
        parser.error(f"cannot write lightning_logs to {Path.cwd()}: {error.strerror}")
    return args


if __name__ == "__main__":
    main(parse_args())
