"""What all data modules share: loaders whose batches do not depend on how often the training was stopped."""

import sys
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from src.datasets.batches import Batches, make_loader
from src.hdf5.files import full_path
from src.utils.seeds import seed_for

DATA_DIR = Path(__file__).resolve().parents[2] / "data"


class DataModule(L.LightningDataModule):
    """The way from files to batches. A data set says what is its own: setup(), and prepare_data() if it needs one.

    setup(stage) sets train_set and val_set for the stages fit and validate, test_set for test and predict: each a
    torch Dataset, with __getitem__(index), or with __getitems__(indices) that fetches a whole batch.

    Lightning calls prepare_data() in one process of each node, setup() in every process, then the *_dataloader() it
    needs. With several processes each of them takes its share of the images of a batch.
    """

    shape = None  # of an image: [channels, height, width]
    classes = None  # their names, in the order of the labels
    on_device = False  # whether the data set's tensors are where the network runs already

    def __init__(self, batch_size: int = 64, num_workers: int = 0, seed: int = 1, data_dir: str | None = None) -> None:
        """Settings; the flags of the same names say what they are.

        Args:
            batch_size: images in a step, of all processes together
            num_workers: processes that load data
            seed: decides the order of the training images
            data_dir: where the data lie
        """
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        try:
            self.data_dir = full_path(data_dir or DATA_DIR)  # as data/get_data.py reads it
        except ValueError as error:
            sys.exit(f"data_dir {error}")
        self.shuffle = True  # of the training images

    def make_loader(self, dataset, train=False):
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if len(dataset) < world_size:
            sys.exit(f"{len(dataset)} images are too few for {world_size} processes: each needs one at least")
        rest = len(dataset) % self.batch_size
        if not train and 0 < rest < world_size and isinstance(self.trainer.strategy, ModelParallelStrategy):
            # Evaluation pads nothing: a process would be without images while others need its part of the network.
            sys.exit(
                f"--strategy fsdp: of {len(dataset)} images {rest} are in the last batch, and each of {world_size} "
                f"processes needs one: choose another batch size than {self.batch_size}"
            )
        progress = self.trainer.fit_loop
        batches = Batches(
            len(dataset),
            self.batch_size,
            rank,
            world_size,
            self.seed,
            train=train,
            shuffle=train and self.shuffle,
            # Where the training stands: not at its beginning, if it was stopped and goes on.
            epoch=progress.epoch_progress.current.processed,
            start=progress.epoch_loop.batch_progress.current.completed if train else 0,
        )
        # Our loader does begin where the training stands, though not in the way Lightning looks for.
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        return make_loader(dataset, batches, self.num_workers, on_gpu and not self.on_device)

    def train_dataloader(self):
        return self.make_loader(self.train_set, train=True)

    def val_dataloader(self):
        return self.make_loader(self.val_set)

    def test_dataloader(self):
        return self.make_loader(self.test_set)

    def predict_dataloader(self):
        return self.make_loader(self.test_set)

    def generator(self, device):
        """Random numbers for what is done with this training batch: the same in all processes."""
        progress = self.trainer.fit_loop
        place = progress.epoch_progress.current.processed, progress.epoch_loop.batch_progress.current.ready
        return torch.Generator(device).manual_seed(seed_for(self.seed, "augment", *place))
