"""Your own images, in a folder for each class: train/<class>/*.jpg and test/<class>/*.jpg, or any other format."""

import sys

import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor
from tqdm import tqdm

from src.datasets.images import ImageDataModule


def load_image(path):
    """A file as an RGB image with 8 bits per colour."""
    image = Image.open(path)
    if image.mode.startswith(("I", "F")):  # 16 bits or more: convert() would make every value above 255 white
        raise ValueError(f"it has more than 8 bits per value (mode {image.mode}): convert it to 8 bits first")
    return image.convert("RGB")


class Folder(ImageDataModule):
    """All images have the same size. What is wrong with the folder ends the program with one sentence."""

    mean, std = [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]  # from 0 to 1 becomes -1 to 1
    crop = True
    flip = True

    def __init__(self, data_dir, *args, **kwargs):
        super().__init__(data_dir, *args, **kwargs)
        train_files = self.find("train")
        if len(train_files) < 10:
            sys.exit(f"{data_dir / 'train'} has only {len(train_files)} images: it takes 10 to put one of them aside")
        if self.find("test").classes != train_files.classes:
            sys.exit(f"the folders in {data_dir / 'test'} do not have the names of those in train")
        self.classes = train_files.classes
        self.shape = list(self.decode(train_files, 0).shape)  # that of the first image: the network's input

    def prepare_data(self):
        pass  # the images are there

    def find(self, part):
        """The files below train/ or test/. Nothing is read yet."""
        try:
            return ImageFolder(self.data_dir / part, loader=load_image)
        except OSError as error:  # no such folder, no folders for classes, one without images, or it may not be read
            sys.exit(f"{self.data_dir / part}: {error}")

    def decode(self, files, index):
        """One image: uint8 (3, H, W)."""
        try:
            image, _ = files[index]
        except Exception as error:  # for a broken file Pillow raises OSError, SyntaxError, ValueError and its own
            sys.exit(f"{files.samples[index][0]} cannot be read as an image: {error}")
        return pil_to_tensor(image)

    def load(self, train):
        """Decode all files, once: from here on there is no difference to the other data sets."""
        files = self.find("train" if train else "test")
        images = torch.empty(len(files), *self.shape, dtype=torch.uint8)
        for index in tqdm(range(len(files)), "decoding", disable=None):  # None: only on a terminal
            image = self.decode(files, index)
            if list(image.shape) != self.shape:
                size, first = (f"{width} x {height} pixels" for _, height, width in (image.shape, self.shape))
                sys.exit(f"{files.samples[index][0]} has {size}, the first image {first}: give all the same size")
            images[index] = image
        return images, torch.tensor(files.targets)
