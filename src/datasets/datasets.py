"""Any torch data sets, by class path: one to train with, one to test with, and a part or a third one to validate."""

import sys
from collections.abc import Callable

import torch
from torch.utils.data import Dataset, Subset

from src.datasets.datamodule import DataModule


class Datasets(DataModule):
    """Each data set is made when it is needed, in every process; before that, once in one process of each node."""

    def __init__(
        self,
        train: Callable[[], Dataset],
        test: Callable[[], Dataset],
        validation: float | Callable[[], Dataset] = 0.1,
        split_seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 1,
        data_dir: str | None = None,
    ) -> None:
        """Settings; the flags of the same names say what they are.

        Args:
            train, test: the class of a torch Dataset
            validation: that share of the training data is put aside for it; or the class of a Dataset
            split_seed: decides which share; it is not --seed, so that runs with other seeds validate with the same data
            batch_size: samples in a step, of all processes together
            num_workers: processes that load data
            seed: decides the order of the training data
            data_dir: not used: the data sets have arguments of their own
        """
        super().__init__(batch_size, num_workers, seed, data_dir)
        if isinstance(validation, float) and not 0 < validation < 1:
            sys.exit(f"validation {validation} is no share: give a number between 0 and 1, or the class of a Dataset")
        if not -(2**63) <= split_seed < 2**64:
            sys.exit(f"split_seed {str(split_seed)[:40]} has more than 64 bits: give a smaller number, such as 1")
        self.makers = {"train": train, "test": test, "validation": validation}
        self.split_seed = split_seed

    def prepare_data(self):
        """What downloads or unpacks when it is made, does so here, and not in all processes at once."""
        for make in self.makers.values():
            if callable(make):
                make()

    def setup(self, stage):
        """stage: fit, validate, test or predict. Sets train_set and val_set, or test_set."""
        if stage not in ("fit", "validate"):
            self.test_set = self.makers["test"]()
            return
        self.train_set = self.makers["train"]()
        validation = self.makers["validation"]
        if callable(validation):
            self.val_set = validation()
        else:
            self.train_set, self.val_set = split(self.train_set, validation, self.split_seed)


def split(dataset, share, seed):
    """Two parts of a data set, the second with that share of it. The same in every process and after every restart.

    Raises:
        SystemExit: one of them would be empty
    """
    size = round(share * len(dataset))
    if not 0 < size < len(dataset):
        sys.exit(f"validation {share} of {len(dataset)} samples is {size}: there have to be some for both")
    # A generator of its own: it does not matter which random numbers were drawn before.
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    return Subset(dataset, order[:-size]), Subset(dataset, order[-size:])
