"""What a folder of small files costs on your machine, and what packing, staging and caching save.

python benchmark.py                                      50,000 images, a few minutes, 0.7 GB in ./work
python benchmark.py --images 5000 --seconds 2            quicker
python benchmark.py --work /scratch/me                   on another file system
sudo env "PATH=$PATH" python benchmark.py                the cold column too: only root can empty the system's memory
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torch.utils.data import Dataset, default_collate  # noqa: E402
from torchvision.datasets import MNIST, ImageFolder  # noqa: E402
from torchvision.transforms.functional import pil_to_tensor  # noqa: E402

from src.datasets.cached import CachedDataset, FileCachedDataset  # noqa: E402
from src.datasets.slots import CacheError  # noqa: E402
from src.hdf5.index import PackError  # noqa: E402
from src.hdf5.pack import ImageWriter, find_folder  # noqa: E402
from src.hdf5.reader import HDF5Dataset  # noqa: E402
from src.hdf5.staging import stage  # noqa: E402
from src.hdf5.writer import HDF5Writer  # noqa: E402

BATCH_SIZE = 64
TEST_IMAGES = 1_000
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


class Files(Dataset):
    """The folder, a file an image: uint8 (3, 28, 28) and label."""

    def __init__(self, folder):
        self.files = ImageFolder(folder)

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        image, label = self.files[index]
        return pil_to_tensor(image), label


class GroupAnImage(HDF5Writer):
    """The plainest way to pack: each image has a group of its own."""

    def __init__(self, dataset):
        self.dataset = dataset

    def prepare_globals(self):
        return range(len(self.dataset)), None

    def prepare_group(self, number, context):
        image, label = self.dataset[number]
        return {f"{number:08d}": {"image": image, "label": label}}


class Rows(Dataset):
    """Images in one array, which may be a memory map or a tensor in shared memory."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = self.images[index]
        return image.clone() if isinstance(image, torch.Tensor) else torch.tensor(image), self.labels[index]


def make_files(folder, count):
    """MNIST as small files: train/<digit>/00000.png with `count` images, and some in test/."""
    partial = folder.with_name("files.partial")
    shutil.rmtree(partial, ignore_errors=True)
    for part, number in (("train", count), ("test", TEST_IMAGES)):
        mnist = MNIST(ROOT / "data", train=part == "train", download=True)  # unpacks the archives that are there
        for digit in range(10):
            (partial / part / str(digit)).mkdir(parents=True)
        for index, (image, label) in enumerate(zip(mnist.data[:number], mnist.targets[:number].tolist(), strict=True)):
            Image.fromarray(image.numpy()).save(partial / part / str(label) / f"{index:05d}.png")
    partial.rename(folder)


def forget():
    """Empty the system's memory of files, so that all come from the disk again. True if that was possible."""
    os.sync()
    try:
        DROP_CACHES.write_text("3")
    except OSError:
        return False
    return True


def fetch(dataset, indices):
    """A batch, as a DataLoader gets it."""
    if hasattr(dataset, "__getitems__"):
        return dataset.__getitems__(indices)
    return default_collate([dataset[index] for index in indices])


def images_per_second(dataset, seconds, clock=time.process_time):
    """Batches of random images, in one process, for so many seconds or one epoch.

    What comes from memory is measured in seconds of the processor: other programs count as little as possible.
    """
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    began, done = clock(), 0
    while done < len(order) and clock() - began < seconds:
        batch = order[done : done + BATCH_SIZE]
        fetch(dataset, batch)
        done += len(batch)
    return done / (clock() - began)


def microseconds_per_item(dataset, seconds):
    """One random image after the other, in microseconds of the processor."""
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    began, done = time.process_time(), 0
    while time.process_time() - began < seconds:
        dataset[order[done % len(order)]]
        done += 1
    return (time.process_time() - began) / done * 1e6


def best(function, dataset, seconds, choose):
    """The best of three measurements: what else runs on the machine only makes it slower."""
    return choose(function(dataset, seconds / 3) for _ in range(3))


def measure(name, made_in, paths, make, args):
    """Print a line: number and size of the files, seconds to make them, images/s cold and warm."""
    files = [path for top in paths for path in ([top] if top.is_file() else top.rglob("*")) if path.is_file()]
    size = sum(path.stat().st_blocks for path in files) * 512 / 1e6  # what they take on the disk
    cold = "-"
    if not args.no_cold and forget():
        cold = f"{images_per_second(make(), args.seconds, time.perf_counter):,.0f}"
    dataset = make()
    fetch_all(dataset)
    warm = best(images_per_second, dataset, args.seconds, max)
    made_in = "-" if made_in is None else f"{made_in:.1f}"
    print(f"{name:28} {len(files):7,} {size:7.1f} {made_in:>9} {cold:>9} {warm:>9,.0f}", flush=True)
    return dataset


