"""1, 2 and 4 processes with the last stage's data, network and Trainer: how fast, and what a step is made of.

Strong scaling: the batch of all processes together stays. Weak scaling: that of each stays. In every second block of
steps the gradients stay at home (what no_sync() does): what a step is shorter then is communication, waiting for each
other included. On CPUs, with gloo.
"""

import json
import logging
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loops.optimization.automatic import Closure
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from measure import Table, own_benchmark, rounds
from steps import MadeUpImages, adam
from stopwatch import Stopwatch
from torch.utils.data.dataloader import _BaseDataLoaderIter

from src.models.classifier import Classifier
from src.settings import Settings
from src.train import attach_optimizer, make_trainer

PROCESSES = [1, 2, 4]
# network, images, batch of one process, steps
CASES = {"mlp, batch 64": ("mlp", [1, 28, 28], 64, 400), "cnn, batch 512": ("cnn", [3, 32, 32], 512, 40)}
ROUNDS = 3
BLOCK, WARM_UP = 10, 10  # steps
FORKS = multiprocessing.get_context("forkserver")  # they have torch and Lightning imported


class Blocks(L.Callback):
    """Switches communication on and off, and notes how the clocks stand when a step begins."""

    def __init__(self, watch):
        self.watch = watch
        self.notes = []  # for each step: when it began, whether it communicates, seconds of each part until then

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        together = batch_idx // BLOCK % 2 == 0
        if trainer.world_size > 1:
            trainer.strategy.model.require_backward_grad_sync = together  # what no_sync() sets
        self.notes.append((time.perf_counter(), together, dict(self.watch.seconds)))

    def medians(self, world_size):
        """Milliseconds of a step, in all and of each part."""
        found = {True: [], False: []}
        for number, (note, after) in enumerate(zip(self.notes, self.notes[1:], strict=False)):
            if number % BLOCK and number > WARM_UP:  # not the first of a block: it meets the others again
                parts = {part: after[2][part] - note[2].get(part, 0.0) for part in ("computing", "data")}
                found[note[1]].append({"step": after[0] - note[0]} | parts)

        def median(part, *kinds):
            return 1000 * statistics.median(step[part] for kind in kinds for step in found[kind])

        step, data = median("step", True), median("data", True, False)
        computing = median("computing", False)
        communication = step - median("step", False) if world_size > 1 else 0.0
        rest = step - computing - communication - data
        return {"step": step, "computing": computing, "communication": communication, "data": data, "the rest": rest}


def process(rank, world_size, port, case, path):
    """One of the processes; the first writes what a step took to that file."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    ranks |= {"GROUP_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in ranks.items()})
    rank_zero_only.rank = rank
    network, shape, batch_size, steps = case
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # else Lightning sets another number, as in src/train.py
    watch = Stopwatch()
    blocks = Blocks(watch)
    for name in ("pytorch", "fabric"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    settings = Settings(batch_size=batch_size, max_epochs=1, accelerator="cpu", limit_val_batches=1)
    module, data = Classifier(shape, 10, network), MadeUpImages(shape, batch_size, steps)
    trainer = make_trainer(settings, Path(path).parent, None, [], [blocks], {"num_sanity_val_steps": 0}, module)
    attach_optimizer(module, adam, None, "epoch")
    watch.clock(_BaseDataLoaderIter, "__next__", "data")
    watch.clock(trainer.strategy, "batch_to_device", "data")
    watch.clock(torch.optim.Adam, "step", "computing")
    watch.clock(Closure, "__call__", "the rest")  # the optimizer calls it: in it are these two, and Lightning's own
    watch.clock(trainer.strategy, "training_step", "computing")
    watch.clock(trainer.strategy, "backward", "computing")
    trainer.fit(module, data)
    if rank == 0:
        Path(path).write_text(json.dumps(blocks.medians(world_size)))
    os._exit(0)  # at once: the threads of gloo sometimes abort a process that Python takes down


def step(world_size, case):
    """Milliseconds of a step and its parts with so many processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/step.json"
        started = [
            FORKS.Process(target=process, args=(rank, world_size, port, case, path)) for rank in range(world_size)
        ]
        for each in started:
            each.start()
        for each in started:
            each.join()
        assert all(each.exitcode == 0 for each in started), "one of the processes failed: see above"
        return json.loads(Path(path).read_text())


def measure(smallest):
    FORKS.set_forkserver_preload(["processes"])
    turns, cases, most = (1, {"mlp, batch 64": ("mlp", [1, 28, 28], 64, 60)}, 2) if smallest else (ROUNDS, CASES, 4)
    table = Table(
        "Strong scaling (the batch of all processes together stays) and weak (that of each stays), on one machine, "
        "without GPUs, one thread a process. Images a second; how many times those of one process; milliseconds of a "
        "step and of its parts. Communication is what a step gets shorter by when the gradients stay at home."
    )
    rows = {
        f"{name}, {kind}, {count} process{'es' if count > 1 else ''}": (name, kind, count)
        for name in cases
        for kind in ("strong", "weak")
        for count in PROCESSES
        if count <= most
    }
    table.rows = {row: {} for row in rows}
    for _, row in rounds(rows, turns):
        name, kind, count = rows[row]
        network, shape, batch_size, steps = cases[name]
        batch_size *= count if kind == "weak" else 1
        parts = step(count, (network, shape, batch_size, steps))
        table.add(row, images_a_second=1000 * batch_size / parts["step"])
        table.add(row, times_one_process=1000 * batch_size / parts["step"])  # is divided below
        for part, value in parts.items():
            table.add(row, **{f"{part}, ms": value})
    one = {row: list(table.rows[row]["images a second"]) for row in rows}
    for row, (name, kind, _) in rows.items():
        alone = one[f"{name}, {kind}, 1 process"]
        table.rows[row]["times one process"] = [rate / base for rate, base in zip(one[row], alone, strict=True)]
    sections = {"scaling": table}
    if not smallest:
        sections["scaling-8"] = own_benchmark("08-distributed-training", "python scaling.py")
    return sections, []
