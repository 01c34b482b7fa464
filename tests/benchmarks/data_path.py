"""The data alone, on one core: images a second, sample by sample as torchvision does it, and by the batch as the last
stage does.

In seconds of the processor, so that other programs count little. All comes from memory: files have been read before.
"""

import tempfile
import time
from pathlib import Path

import lightning as L
import torch
from measure import ROOT, Table, Target, own_benchmark, rounds
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms
from torchvision.transforms import v2

from src.datasets.folder import Folder
from src.datasets.hdf5_images import HDF5Images
from src.datasets.images import PADDING, ImageDataModule, InMemoryImages
from src.datasets.mnist import MNIST
from src.hdf5.pack import ImageWriter, find_folder
from src.hdf5.reader import HDF5Dataset

ROUNDS, SECONDS = 5, 2.0
BATCH_SIZE = 64
MEAN, STD = [0.5] * 3, [0.25] * 3
TO_TENSOR = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
AUGMENT = [transforms.RandomCrop(32, padding=PADDING), transforms.RandomHorizontalFlip()]


class Pixels(Dataset):
    """Images in memory, made into Pillow's one by one, as torchvision's CIFAR10 does it."""

    def __init__(self, images, transform):
        self.images, self.transform = images.permute(0, 2, 3, 1).numpy(), transform

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), index % 10


class FromHDF5(Dataset):
    """Images of a packed file, one by one."""

    def __init__(self, path, transform):
        self.items, self.transform = HDF5Dataset(path, "train"), transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        item = self.items[index]
        return self.transform(item["image"]), item["label"]


class InMemory(ImageDataModule):
    """The same images as Pixels has."""

    classes = list("0123456789")
    mean, std = MEAN, STD
    crop = flip = True

    def __init__(self, images, batch_size=BATCH_SIZE, num_workers=0, on_device=False):
        super().__init__(batch_size, num_workers, on_device=on_device)
        self.images, self.shape = images, list(images.shape[1:])

    def setup(self, stage):
        device = self.trainer.strategy.root_device if self.on_device else "cpu"
        self.train_set = InMemoryImages(self.images.to(device), (torch.arange(len(self.images)) % 10).to(device))


def batches(module):
    """The batches of a data module in a training, as the network gets them; the images are in memory already."""
    module.trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    module.trainer.training = True
    module.setup("fit")

    def epoch():
        for batch in module.train_dataloader():
            yield module.on_after_batch_transfer(batch, 0)

    return epoch


def one_by_one(dataset):
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True)
    return lambda: iter(loader)


def images_a_second(epoch, seconds):
    """As many batches as so many seconds of the processor allow; a new epoch where one ends."""
    began, done = time.process_time(), 0
    while True:
        for images, _ in epoch():
            done += len(images)
            if time.process_time() - began > seconds:
                return done / (time.process_time() - began)


def make_files(folder, images):
    """train/<class>/*.png and test/<class>/*.png, ten classes."""
    for part, some in (("train", images), ("test", images[:100])):
        for number, image in enumerate(some.permute(0, 2, 3, 1).numpy()):
            path = folder / part / str(number % 10) / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)


def make_cases(work, count):
    """{what: (sample by sample, by the batch)}, each a function that begins an epoch."""
    mnist = datasets.MNIST(
        ROOT / "data", transform=transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    )
    # Pixels that compress like those of photographs: neighbours resemble each other.
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (255 * torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")).to(torch.uint8)
    make_files(work / "files", images)
    ImageWriter(*find_folder(work / "files")).write(work / "packed.h5")
    augmented = transforms.Compose([*AUGMENT, *TO_TENSOR])
    to_float = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    tensors = v2.Compose([v2.RandomCrop(32, padding=PADDING), v2.RandomHorizontalFlip(), *to_float])
    return {
        "MNIST": (one_by_one(mnist), batches(MNIST(BATCH_SIZE))),
        "32 x 32 colour, crop, flip": (one_by_one(Pixels(images, augmented)), batches(InMemory(images))),
        "folder of PNG, crop, flip": (
            one_by_one(datasets.ImageFolder(work / "files/train", augmented)),
            batches(Folder(BATCH_SIZE, data_dir=str(work / "files"))),
        ),
        "HDF5, crop, flip": (
            one_by_one(FromHDF5(work / "packed.h5", tensors)),
            batches(HDF5Images(str(work / "packed.h5"), BATCH_SIZE)),
        ),
    }


def measure(smallest):
    count, turns, seconds = (300, 1, 0.05) if smallest else (10_000, ROUNDS, SECONDS)
    torch.set_num_threads(1)
    table = Table(
        "Images a second on one core, without a network, in batches of 64: sample by sample with torchvision's "
        "transforms, and by the batch as the last stage has it. The folder is decoded once, before the first epoch."
    )
    with tempfile.TemporaryDirectory() as work:
        cases = make_cases(Path(work), count)
        table.rows = {name: {} for name in cases}
        for _, name in rounds(cases, turns):
            sample, batch = (images_a_second(epoch, seconds) for epoch in cases[name])
            table.add(name, sample_by_sample=sample, by_the_batch=batch, ratio=batch / sample)
    sections = {"data": table}
    if not smallest:
        sections["data-11"] = own_benchmark("11-data-for-hpc-file-systems", "python benchmark.py")
    targets = [
        Target(f"{name}: by the batch, times as many images", table.mean(name, "ratio"), 20, at_least=True)
        for name in cases
    ]
    return sections, targets