def fetch_all(dataset):
    for start in range(0, len(dataset), BATCH_SIZE):
        fetch(dataset, range(start, min(start + BATCH_SIZE, len(dataset))))


def timed(function, *arguments):
    """Seconds that a call took."""
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def run(args, work, local):
    print(f"{args.images:,} images of 28 x 28 pixels in batches of {BATCH_SIZE}, one process\n", flush=True)
    files = work / "files"
    made_in = None if files.is_dir() else timed(make_files, files, args.images)
    found = len(list((files / "train").rglob("*.png")))
    if found != args.images:
        sys.exit(f"{files} holds {found} images, not {args.images}: delete it, or give --images {found}")
    for old in ("groups.h5", "groups.json", "digits.h5", "digits.json", "cache.bin"):
        (work / old).unlink(missing_ok=True)

    print(f"{'':28} {'files':>7} {'MB':>7} {'made in':>9} {'images/s':>9} {'images/s':>9}")
    print(f"{'':28} {'':7} {'':7} {'seconds':>9} {'cold':>9} {'warm':>9}")
    train = files / "train"
    plain = measure("folder of files", made_in, [train], lambda: Files(train), args)

    made_in = timed(GroupAnImage(plain).write, work / "groups.h5")
    groups = measure(
        "packed, a group an image",
        made_in,
        [work / "groups.h5", work / "groups.json"],
        lambda: HDF5Dataset(work / "groups.h5"),
        args,
    )

    made_in = timed(ImageWriter(*find_folder(files)).write, work / "digits.h5")
    packed = measure(
        "packed, in blocks",
        made_in,
        [work / "digits.h5", work / "digits.json"],
        lambda: HDF5Dataset(work / "digits.h5", "train"),
        args,
    )

    made_in = timed(stage, work / "digits.h5", local)
    copy = stage(work / "digits.h5", local)  # is there: returns at once
    measure("staged", made_in, [copy.parent], lambda: HDF5Dataset(copy, "train"), args)

    in_memory = CachedDataset(plain, max_bytes=2**30)
    made_in = timed(fetch_all, in_memory)
    warm = best(images_per_second, in_memory, args.seconds, max)
    size = in_memory.slots.path.stat().st_blocks * 512 / 1e6
    print(f"{'cached in memory':28} {'-':>7} {size:7.1f} {made_in:9.1f} {'-':>9} {warm:>9,.0f}", flush=True)

    made_in = timed(lambda: fetch_all(FileCachedDataset(plain, work / "cache.bin")))
    on_disk = measure(
        "cached in a file",
        made_in,
        [work / "cache.bin"],
        lambda: FileCachedDataset(plain, work / "cache.bin"),
        args,
    )

    images = fetch(packed, range(args.images))
    np.save(work / "images.npy", images["image"].numpy())
    labels = images["label"].tolist()
    mapped = Rows(np.load(work / "images.npy", mmap_mode="r"), labels)
    shared = Rows(images["image"].share_memory_(), labels)
    print(f"\n{'one image at a time, warm':28} {'microseconds':>12}")
    for name, dataset in (
        ("file, decoded", plain),
        ("packed, a group an image", groups),
        ("packed, in blocks", packed),
        ("cached in memory", in_memory),
        ("cached in a file", on_disk),
        ("memory map", mapped),
        ("shared tensor", shared),
    ):
        print(f"{name:28} {best(microseconds_per_item, dataset, args.seconds / 2, min):12.1f}", flush=True)
    (work / "images.npy").unlink()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000, help="of MNIST's 60,000 (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "work", help="where the files are made")
    parser.add_argument("--local", type=Path, help="a folder on a local disk (default: the system's temporary one)")
    parser.add_argument("--no_cold", action="store_true", help="also as root: it slows down what else runs")
    args = parser.parse_args()
    if not 100 <= args.images <= 60_000:
        parser.error(f"--images {args.images} is not from 100 to 60000")
    torch.set_num_threads(1)
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.local) as local:
        try:
            run(args, work, Path(local))
        except (PackError, CacheError) as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
