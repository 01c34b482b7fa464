"""Make colour-mnist: MNIST's digits in any colour, size and place, on textures; 32x32 RGB, as large as CIFAR-10.

    python data/get_data.py colour-mnist                             makes the data set
    python data/colour_mnist.py --picture .img/colour-mnist.png      draws some of its test images

It stands in for CIFAR-10 where there is no network: ten classes, 50,000 training and 10,000 test images. Every image
shows one digit of MNIST that no other image shows; training images are made from MNIST's training set only, test images
from its test set only. What tells the digit is its shape alone: it may be lighter or darker than what is around it, its
colours are random, and the background has gradients, stripes, blobs and pieces of other digits, all weaker than the
digit. A network that only knows which pixel is bright learns little from it.

Everything is done in integers, from the raw 64-bit numbers of one generator, so that every machine and every version of
numpy makes the same bytes. Fixed-point numbers say in their name how many bits stand after the point: `x8` is x * 256.
"""

import argparse
import io
from pathlib import Path

import numpy as np

SIDE = 32  # pixels of an image
BATCH = 500  # images made at a time; part of the recipe, like the seed: another number makes another data set
SEED = 20
SPLITS = {"train": (50_000, "train"), "test": (10_000, "t10k")}  # images, prefix of MNIST's files

SCALE = (0.65, 1.0)  # of MNIST's 28 pixels, in which a digit is 20 pixels high
SHEAR = 0.25  # at most, in either direction; both together turn the digit a little
CONTRAST = (80, 150)  # difference of luminance between digit and background, of 255
LUMINANCE = (30, 225)  # of either
CHROMA = 60  # how far red, green and blue go from grey at most
TEXTURE = 22  # how far each of the textures goes from the mean at most
NOISE = 6

PICTURE_ROWS = 5


class Random:
    """Random integers from a stream that numpy promises never to change, unlike the methods of its Generator."""

    def __init__(self, *seed):
        self.bits = np.random.PCG64(seed)

    def integers(self, low, high, *shape):
        """int32 of the given shape, from `low` to `high`, both included."""
        raw = self.bits.random_raw(int(np.prod(shape))) >> np.uint64(32)
        scaled = (raw * np.uint64(high - low + 1)) >> np.uint64(32)
        return (scaled.astype(np.int32) + np.int32(low)).reshape(shape)


def fixed(number, bits):
    """A constant as a fixed-point integer."""
    return round(number * (1 << bits))


def interpolate(images, y8, x8):
    """Read images between their pixels, bilinearly.

    images: (n, h, w) int32, 0 to 255; y8, x8: (n, ...) int32, where to read, in pixels * 256, at least 0 and
    below h - 1 and w - 1. Returns int32 in the shape of y8.
    """
    n, h, w = images.shape
    flat = images.reshape(-1)
    y, x = y8 >> 8, x8 >> 8
    fy, fx = y8 & 255, x8 & 255
    index = np.arange(n, dtype=np.int32).reshape(n, *[1] * (y8.ndim - 1)) * (h * w) + y * w + x
    upper = flat[index] * (256 - fx) + flat[index + 1] * fx
    lower = flat[index + w] * (256 - fx) + flat[index + w + 1] * fx
    return (upper * (256 - fy) + lower * fy) >> 16


def place(digits, random):
    """Scale, shear and move digits; (n, 28, 28) uint8 to (n, 32, 32) int32, 0 (background) to 255 (ink)."""
    n = len(digits)
    padded = np.zeros((n, SIDE, SIDE), np.int32)  # a digit in a frame of two empty pixels
    padded[:, 2:30, 2:30] = digits
    scale8 = random.integers(fixed(SCALE[0], 8), fixed(SCALE[1], 8), n, 1, 1)
    shear8 = random.integers(-fixed(SHEAR, 8), fixed(SHEAR, 8), 2, n, 1, 1)
    # Up to three quarters of the way to where the digit, 20 pixels * scale, would leave the image.
    room8 = (fixed(15.5, 8) - 10 * scale8) * 3 // 4
    centre8 = fixed(15.5, 8) + ((room8 * random.integers(-256, 256, 2, n, 1, 1)) >> 8)

    y8, x8 = np.mgrid[:SIDE, :SIDE].astype(np.int32)[:, None] * 256 - centre8
    y8, x8 = y8 + ((shear8[0] * x8) >> 8), x8 + ((shear8[1] * y8) >> 8)
    y8, x8 = y8 * 256 // scale8 + fixed(15.5, 8), x8 * 256 // scale8 + fixed(15.5, 8)
    inside = [np.clip(c, 0, fixed(SIDE - 1, 8) - 1) for c in (y8, x8)]
    return interpolate(padded, *inside)


