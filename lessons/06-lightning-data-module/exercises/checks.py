"""Are the exercises of this lesson right? See lessons/check.py."""

from pathlib import Path

import torch
from torch.utils.data import TensorDataset


def split(exercise):
    dataset = TensorDataset(torch.arange(100))
    splits = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        splits.append([[item.item() for (item,) in part] for part in exercise.split(dataset, 20)])
    (train, val), (_, other) = splits
    if len(val) != 20 or sorted(train + val) != list(range(100)):
        return "each item belongs to one of the two sets, and 20 of 100 to the validation"
    if val != other:
        return "two processes whose random numbers differ still split in two ways. What does random_split() draw from?"
    if sorted(val) in (list(range(20)), list(range(80, 100))):
        return "the data may be sorted by class: the validation images have to be drawn at random"
    if torch.initial_seed() != 2:
        return "splitting has changed the seed of everything else: give random_split() random numbers of its own"


def download(exercise):
    downloads = []
    original = exercise.download

    def counted(path):
        downloads.append(path)
        original(path)

    exercise.download = counted
    processes = [exercise.Digits(".") for _ in range(3)]
    processes[0].prepare_data()
    before = len(downloads)
    for digits in processes:
        digits.setup("fit")
    if len(downloads) > before:
        return "setup() downloads, in each process. Which method does Lightning call in only one of them?"
    if not all(len(getattr(digits, "train_set", ())) == 100 for digits in processes):
        return "only the process that ran prepare_data() has a train_set"
    again = exercise.Digits(".")
    again.prepare_data()
    if len(downloads) != 1:
        return "the next job downloads again what is there already"
    if not Path("digits.pt").exists():
        return "the images have to be in data_dir/digits.pt"
