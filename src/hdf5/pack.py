"""Pack images into one HDF5 file.

python src/hdf5/pack.py folder PATH out.h5              PATH/train/<class>/*.png and PATH/test/..., or PATH/<class>/...
python src/hdf5/pack.py folder PATH out.h5 --size 64    scaled and cropped to 64 x 64
python src/hdf5/pack.py torchvision MNIST out.h5        a data set of torchvision, by the name of its class
python src/hdf5/pack.py check out.h5                    read all of it, compare the checksums
srun -n 4 python src/hdf5/pack.py folder PATH out.h5    four tasks share the work; mpirun and torchrun do as well

The images are decoded; photographs are turned as the camera was held. In out.h5 they lie in blocks of some hundred:
train/000000, train/000500, ..., with the datasets image, uint8 (N, C, H, W), and label, int64 (N).
"""

import argparse
import inspect
import operator
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from torchvision import datasets  # noqa: E402
from torchvision.transforms import functional as transforms  # noqa: E402

from src.hdf5.files import short  # noqa: E402
from src.hdf5.index import PackError, checked_path, verify  # noqa: E402
from src.hdf5.writer import HDF5Writer  # noqa: E402
from src.launch.ranks import export_ranks  # noqa: E402
from src.utils.image_files import ImageError, ImageFiles, check_mode, check_same_classes  # noqa: E402

BLOCK_BYTES = 4_000_000  # about so many in a block, but not more than
BLOCK_IMAGES = 500


class ImageWriter(HDF5Writer):
    """An item is a block of images: (part, number of its first image, number after its last).

    Args:
        parts: {"train": data set, "test": data set}, each with an image and a label for each index
        classes: their names, in the order of the labels
        size: height and width, to which the images are scaled and cropped; None: they have one size already
    """

    stacked = True

    def __init__(self, parts, classes, size=None):
        self.parts, self.classes, self.size = parts, classes, size

    def prepare_globals(self):
        first = self.decode(next(iter(self.parts)), 0)[0]
        self.about = {"shape": list(first.shape), "classes": self.classes}
        block = max(1, min(BLOCK_IMAGES, BLOCK_BYTES // first.size))
        items = [
            (part, start, min(start + block, len(dataset)))
            for part, dataset in self.parts.items()
            for start in range(0, len(dataset), block)
        ]
        return items, first.shape

    def prepare_group(self, item, shape):
        part, start, stop = item
        images = np.empty((stop - start, *shape), np.uint8)
        labels = np.empty(stop - start, np.int64)
        for place, number in enumerate(range(start, stop)):
            image, labels[place] = self.decode(part, number)
            if image.shape != shape:
                raise PackError(
                    f"{self.name(part, number)} has the shape {image.shape}, the first image {shape}: give --size"
                )
            images[place] = image
        return {f"{part}/{start:08d}": {"image": images, "label": labels}}

    def decode(self, part, number):
        """One image, uint8 (C, H, W), and its label."""
        try:
            image, label = self.parts[part][number]
            check_mode(image, self.name(part, number))
            if image.mode in ("1", "P"):  # as numbers these are no colours
                image = image.convert("RGB" if image.mode == "P" else "L")
            if self.size:
                image = transforms.center_crop(transforms.resize(image, self.size), self.size)
            return transforms.pil_to_tensor(image).numpy(), operator.index(label)
        except ImageError as error:
            name = self.name(part, number)
            raise PackError(f"{name} cannot be packed: it {str(error).removeprefix(f'{name} ')}") from None
        except Exception as error:  # a data set of torchvision may raise anything
            raise PackError(f"{self.name(part, number)} cannot be packed: {error}") from error

    def name(self, part, number):
        samples = getattr(self.parts[part], "samples", None)
        return samples[number][0] if samples else f"image {number} of {part}"


def find_folder(path):
    """The images in a folder: {part: data set}, names of the classes."""
    path = checked_path(path)
    try:
        parts = [part for part in ("train", "test") if (path / part).is_dir()]
        found = {part: ImageFiles(path / part) for part in parts} or {"train": ImageFiles(path)}
        if len(found) == 2:
            check_same_classes(found["train"], found["test"])
    except ImageError as error:
        raise PackError(str(error)) from None
    except OSError as error:
        raise PackError(f"{error.filename or path}: {error.strerror}") from None
    return found, next(iter(found.values())).classes


def find_torchvision(name, root, download):
    """The same for a data set of torchvision."""
    kind = getattr(datasets, name, None)
    if not inspect.isclass(kind) or not issubclass(kind, datasets.VisionDataset):
        raise PackError(f"torchvision has no data set {name}: it takes the name of a class, such as CIFAR10")
    takes = inspect.signature(kind).parameters
    more = {key: value for key, value in (("root", root), ("download", download)) if key in takes}
    try:
        if "train" in takes:
            parts = {"train": kind(train=True, **more), "test": kind(train=False, **more)}
        elif "split" in takes:
            parts = {"train": kind(split="train", **more), "test": kind(split="test", **more)}
        else:
            parts = {"train": kind(**more)}
        _, label = parts["train"][0]
        operator.index(label)
    except (TypeError, ValueError) as error:
        raise PackError(f"{name} is not of the kind that has a label for each image: {error}") from None
    except Exception as error:  # it is not there, is damaged, cannot be downloaded, or needs another package
        raise PackError(f"{name} in {root}: {short(str(error) or type(error).__name__)}") from None
    classes = getattr(parts["train"], "classes", None)
    return parts, classes or [str(number) for number in range(1 + max(int(label) for _, label in parts["train"]))]


def positive(text):
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:9]) <= 100_000:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is not a number of pixels, such as 64")
    return int(text)


def main():
    sys.stdout.reconfigure(errors="surrogateescape")  # a path need not be UTF-8
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    folder = commands.add_parser("folder", help="a folder of images")
    folder.add_argument("source")
    vision = commands.add_parser("torchvision", help="a data set of torchvision")
    vision.add_argument("source", metavar="NAME")
    vision.add_argument("--data_dir", default=str(ROOT / "data"), help="where it lies")
    vision.add_argument("--download", action="store_true")
    for command in (folder, vision):
        command.add_argument("out")
        command.add_argument("--size", type=positive, help="scale and crop to SIZE x SIZE pixels")
    commands.add_parser("check", help="compare the checksums").add_argument("out")
    args = parser.parse_args()
    export_ranks()
    try:
        if args.command == "check":
            index = verify(args.out)
            print(f"{args.out}: {sum(count for _, count in index.groups)} items, all as they were written")
            return
        if args.command == "folder":
            parts, classes = find_folder(args.source)
        else:
            parts, classes = find_torchvision(args.source, str(checked_path(args.data_dir)), args.download)
        writer = ImageWriter(parts, classes, [args.size, args.size] if args.size else None)
        path = writer.write(args.out, parallel=int(os.environ["WORLD_SIZE"]) > 1)
    except PackError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("interrupted: nothing was left under the final name", file=sys.stderr)
        sys.exit(130)
    if os.environ["RANK"] == "0":
        numbers = ", ".join(f"{len(dataset)} images in {part}" for part, dataset in parts.items())
        print(f"{path}: {numbers}, {len(classes)} classes")


if __name__ == "__main__":
    main()
