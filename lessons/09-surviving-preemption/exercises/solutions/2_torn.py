"""Solution: write under another name, then rename. On one file system renaming happens or does not, nothing in between.

python lessons/09-surviving-preemption/exercises/solutions/2_torn.py

fsync() is for a machine that loses its power: without it the name may be on the disk before the content is.
"""

import multiprocessing
import os
import tempfile
import time
from pathlib import Path

import torch


def save(state, path):
    """Replace the checkpoint at path by this state."""
    partial = path.with_name(f"{path.name}.partial")
    with open(partial, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_for_ever(path):
    for step in range(10**9):
        save({"step": step, "weights": torch.zeros(5_000_000)}, path)


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork must not need the threads of its parent
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "last.ckpt")
        for attempt in range(1, 6):
            save({"step": 0, "weights": torch.zeros(5_000_000)}, path)
            process = multiprocessing.Process(target=save_for_ever, args=(path,))
            process.start()
            time.sleep(0.3 + attempt / 50)
            process.kill()
            process.join()
            try:
                print(f"killed: the checkpoint is of step {torch.load(path)['step']}")
            except Exception as error:  # each way to be torn has its own error
                print(f"killed: the checkpoint cannot be read, {type(error).__name__}")
