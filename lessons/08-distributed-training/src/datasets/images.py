"""What all data sets of images share: they lie in memory and are split, fetched, augmented and normalised alike."""

import subprocess
import sys
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler, default_convert

from src.datasets.augment import normalise, random_crop, random_flip

GET_DATA = Path(__file__).resolve().parents[4] / "data/get_data.py"  # run.py knows it, too
PADDING = 4  # pixels by which a training image is moved at most


class InMemoryImages(Dataset):
    """Decoded images, uint8 (N, C, H, W), and their labels, int64 (N): a quarter of the memory that floats take."""

    def __init__(self, images, labels):
        self.images = images
        self.labels = labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], self.labels[index]

    def __getitems__(self, indices):
        """The DataLoader calls this with the indices of a whole batch: one fetch instead of 64."""
        indices = torch.as_tensor(indices)
        # Copies image by image. images[indices] is the same, but copies number by number, and takes six times as long.
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)


class ImageDataModule(L.LightningDataModule):
    """Everything between the files and the network. A data set says what is its own: what is None below, and load().

    Lightning calls prepare_data() in one process of each node, setup() in every process, then the *_dataloader() it
    needs, and on_after_batch_transfer() with every batch.

    With several processes each of them holds all images and takes its share of them: rank, rank + world_size,
    rank + 2 * world_size, ... So a step of all processes sees the images that it would see with one.
    """

    name = None  # what data/get_data.py calls it
    shape = None  # of an image: [channels, height, width]
    classes = None  # their names, in the order of the labels
    mean, std = None, None  # of the training images, from 0 to 1, a number for each channel
    crop, flip = False, False  # how training images are augmented

    def __init__(self, data_dir, batch_size, num_workers, augment=True, seed=1):
        super().__init__()
        self.data_dir = data_dir
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.augment = augment
        self.seed = seed

    def load(self, train):
        """Read the training or the test images: uint8 (N, C, H, W), and the labels, int64 (N)."""
        raise NotImplementedError

    def prepare_data(self):
        """Write the files if they are not there. Many processes may do so at once: get_data.py sees to that."""
        command = [sys.executable, GET_DATA, self.name, "--data_dir", self.data_dir]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
            sys.exit(1)  # it has said why

    def setup(self, stage):
        """stage: fit, validate, test or predict. Sets train_set and val_set, or test_set; writes nothing."""
        if stage in ("fit", "validate"):
            images, labels = self.load(train=True)
            # The split has a generator of its own: it is the same in every process, whatever the seed is.
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
            val_size = min(5_000, len(labels) // 10)
            train, val = order[:-val_size], order[-val_size:]
            self.train_set = InMemoryImages(images[train], labels[train])
            self.val_set = InMemoryImages(images[val], labels[val])
        else:
            self.test_set = InMemoryImages(*self.load(train=False))

    def make_loader(self, dataset, shuffle=False):
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        if len(dataset) < world_size:
            sys.exit(f"{len(dataset)} images are too few for {world_size} processes: each needs one at least")
        if shuffle:
            # The same permutation in all processes, in every epoch another: Lightning tells the sampler which epoch it
            # is. drop_last: all processes need the same number of batches, or some wait in vain for the gradients of
            # the others. So what cannot be divided is left out: at most world_size - 1 images, in every epoch others.
            sampler = DistributedSampler(dataset, world_size, rank, seed=self.seed, drop_last=True)
        else:
            # Each image once, none left out: here no process waits for another before the last batch.
            sampler = range(rank, len(dataset), world_size)
        return DataLoader(
            dataset,
            batch_size=self.batch_size // world_size,  # a share of the batch that all processes have together
            sampler=sampler,
            collate_fn=default_convert,  # a fetched batch needs no collating
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,  # started once, not in every epoch
        )

    def train_dataloader(self):
        return self.make_loader(self.train_set, shuffle=True)

    def val_dataloader(self):
        return self.make_loader(self.val_set)

    def test_dataloader(self):
        return self.make_loader(self.test_set)

    def predict_dataloader(self):
        return self.make_loader(self.test_set)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Runs where the network runs: on a GPU it is the bytes that are copied there, not four times as many."""
        images, labels = batch
        if self.augment and self.trainer.training:  # not in the validation between two epochs
            share = self.trainer.global_rank, self.trainer.world_size
            if self.crop:
                images = random_crop(images, PADDING, *share)
            if self.flip:
                images = random_flip(images, *share)
        return self.normalise(images), labels

    def normalise(self, images):
        return normalise(images, self.mean, self.std)
