"""A job that is killed while it saves has no checkpoint any more: the old one is gone, the new one is half there.

python lessons/09-surviving-preemption/exercises/2_torn.py

Repair save(): whenever the process is killed, a complete checkpoint has the name. The kill is -9: nobody can catch it.
"""

import multiprocessing
import tempfile
import time
from pathlib import Path

import torch


def save(state, path):
    """Replace the checkpoint at path by this state."""
    torch.save(state, path)


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
