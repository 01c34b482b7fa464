"""Step published: speed runs as their authors published them, if prepare.sh was given any.

A speed run is a program with a function main(run) that trains once and returns the test accuracy. It finds the images
in cifar10/train.pt and cifar10/test.pt: {"images": uint8 (N, 32, 32, 3), "labels": int64 (N), "classes": names}.
"""

import importlib
import os
import sys
import time
from pathlib import Path

from results import Results, arguments  # isort: skip  (it makes src/ importable)

import torch
from copied_cifar10 import choose

from src.datasets.cifar10 import CIFAR10

REPEATS = 4


def write_images(data, folder):
    """Write both files with the images of a data module."""
    folder.mkdir(exist_ok=True)
    for part in ("train", "test"):
        images, labels = data.load(train=part == "train")
        content = {"images": images.permute(0, 2, 3, 1).contiguous(), "labels": labels, "classes": data.classes}
        torch.save(content, folder / f"{part}.pt")


def main():
    args = arguments(__doc__)
    programs = sorted(Path(os.environ["PREPARED"]).glob("*.py"))
    results = Results(args.out, "")
    if not programs:
        results.note("There are no speed runs in the prepared folder.")
        return
    data, name = choose(args.work)
    if not isinstance(data, CIFAR10):
        results.note("CIFAR-10 is not here.")
        return
    write_images(data, args.work / "cifar10")
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
