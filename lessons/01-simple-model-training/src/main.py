"""Train a 3-layer network on MNIST with a plain PyTorch loop, on one CPU.

sbatch ./run.sh     on a Slurm cluster
bash ./run.sh       on your own machine
"""

import argparse
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, random_split
from torchvision import datasets, transforms
from tqdm import tqdm

MAX_EPOCHS = 10
BATCH_SIZE = 64
LEARNING_RATE = 1e-3
SEED = 1
DATA_DIR = Path(__file__).resolve().parents[3] / "data"


def train_one_epoch(network, loss_function, optimizer, loader):
    """One pass over the training images. Returns their mean loss and accuracy, measured while training."""
    network.train()
    loss_sum, correct = 0.0, 0
    for images, labels in tqdm(loader, desc="training", leave=False, disable=None):  # None: only on a terminal
        logits = network(images)
        loss = loss_function(logits, labels)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        loss_sum += loss.item() * len(labels)  # the last batch is smaller: weigh each loss by its images
        correct += (logits.argmax(dim=1) == labels).sum().item()
    return loss_sum / len(loader.dataset), correct / len(loader.dataset)


@torch.no_grad()
def evaluate(network, loss_function, loader):
    """One pass without training. Returns the mean loss and accuracy."""
    network.eval()
    loss_sum, correct = 0.0, 0
    for images, labels in loader:
        logits = network(images)
        loss_sum += loss_function(logits, labels).item() * len(labels)
        correct += (logits.argmax(dim=1) == labels).sum().item()
    return loss_sum / len(loader.dataset), correct / len(loader.dataset)


def main(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # one CPU is what run.sh asks for

    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(28 * 28, 128),
        nn.ReLU(),
        nn.Linear(128, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(network.parameters(), lr=args.lr, fused=True)

    # Mean and standard deviation of MNIST's pixels, so that the inputs have mean 0 and deviation 1.
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    train_val_set = datasets.MNIST(args.data_dir, train=True, transform=transform)
    test_set = datasets.MNIST(args.data_dir, train=False, transform=transform)
    # The split has a generator of its own: it stays the same whatever --seed is.
    train_set, val_set = random_split(train_val_set, [55_000, 5_000], torch.Generator().manual_seed(0))

    train_loader = DataLoader(train_set, batch_size=args.batch_size, shuffle=True)
    val_loader = DataLoader(val_set, batch_size=args.batch_size)
    test_loader = DataLoader(test_set, batch_size=args.batch_size)

    start = time.perf_counter()
    for epoch in range(1, args.max_epochs + 1):
        train_loss, train_accuracy = train_one_epoch(network, loss_function, optimizer, train_loader)
        val_loss, val_accuracy = evaluate(network, loss_function, val_loader)
        print(
            f"epoch: {epoch:02d}/{args.max_epochs:02d}"
            f"    training loss: {train_loss:.4f}    training accuracy: {train_accuracy:.4f}"
            f"    validation loss: {val_loss:.4f}    validation accuracy: {val_accuracy:.4f}"
        )
    seconds = (time.perf_counter() - start) / args.max_epochs

    test_loss, test_accuracy = evaluate(network, loss_function, test_loader)
    print(f"test loss: {test_loss:.4f}    test accuracy: {test_accuracy:.4f}    seconds per epoch: {seconds:.2f}")


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
    return args


if __name__ == "__main__":
    main(parse_args())
