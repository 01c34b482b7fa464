"""How long does a training wait for its data? Measured in the lessons as they are, without a line of it in them.

Python imports this file when it starts, because lessons.py puts its folder into PYTHONPATH. It counts, between the
batches of a training: all of the time, the time in which the next batch was fetched, and the time in which a batch was
changed and moved to where the network is. When the process ends it writes that to $BENCHMARK_DATA_CLOCK/<pid>.json.
"""

import atexit
import importlib.abc
import importlib.util
import json
import os
import sys
import time

total = {"steps": 0, "seconds": 0.0, "data": 0.0}
last = [None, 0.0]  # the loader's iterator, when it gave its last batch


def write():
    with open(os.path.join(os.environ["BENCHMARK_DATA_CLOCK"], f"{os.getpid()}.json"), "w") as file:
        json.dump(total, file)


def clock_loader(module):
    import torch

    iterator = module._BaseDataLoaderIter
    fetch = iterator.__next__

    def timed(self):
        start = time.perf_counter()
        batch = fetch(self)
        if torch.is_grad_enabled():  # not in a validation or a test
            now = time.perf_counter()
            if last[0] is self:
                total["steps"] += 1
                total["seconds"] += now - last[1]
                total["data"] += now - start
            elif last[0] is None:
                atexit.register(write)  # only now: what is registered late is called early, and lesson 8 ends in _exit
            last[:] = self, now
        return batch

    iterator.__next__ = timed


def clock_transfer(module):
    import torch

    move = module.Strategy.batch_to_device

    def timed(self, *arguments, **more):
        start = time.perf_counter()
        batch = move(self, *arguments, **more)
        if torch.is_grad_enabled():
            total["data"] += time.perf_counter() - start
        return batch

    module.Strategy.batch_to_device = timed


CLOCKS = {"torch.utils.data.dataloader": clock_loader, "lightning.pytorch.strategies.strategy": clock_transfer}


class Finder(importlib.abc.MetaPathFinder):
    """Puts a clock into these modules when they have been imported."""

    def find_spec(self, name, path, target=None):
        if name not in CLOCKS:
            return None
        sys.meta_path.remove(self)  # so that the others look for it
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        load = spec.loader.exec_module

        def load_and_clock(module):
            load(module)
            CLOCKS[name](module)

        spec.loader.exec_module = load_and_clock
        return spec


if "BENCHMARK_DATA_CLOCK" in os.environ:
    sys.meta_path.insert(0, Finder())
