"""Where does the time of an epoch go? Measures it here, for two ways to fetch the data and several worker counts.

sbatch --wrap "python -u benchmark.py" --cpus-per-task=4     on a Slurm cluster
python benchmark.py                                          on your own machine
"""

import argparse
import logging
import sys
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import random_split
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parent / "src"))
from main import DATA_DIR, Classifier, InMemoryMNIST, allocated_cpus, make_dataset, make_loader, positive_int

WORKERS = [0, 1, 2, 4]


class OneBatch(InMemoryMNIST):
    """The same images again and again: what training costs when the data cost nothing."""

    def __getitems__(self, indices):
        return self.images[: len(indices)], self.labels[: len(indices)]


class TimedClassifier(Classifier):
    """Lesson 3's model, which keeps the duration of the epoch instead of printing a line."""

    def on_train_epoch_start(self):
        self.start = time.perf_counter()

    def on_train_epoch_end(self):
        self.seconds = time.perf_counter() - self.start


def train_one_epoch(train_val_set, args):
    """Train on 55,000 images and return the seconds it took, without the start of the workers."""
    L.seed_everything(0, verbose=False)
    train_set, _ = random_split(train_val_set, [55_000, 5_000])
    model = TimedClassifier(lr=1e-3)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )
    trainer.fit(model, make_loader(train_set, args, shuffle=True))
    return model.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive_int, default=3, help="epochs for each number; the fastest counts")
    parser.add_argument("--batch_size", type=positive_int, default=64)
    parser.add_argument("--data_dir", type=Path, default=DATA_DIR)
    args = parser.parse_args()

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)

    datasets = {
        "sample": make_dataset(args.data_dir, train=True, fetch="sample"),
        "batch": make_dataset(args.data_dir, train=True, fetch="batch"),
        "floor": OneBatch(args.data_dir, train=True),
    }
    cases = [("sample", n) for n in WORKERS] + [("batch", n) for n in WORKERS] + [("floor", 0)]

    # Every round measures each case once: a machine that slows down for a while slows down all of them.
    seconds = dict.fromkeys(cases, float("inf"))
    for fetch, num_workers in tqdm(cases * args.rounds, desc="epochs", leave=False, disable=None):
        args.fetch, args.num_workers = "batch" if fetch == "floor" else fetch, num_workers
        seconds[fetch, num_workers] = min(seconds[fetch, num_workers], train_one_epoch(datasets[fetch], args))

    print(f"seconds per epoch, the fastest of {args.rounds}; batches of {args.batch_size}; {allocated_cpus()} CPUs")
    print("number of workers                       ", *(f"{n:6}" for n in WORKERS))
    print("decode sample by sample                 ", *(f"{seconds['sample', n]:6.2f}" for n in WORKERS))
    print("decode once, fetch by the batch         ", *(f"{seconds['batch', n]:6.2f}" for n in WORKERS))
    print("one batch again and again: no data work ", f"{seconds['floor', 0]:6.2f}")
    fetch, num_workers = min(cases[:-1], key=seconds.get)
    ratio = seconds[fetch, num_workers] / seconds["floor", 0]
    print(f"use --fetch {fetch} --num_workers {num_workers}: {ratio:.2f} times the epoch without data work")


if __name__ == "__main__":
    main()
