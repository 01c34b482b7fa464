"""Your own images, in a folder for each class: train/<class>/*.jpg and test/<class>/*.jpg, or any other format.

Photographs are turned as the camera was held. Images of more than 8 bits per colour value are refused.
"""

import math
import sys

import torch
from torchvision.transforms.functional import pil_to_tensor

from src.datasets.images import ImageDataModule
from src.utils.image_files import ImageError, ImageFiles, check_same_classes
from src.utils.progress import tqdm


class Folder(ImageDataModule):
    """All images have the same size. What is wrong with the folder ends the program with one sentence."""

    mean, std = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]  # from 0 to 1 becomes -1 to 1
    crop = True
    flip = True

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        train_files = self.find("train")
        if len(train_files.classes) < 2:
            sys.exit(
                f"{train_files.folder} has the class {train_files.classes[0]} only: a classifier needs two or more"
            )
        if len(train_files) < 10:
            folder = self.data_dir / "train"
            sys.exit(f"{folder} has only {len(train_files)} images: it takes 10 to put one of them aside")
        try:
            check_same_classes(train_files, self.find("test"))
        except ImageError as error:
            sys.exit(str(error))
        self.classes = train_files.classes
        self.shape = list(self.decode(train_files, 0).shape)  # that of the first image: the network's input

    def prepare_data(self):
        pass  # the images are there

    def find(self, part):
        """The files below train/ or test/. Nothing is read yet."""
        try:
            return ImageFiles(self.data_dir / part)
        except ImageError as error:
            sys.exit(str(error))

    def decode(self, files, index):
        """One image: uint8 (3, H, W)."""
        try:
            image, _ = files[index]
        except ImageError as error:
            sys.exit(str(error))
        return pil_to_tensor(image)

    def load(self, train):
        """Decode all files, once: from here on there is no difference to the other data sets."""
        files = self.find("train" if train else "test")
        try:
            images = torch.empty(len(files), *self.shape, dtype=torch.uint8)
        except RuntimeError:
            gigabytes = len(files) * math.prod(self.shape) / 1e9
            sys.exit(f"the images in {files.folder} take {gigabytes:.0f} GB of memory: pack them with src/hdf5/pack.py")
        for index in tqdm(range(len(files)), "decoding", disable=None):  # None: only on a terminal
            image = self.decode(files, index)
            if list(image.shape) != self.shape:
                size, first = (f"{width} x {height} pixels" for _, height, width in (image.shape, self.shape))
                sys.exit(f"{files.samples[index][0]} has {size}, the first image {first}: give all the same size")
            images[index] = image
        return images, torch.tensor(files.targets)