def textures(digits, random):
    """Gradients, stripes, blobs and pieces of other digits: (n, 32, 32, 3) int32, around 0."""
    n = len(digits)
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.int32)[:, None] * 2 - (SIDE - 1)  # -31 to 31

    slope = random.integers(-TEXTURE, TEXTURE, 2, n, 1, 1)
    gradient = (slope[0] * y + slope[1] * x) // 62

    step = random.integers(-40, 40, 2, n, 1, 1)
    phase = random.integers(0, 511, n, 1, 1)
    stripes = np.abs(((step[0] * y + step[1] * x + phase) & 511) - 256) - 128  # a triangle wave, -128 to 128
    stripes = stripes * random.integers(0, TEXTURE, n, 1, 1) // 128

    corners = random.integers(0, 255, n, 6, 6)
    grid8 = np.broadcast_to(np.arange(SIDE, dtype=np.int32) * 40, (n, SIDE, SIDE))  # 31 * 40 / 256: just below 5
    blobs = (interpolate(corners, grid8.transpose(0, 2, 1), grid8) - 128) * TEXTURE // 128

    # Another digit, moved so far that mostly a part of it is left.
    pieces = place(np.roll(digits, 1, axis=0), random)
    shift = random.integers(8, SIDE - 8, 2)
    pieces = np.roll(pieces, (shift[0], shift[1]), axis=(1, 2))
    pieces = pieces * random.integers(-TEXTURE, TEXTURE, n, 1, 1) // 255

    noise = random.integers(-NOISE, NOISE, n, SIDE, SIDE, 3)
    weight8 = random.integers(128, 256, n, 1, 1, 3)
    return noise + (((gradient + stripes + blobs + pieces)[..., None] * weight8) >> 8)


def colour(luminance, random):
    """A random colour of each luminance: (n,) to (n, 1, 1, 3), int32."""
    offset = random.integers(-CHROMA, CHROMA, len(luminance), 3)
    grey = (offset * np.array([77, 150, 29], np.int32)).sum(1, dtype=np.int32) >> 8
    return (offset + (luminance - grey)[:, None])[:, None, None]


def make_images(digits, random):
    """(n, 28, 28) uint8 digits of MNIST to (n, 32, 32, 3) uint8 images."""
    n = len(digits)
    ink = place(digits, random)[..., None]
    contrast = random.integers(*CONTRAST, n)
    low = LUMINANCE[0] + (((LUMINANCE[1] - LUMINANCE[0] - contrast) * random.integers(0, 256, n)) >> 8)
    lighter = random.integers(0, 1, n)
    paper = colour(low + (1 - lighter) * contrast, random)
    pen = colour(low + lighter * contrast, random)
    images = paper + (((pen - paper) * ink) >> 8) + textures(digits, random)
    return np.clip(images, 0, 255).astype(np.uint8)


def batch_random(split, start):
    """The random numbers of the batch that starts at image `start`: no batch depends on another."""
    return Random(SEED, list(SPLITS).index(split), start)


def read_idx(path, header, *shape):
    """An IDX file of MNIST without its header, as uint8 of the given shape."""
    return np.frombuffer(path.read_bytes(), np.uint8, offset=header).reshape(shape)


def npy_blocks(raw, part, show_progress):
    """Yield the bytes of one .npy file.

    raw: folder of MNIST's unpacked files; part: {train,test}_{images,labels}; show_progress: called with a line.
    Images are (n, 32, 32, 3) uint8, labels (n,) int64, as torch.nn.functional.cross_entropy wants them.
    """
    split, kind = part.split("_")
    n, prefix = SPLITS[split]
    labels = read_idx(raw / f"{prefix}-labels-idx1-ubyte", 8, -1)[:n].astype("<i8")
    dtype, shape = ("|u1", (n, SIDE, SIDE, 3)) if kind == "images" else ("<i8", (n,))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    yield header.getvalue()
    if kind == "labels":
        yield labels.tobytes()
        return
    digits = read_idx(raw / f"{prefix}-images-idx3-ubyte", 16, -1, 28, 28)
    for start in range(0, n, BATCH):
        show_progress(f"colour-mnist: {part} {start} of {n}")
        yield make_images(digits[start : start + BATCH], batch_random(split, start)).tobytes()


def save_picture(path):
    """Draw one test image of each digit side by side, in PICTURE_ROWS rows, as a PNG with transparent gaps."""
    from PIL import Image

    raw = Path(__file__).resolve().parent / "MNIST" / "raw"
    prefix = SPLITS["test"][1]
    labels = read_idx(raw / f"{prefix}-labels-idx1-ubyte", 8, -1)[:BATCH]
    digits = read_idx(raw / f"{prefix}-images-idx3-ubyte", 16, -1, 28, 28)[:BATCH]
    images = make_images(digits, batch_random("test", 0)).repeat(2, axis=1).repeat(2, axis=2)
    side = 2 * SIDE + 4
    sheet = np.zeros((PICTURE_ROWS * side - 4, 10 * side - 4, 4), np.uint8)
    for label in range(10):
        for row, image in enumerate(images[labels == label][:PICTURE_ROWS]):
            tile = sheet[row * side :, label * side :][: 2 * SIDE, : 2 * SIDE]
            tile[..., :3], tile[..., 3] = image, 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw some test images of colour-mnist.")
    parser.add_argument("--picture", type=Path, required=True, help="the PNG file to write")
    picture = parser.parse_args().picture
    if picture.suffix != ".png":
        parser.error(f"--picture {str(picture)[:200]!r}: give the path of a .png file")
    try:
        save_picture(picture)
    except (OSError, ValueError) as error:
        parser.error(f"{error}: run `python data/get_data.py mnist` first, or name another file")
