"""Folders of images: what is read is what is there, for the data module Folder and for src/hdf5/pack.py, or refused.

python -m pytest tests/test_image_files.py
"""

import os
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import torch
from lesson import REPOSITORY
from PIL import Image
from torchvision.datasets import ImageFolder

sys.path.insert(0, str(REPOSITORY))

from src.datasets.folder import Folder
from src.hdf5 import pack
from src.hdf5.index import PackError
from src.hdf5.reader import HDF5Dataset
from src.utils.image_files import ImageError, ImageFiles, check_same_classes, read_image


def draw(folder, classes=("a", "b"), count=6, size=(8, 6)):
    """train/ and test/, with so many images of each class."""
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in classes:
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 255, (size[1], size[0], 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


def refused(folder):
    """What both say who read the folder: one sentence each."""
    with pytest.raises(SystemExit) as ended:
        data = Folder(data_dir=str(folder))
        data.load(train=True), data.load(train=False)
    with pytest.raises(PackError) as error:
        pack.ImageWriter(*pack.find_folder(folder)).write(folder.with_suffix(".h5"))
    assert not list(folder.parent.glob("*.h5*")) and not list(folder.parent.glob("*.json"))
    sentences = [str(ended.value), str(error.value)]
    assert all(len(sentence.splitlines()) == 1 for sentence in sentences), sentences
    return sentences


def both(folder):
    """The training images as both read them; they have to agree."""
    data = Folder(data_dir=str(folder))
    images, labels = data.load(train=True)
    packed = HDF5Dataset(pack.ImageWriter(*pack.find_folder(folder)).write(folder.with_suffix(".h5")), "train")
    batch = packed.__getitems__(range(len(packed)))
    assert torch.equal(images, batch["image"]) and torch.equal(labels, batch["label"])
    return images, labels


def test_the_images_of_torchvision_in_its_order(tmp_path):
    folder = draw(tmp_path / "data")
    for name in ("z/1.png", "B/0.PNG", "z-/2.png"):
        path = folder / "train/a" / name
        path.parent.mkdir()
        Image.new("RGB", (8, 6), (1, 2, 3)).save(path)
    expected = ImageFolder(folder / "train")
    files = ImageFiles(folder / "train")
    assert files.samples == expected.samples and files.targets == expected.targets and files.classes == expected.classes
    assert all(np.array_equal(files[n][0], expected[n][0]) for n in range(len(files)))
    images, _ = both(folder)
    assert len(images) == 15


@pytest.mark.parametrize(
    ("pixels", "ending", "mode"),
    [
        (np.full((6, 8), 40_000, np.uint16), "png", "I;16"),
        (np.full((6, 8), 40_000, np.uint16), "tif", "I;16"),
        (np.full((6, 8), 70_000, np.int32), "tif", "I"),
        (np.full((6, 8), 0.5, np.float32), "tiff", "F"),
        (np.full((6, 8), 40_000, np.uint16), "pgm", "I"),
    ],
)
@pytest.mark.parametrize("part", ["train/a/0", "test/b/3"])
def test_pixels_of_more_than_8_bits_are_refused(tmp_path, pixels, ending, mode, part):
    folder = draw(tmp_path / "data")
    (folder / f"{part}.png").unlink()
    path = folder / f"{part}.{ending}"
    Image.fromarray(pixels).save(path)
    for sentence in refused(folder):
        assert str(path) in sentence and f"mode {mode}" in sentence and "save them as 8-bit images" in sentence


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_images_of_8_bits_are_what_pillow_shows(tmp_path, mode):
    folder = draw(tmp_path / "data")
    path = folder / f"train/a/0.{'jpg' if mode == 'CMYK' else 'png'}"
    image = Image.open(folder / "train/a/1.png").convert(mode)
    (folder / "train/a/0.png").unlink()
    image.save(path)
    images, _ = both(folder)
    assert np.array_equal(images[0].permute(1, 2, 0), Image.open(path).convert("RGB"))


def test_packing_what_torchvision_gives_keeps_colours():
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 255, (6, 8, 3), np.uint8))
    for mode, kept in (("P", "RGB"), ("1", "L"), ("L", "L"), ("RGB", "RGB"), ("RGBA", "RGBA")):
        decoded, label = pack.ImageWriter({"train": [(image.convert(mode), torch.tensor(3))]}, []).decode("train", 0)
        expected = np.atleast_3d(image.convert(mode).convert(kept)).transpose(2, 0, 1)
        assert np.array_equal(decoded, expected) and label == 3
    with pytest.raises(PackError, match="image 0 of train cannot be packed: it has pixels of more than 8 bits"):
        pack.ImageWriter({"train": [(image.convert("I"), 3)]}, []).decode("train", 0)
    with pytest.raises(PackError, match="cannot be packed: .*float"):
        pack.ImageWriter({"train": [(image, 0.7)]}, []).decode("train", 0)


