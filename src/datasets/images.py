"""What all data sets of images share: they lie in memory and are split, fetched, augmented and normalised alike."""

import subprocess
import sys

import torch
from torch.utils.data import Dataset

from src.datasets.augment import normalise, random_crop, random_flip
from src.datasets.datamodule import DATA_DIR, DataModule
from src.datasets.shared import once_per_node

GET_DATA = DATA_DIR / "get_data.py"
PADDING = 4  # pixels by which a training image is moved at most


def split(length):
    """Indices for training and for validation: a tenth, but not more than 5,000, is put aside."""
    # A generator of its own: the split is the same in every process, whatever the seed is.
    order = torch.randperm(length, generator=torch.Generator().manual_seed(0))
    val_size = min(5_000, length // 10)
    return order[:-val_size], order[-val_size:]


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
        indices = torch.as_tensor(indices).to(self.images.device, non_blocking=True)
        # Copies image by image. images[indices] is the same, but copies number by number, and takes six times as long.
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)


class ImageDataModule(DataModule):
    """Images that lie decoded in memory. A data set says what is its own: what is None below, and load().

    The processes of a node hold them together. They are augmented and normalised by the batch, where the network runs.
    """

    name = None  # what data/get_data.py calls it
    mean, std = None, None  # of the training images, from 0 to 1, a number for each channel
    crop, flip = False, False  # how training images are augmented

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 1,
        data_dir: str | None = None,
        augment: bool = True,
        on_device: bool = False,
    ) -> None:
        """Settings; the flags of the same names say what they are.

        Args:
            batch_size: images in a step, of all processes together
            num_workers: processes that load data
            seed: decides the order of the training images
            data_dir: where the data lie
            augment: crop and mirror training images at random, if that makes sense for these images
            on_device: hold all images where the network runs, in the GPU's memory: in a step nothing is loaded
        """
        super().__init__(batch_size, num_workers, seed, data_dir)
        if on_device and num_workers:
            sys.exit(f"num_workers {num_workers}: with on_device there is nothing to load, so it takes num_workers 0")
        self.augment = augment
        self.on_device = on_device

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
        training = stage in ("fit", "validate")
        tensors = once_per_node(self.load_split if training else lambda: self.load(train=False), self.trainer)
        if self.on_device:
            tensors = [tensor.to(self.trainer.strategy.root_device) for tensor in tensors]
        if training:
            self.train_set, self.val_set = InMemoryImages(*tensors[:2]), InMemoryImages(*tensors[2:])
        else:
            self.test_set = InMemoryImages(*tensors)

    def load_split(self):
        """Images and labels for training, then those for validation."""
        images, labels = self.load(train=True)
        train, val = split(len(labels))
        return images[train], labels[train], images[val], labels[val]

    def on_after_batch_transfer(self, batch, dataloader_idx):
        """Runs where the network runs: on a GPU it is the bytes that are copied there, not four times as many."""
        images, labels = batch
        if self.augment and self.trainer.training:  # not in the validation between two epochs
            drawn = self.generator(images.device), self.trainer.global_rank, self.trainer.world_size
            if self.crop:
                images = random_crop(images, PADDING, *drawn)
            if self.flip:
                images = random_flip(images, *drawn)
        return self.normalise(images), labels

    def normalise(self, images):
        return normalise(images, self.mean, self.std)
