"""Images in one HDF5 file, as src/hdf5/pack.py writes it. A batch is read when it is needed, so not all have to fit in
memory.

python run.py --data HDF5Images --data.path digits.h5
python run.py --data HDF5Images --data.path digits.h5 --data.stage auto     copy it to the node's local disk first
"""

import sys

import torch
from torch.utils.data import Dataset

from src.datasets.images import ImageDataModule, split
from src.hdf5.index import PackError, checked_path, read_index
from src.hdf5.reader import HDF5Dataset
from src.hdf5.staging import stage


class Pairs(Dataset):
    """Some of the images of a packed file, by the batch: uint8 (N, C, H, W), and their labels, int64 (N)."""

    def __init__(self, items, indices):
        self.items = items
        self.indices = indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        item = self.items[self.indices[index]]
        return item["image"], item["label"]

    def __getitems__(self, indices):
        batch = self.items.__getitems__(self.indices[torch.as_tensor(indices)])
        return batch["image"], batch["label"]


def is_list(value, kind, length=None):
    """Whether this is a list of values of one type, and of this length."""
    return isinstance(value, list) and all(type(one) is kind for one in value) and length in (None, len(value))


def is_tensor(value, dtype, shape):
    return isinstance(value, torch.Tensor) and value.dtype == dtype and list(value.shape) == shape


class HDF5Images(ImageDataModule):
    """What is wrong with the file ends the program with one sentence."""

    def __init__(
        self,
        path: str,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 1,
        data_dir: str | None = None,
        augment: bool = True,
        crop: bool = True,
        flip: bool = True,
        stage: str | None = None,
    ) -> None:
        """Settings; the flags of the same names say what they are.

        Args:
            path: the file; its index lies beside it
            batch_size: images in a step, of all processes together
            num_workers: processes that load data
            seed: decides the order of the training images
            data_dir: is not used: path says where the file is
            augment: crop and mirror training images at random, as crop and flip say
            crop: move training images by a few pixels
            flip: mirror training images
            stage: read from a copy in this folder on the node's local disk; auto: in $SLURM_TMPDIR or $TMPDIR
        """
        super().__init__(batch_size, num_workers, seed, data_dir, augment)
        self.stage = stage
        self.crop, self.flip = crop, flip
        try:
            self.path = checked_path(path)
            about = read_index(self.path).about
        except PackError as error:
            sys.exit(str(error))
        self.path = self.path.absolute()
        self.shape, self.classes = about.get("shape"), about.get("classes")
        if not is_list(self.shape, int, 3) or min(self.shape) < 1 or not is_list(self.classes, str):
            sys.exit(f"{self.path} was not written by src/hdf5/pack.py: shape and classes of its images are unknown")
        if len(self.classes) < 2:
            sys.exit(f"{self.path} has {len(self.classes)} class only: a classifier needs two")
        self.mean, self.std = [0.5] * self.shape[0], [0.5] * self.shape[0]  # from 0 to 1 becomes -1 to 1

    def prepare_data(self):
        pass  # the file is there

    def setup(self, stage):
        """stage: fit, validate, test or predict. Sets train_set and val_set, or test_set."""
        training = stage in ("fit", "validate")
        try:
            items = HDF5Dataset(self.local_path(), "train" if training else "test")
            first = items[0] if len(items) else {}
        except PackError as error:
            sys.exit(str(error))
        image, label = first.get("image"), first.get("label")
        if first and not (is_tensor(image, torch.uint8, self.shape) and is_tensor(label, torch.int64, [])):
            sys.exit(f"{self.path} was not written by src/hdf5/pack.py: its images and labels are not as it says")
        if not first:
            sys.exit(f"{self.path} has no images for {'training' if training else 'the test'}: pack some")
        if not training:
            self.test_set = Pairs(items, torch.arange(len(items)))
            return
        if len(items) < 10:
            sys.exit(f"{self.path} has only {len(items)} training images: it takes 10 to put one of them aside")
        train, val = split(len(items))  # as images in memory are split
        self.train_set, self.val_set = Pairs(items, train), Pairs(items, val)

    def local_path(self):
        if self.stage is None:
            return self.path
        return stage(self.path, None if self.stage == "auto" else self.stage)