def test_photographs_are_turned_as_the_camera_was_held(tmp_path):
    folder = draw(tmp_path / "data", size=(8, 8))
    path = folder / "train/a/0.png"
    upright = np.asarray(Image.open(path))
    turned = Image.fromarray(np.rot90(upright).copy())  # the camera was held such that it has to be turned back
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(path, exif=exif)
    images, _ = both(folder)
    assert np.array_equal(images[0].permute(1, 2, 0), upright)


def test_hidden_folders_and_files_are_no_classes_and_no_images(tmp_path):
    folder = draw(tmp_path / "data")
    for hidden in ("train/.ipynb_checkpoints", "train/a/.ipynb_checkpoints"):
        (folder / hidden).mkdir()
        Image.new("RGB", (8, 6)).save(folder / hidden / "0-checkpoint.png")
    (folder / "train/a/._0.png").write_bytes(b"what macOS writes")
    images, _ = both(folder)
    assert len(images) == 12


def test_classes_that_differ_are_named(tmp_path):
    folder = draw(tmp_path / "data", ("cat", "dog"))
    (folder / "train/dog").rename(folder / "train/Dog")
    for sentence in refused(folder):
        assert "only in train: Dog; only in test: dog" in sentence
    nfc, nfd = (unicodedata.normalize(form, "Ä") for form in ("NFC", "NFD"))
    folder = draw(tmp_path / "more", ("cat", nfc))
    (folder / "test" / nfc).rename(folder / "test" / nfd)
    for sentence in refused(folder):
        assert "NFC and NFD" in sentence


def test_a_class_that_is_not_utf_8(tmp_path):
    folder = draw(tmp_path / "data", ("a", os.fsdecode(b"M\xfcller")))
    for sentence in refused(folder):
        assert r"b'M\xfcller'" in sentence and "is not UTF-8" in sentence
    folder = draw(tmp_path / "more", ("a", "b\nc"))
    for sentence in refused(folder):
        assert r"'b\nc'" in sentence and "a control character" in sentence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("text", "train/a/0.png"),
        ("empty", "train/a/0.png"),
        ("cut off", "train/a/0.png"),
        ("fifo", "train/a/0.png"),
        ("device", "train/a/0.png"),
        ("dead link", "train/a/0.png"),
        ("another size", "train/a/0.png"),
        ("no images", "data/train/b has no images in it"),
        ("no classes", "data/train has no folder in it"),
        ("circle", "data/train/a/up is a link that leads back"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    folder = draw(tmp_path / "data", size=(64, 64))
    path = folder / "train/a/0.png"
    content = path.read_bytes()
    path.unlink()
    match change:
        case "text":
            path.write_text("no picture")
        case "empty":
            path.touch()
        case "cut off":
            path.write_bytes(content[: len(content) // 2])
        case "fifo":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "dead link":
            path.symlink_to("nowhere")
        case "another size":
            Image.new("RGB", (9, 9)).save(path)
        case "no images":
            for image in (folder / "train/b").iterdir():
                image.unlink()
        case "no classes":
            (folder / "train").rename(tmp_path / "elsewhere")
            (folder / "train").mkdir()
        case "circle":
            (folder / "train/a/up").symlink_to(folder / "train")
    for sentence in refused(folder):
        assert words in sentence or (change == "another size" and "the first image" in sentence)


def test_a_folder_that_may_not_be_read(tmp_path):
    folder = draw(tmp_path / "data")
    (folder / "train/a/inner").mkdir(mode=0)
    script = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from src.utils.image_files import ImageError, ImageFiles
try:
    print(len(ImageFiles({str(folder / "train")!r})))
except ImageError as error:
    print(error)
"""
    obey = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    done = subprocess.run([*obey, sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"{folder}/train/a/inner: Permission denied\n", done.stderr


def test_too_few_images_and_classes(tmp_path):
    with pytest.raises(SystemExit, match="has only 8 images"):
        Folder(data_dir=str(draw(tmp_path / "few", count=4)))
    with pytest.raises(SystemExit, match="has the class a only"):
        Folder(data_dir=str(draw(tmp_path / "one", ("a",), count=12)))
    with pytest.raises(SystemExit, match="nowhere/train: No such file"):
        Folder(data_dir=str(tmp_path / "nowhere"))


def test_the_pieces(tmp_path):
    draw(tmp_path)
    check_same_classes(ImageFiles(tmp_path / "train"), ImageFiles(tmp_path / "test"))
    with pytest.raises(ImageError, match="cannot be read as an image"):
        read_image(tmp_path)
