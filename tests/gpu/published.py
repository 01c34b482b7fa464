"""Step published: speed runs as their authors published them, if prepare.sh was given any.

A speed run is a program with a function main(run) that trains once and returns the test accuracy. It finds the images
in cifar10/train.pt and cifar10/test.pt: {"images": uint8 (N, 32, 32, 3), "labels": int64 (N), "classes": names}.
"""

import importlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from results import ROOT, Results, arguments

REPEATS = 4


def write_images(work, smoke):
    """Write both files. Returns what to call the data set."""
    folder = work / "cifar10"
    folder.mkdir(exist_ok=True)
    copied, name = work, "CIFAR-10, JPEG copy"
    if not (copied / "train_images.npy").exists():
        copied, name = None, "CIFAR-10"
    for part in ("train", "test"):
        if copied:
            images, labels = (np.load(copied / f"{part}_{kind}.npy") for kind in ("images", "labels"))
            classes = [str(number) for number in range(10)]
        else:
            from torchvision.datasets import CIFAR10

            dataset = CIFAR10(ROOT / "data", train=part == "train")
            images, labels, classes = dataset.data, np.array(dataset.targets), dataset.classes
        content = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels), "classes": classes}
        torch.save(content, folder / f"{part}.pt")
    return name


def main():
    args = arguments(__doc__)
    programs = sorted(Path(os.environ["PREPARED"]).glob("*.py"))
    results = Results(args.out, "")
    if not programs:
        results.note("There are no speed runs in the prepared folder.")
        return
    if not (args.work / "train_images.npy").exists() and not (ROOT / "data/cifar-10-batches-py").is_dir():
        results.note("CIFAR-10 is not here.")
        return
    name = write_images(args.work, args.smoke)
    results.content["caption"] = (
        f"Speed runs as published, {name}. Seconds per call of main(), with its evaluations; accuracy on the test "
        "images in percent, by the program's own method. The first call also warms up."
    )
    os.chdir(args.work)
    sys.path.insert(0, os.environ["PREPARED"])
    for program in programs:
        main_of_it = importlib.import_module(program.stem).main
        for run in range(1 if args.smoke else REPEATS):
            started = time.perf_counter()
            accuracy = main_of_it(run)
            results.add(program.stem, seconds=time.perf_counter() - started, accuracy=100 * accuracy)


if __name__ == "__main__":
    main()
