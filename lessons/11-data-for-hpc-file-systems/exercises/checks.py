"""Are the exercises of this lesson right? See lessons/check.py."""

import multiprocessing
import pickle
import resource
import signal
import sys
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader

torch.set_num_threads(1)  # a fork must not need the threads of its parent
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def open_files():
    return h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)


def handle(exercise):
    images = np.random.default_rng(0).integers(256, size=(40, 28, 28), dtype=np.uint8)
    with h5py.File("digits.h5", "w") as file:
        file["images"] = images
    digits = exercise.Digits("digits.h5")
    if len(digits) != 40 or open_files():
        return (
            "the file is still open after __init__() and len(): workers would inherit it. What could be kept instead?"
        )
    if not np.array_equal(digits[7], images[7]):
        return "item 7 is not image 7"
    try:
        copy = pickle.loads(pickle.dumps(digits))
    except TypeError as error:
        return f"once it has been read from, it cannot be handed to a worker any more: {error}"
    if not np.array_equal(copy[9], images[9]):
        return "a copy in another process reads something else"
    found = torch.cat(list(DataLoader(digits, batch_size=4, num_workers=2)))
    if not np.array_equal(found.numpy(), images):
        return "two workers together do not read what is in the file"


def pack_and_be_killed(pack, numbers, path, size):
    """The system kills this process when a file of it has more than so many bytes: for real, and in the middle."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    pack(numbers, path)


def half(exercise):
    path, numbers = Path("images.h5"), list(range(100))
    for size in (0, 100_000, 300_000):
        process = CONTEXT.Process(target=pack_and_be_killed, args=(exercise.pack, numbers, path, size))
        process.start()
        process.join()
        if path.exists():
            return f"killed after {size} bytes, and the file has its final name. When may it have it?"
    exercise.pack(numbers, path)
    if not path.exists():
        return "after a killed attempt the next one does not pack"
    with h5py.File(path) as file:
        if file["images"].shape != (100, 64, 64) or file["images"][:, 0, 0].tolist() != numbers:
            return "the images in the file are not those that were read"
    before = path.stat().st_mtime_ns
    exercise.pack(numbers, path)
    if path.stat().st_mtime_ns != before:
        return "what is done already is packed once more"
