"""Images in a folder for each class, read the same way by the data module Folder and by src/hdf5/pack.py."""

import os
import unicodedata
from pathlib import Path

from PIL import Image, ImageOps
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from src.hdf5.files import open_regular, short

ORIENTATION = 0x0112  # the EXIF tag in which a camera notes how it was held


class ImageError(ValueError):
    """One sentence: what is wrong with an image or a folder, and what to do."""


class ImageFiles(Dataset):
    """The images below folder/<class>/, in RGB, and the numbers of their classes.

    Hidden files and folders, whose names begin with a dot, are left out: .ipynb_checkpoints is no class. The images are
    in the order of torchvision's ImageFolder.

    Args:
        folder: has a folder for each class, with images of any depth below it
    Raises:
        ImageError: there are no classes, a class has no images, or something cannot be read
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        try:
            self.classes = sorted(entry.name for entry in visible(folder) if entry.is_dir())
            if not self.classes:
                raise ImageError(f"{folder} has no folder in it: put the images of each class into a folder of its own")
            above = {place_of(folder), place_of(self.folder.parent)}
            self.samples = []  # of (path, number of the class)
            for number, name in enumerate(self.classes):
                check_name(name, folder)
                found = images_below(os.path.join(folder, name), above)
                if not found:
                    raise ImageError(
                        f"{os.path.join(folder, name)} has no images in it ({', '.join(IMG_EXTENSIONS)}): put some "
                        "there, or delete the folder"
                    )
                self.samples += [(path, number) for path in found]
        except OSError as error:
            raise ImageError(f"{error.filename or folder}: {error.strerror}") from None
        self.targets = [number for _, number in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Raises ImageError, which names the file."""
        path, number = self.samples[index]
        return read_image(path), number


def visible(folder):
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def place_of(folder):
    """Tells a folder from all others, whatever link leads to it."""
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def check_name(name, folder):
    """The names of classes stand in logs and figures, which are UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ImageError(
            f"the name of the folder {os.fsencode(name)!r} in {folder} is not UTF-8: rename it, for example with convmv"
        ) from None
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        raise ImageError(f"the name of the folder {name!r} in {folder} holds a control character: rename it")


def images_below(folder, above):
    """The paths of the images of a class, in order. above: the folders that this one is in."""
    found = []
    folders = [(os.fspath(folder), above)]
    while folders:
        folder, above = folders.pop()
        place = place_of(folder)
        if place in above:
            raise ImageError(f"{folder} is a link that leads back to a folder above it: delete the link")
        entries = visible(folder)
        inner = [entry.name for entry in entries if entry.is_dir()]
        images = {entry.name for entry in entries if entry.name.lower().endswith(IMG_EXTENSIONS)}
        found.append((folder, sorted(images.difference(inner))))
        folders += [(os.path.join(folder, name), above | {place}) for name in inner]
    return [os.path.join(folder, name) for folder, names in sorted(found) for name in names]


def check_same_classes(train: ImageFiles, test: ImageFiles) -> None:
    """Raises ImageError, which names the folders that differ."""
    missing, more = sorted(set(train.classes) - set(test.classes)), sorted(set(test.classes) - set(train.classes))
    if not missing and not more:
        return
    lists = [
        f"only in {part}: {', '.join(names[:5])}{', ...' if names[5:] else ''}"
        for part, names in ((train.folder.name, missing), (test.folder.name, more))
        if names
    ]
    same = {unicodedata.normalize("NFC", name) for name in missing} & {unicodedata.normalize("NFC", n) for n in more}
    hint = ", which look alike but are two sequences of Unicode characters (NFC and NFD): rename one" if same else ""
    raise ImageError(
        f"the folders in {test.folder} do not have the names of those in {train.folder.name} ({'; '.join(lists)}){hint}"
    )


def check_mode(image: Image.Image, name: str) -> None:
    """Raises ImageError if 8 bits cannot hold the pixels: Pillow would cut off what is above 255, or below 1."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ImageError(
            f"{name} has pixels of more than 8 bits (Pillow's mode {image.mode}), which RGB of 8 bits cannot show: "
            "scale them to 0 to 255 and save them as 8-bit images, or read them by a Dataset of your own"
        )


def read_image(path: str | os.PathLike) -> Image.Image:
    """The image of a file, in RGB, turned as the camera was held.

    Raises:
        ImageError: it cannot be read, or would not be what it was
    """
    try:
        with open(path, "rb", opener=open_regular) as file:
            image = Image.open(file)
            check_mode(image, os.fspath(path))
            if orientation(image) != 1:
                image = ImageOps.exif_transpose(image)
            return image.convert("RGB")
    except ImageError:
        raise
    except Exception as error:  # for a broken file Pillow raises OSError, SyntaxError, ValueError and its own
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise ImageError(f"{path} cannot be read as an image: {short(reason)}") from None


def orientation(image):
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF data, which say nothing about the pixels
        return 1
