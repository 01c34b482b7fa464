"""Step images: the data sets that the other steps read."""

import io
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from results import ROOT, Results, arguments


def decode(content):
    """The bytes of an image file as uint8 (32, 32, 3)."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def decode_archive(archive, folder):
    """An archive with {train,test}/CLASS/* as {train,test}_{images,labels}.npy in `folder`. Returns the images' number.

    The classes are numbered in the order of their names, as in CIFAR-10. A fixed permutation mixes them.
    """
    found = {"train": [], "test": []}  # (class, name, bytes)
    with tarfile.open(archive) as tar:
        for member in filter(tarfile.TarInfo.isfile, tar):
            part, name, file = PurePosixPath(member.name).parts[-3:]
            found[part].append((name, file, tar.extractfile(member).read()))
    for part, files in found.items():
        files.sort()
        files = [files[place] for place in np.random.RandomState(0).permutation(len(files))]
        classes = sorted({name for name, _, _ in files})
        labels = [classes.index(name) for name, _, _ in files]
        with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
            images = list(pool.map(decode, [content for _, _, content in files]))
        np.save(folder / f"{part}_images.npy", np.stack(images))
        np.save(folder / f"{part}_labels.npy", np.array(labels, dtype=np.int64))
    return sum(map(len, found.values()))


def main():
    args = arguments(__doc__)
    results = Results(args.out, "Data sets: seconds until each was ready.")
    for name in ("mnist", "colour-mnist"):
        started = time.perf_counter()
        subprocess.run([sys.executable, ROOT / "data/get_data.py", name], check=True)
        results.add(name, seconds=time.perf_counter() - started)
    for archive in sorted(Path(os.environ["PREPARED"]).glob("*.tar.xz"))[:1]:
        started = time.perf_counter()
        count = decode_archive(archive, args.work)
        results.add(f"{archive.name}, {count} images", seconds=time.perf_counter() - started)


if __name__ == "__main__":
    main()
