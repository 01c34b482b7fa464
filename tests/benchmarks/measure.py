"""What every table needs: the machine, rounds, processes with their memory, and numbers with their spread."""

import importlib.metadata
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from lesson import Lesson, processes_with
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["torch", "torchvision", "lightning", "torchmetrics"]
loads = []  # the load average before each measurement
MARK = "BENCHMARK_PROCESS"  # in the environment of whatever a command starts, also of what outlives it


@dataclass
class Table:
    """rows: {row: {column: [a number for each round]}}. The caption says what is measured, and in what units."""

    caption: str
    rows: dict = field(default_factory=dict)
    seeds: str = ""

    def add(self, row, **columns):
        """Add the numbers of one round; underscores in the names of columns become spaces."""
        for column, value in columns.items():
            self.rows.setdefault(row, {}).setdefault(column.replace("_", " "), []).append(value)

    def mean(self, row, column):
        return statistics.mean(self.rows[row][column])


@dataclass
class Printed:
    """What a script of a lesson has printed: its README shows it as it is."""

    text: str


@dataclass
class Target:
    sentence: str
    value: float
    limit: float
    at_least: bool = False

    def __str__(self):
        met = self.value >= self.limit if self.at_least else self.value <= self.limit
        bound = f"at {'least' if self.at_least else 'most'} {self.limit:g}"
        return f"{'met   ' if met else 'MISSED'}  {self.sentence}: {self.value:.1f}, {bound}"


def machine():
    """Where and with what this is measured, in words."""
    names = [line.split(":")[1].strip() for line in lines("/proc/cpuinfo") if line.startswith("model name")]
    memory = [int(line.split()[1]) / 2**20 for line in lines("/proc/meminfo") if line.startswith("MemTotal")]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    hardware = f"{cores} cores of {names[0] if names else platform.machine()}"
    if memory:
        hardware += f", {memory[0]:.0f} GB"
    if shutil.which("nvidia-smi"):
        ask = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        hardware += f", {', '.join(subprocess.run(ask, stdout=subprocess.PIPE, text=True).stdout.splitlines())}"
    return ", ".join([hardware, platform.system(), f"Python {platform.python_version()}", *versions])


def lines(path):
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def rounds(cases, count, seed=0):
    """Yield (number of the round, case): in each round every case once, in random order.

    So a machine that is busy for a while is not busy for one of the cases only.
    """
    chance = random.Random(seed)
    order = [(number, case) for number in range(count) for case in chance.sample(list(cases), len(cases))]
    for number, case in tqdm(order, leave=False, disable=None):  # None: only on a terminal
        loads.append(os.getloadavg()[0])
        yield number, case


@dataclass
class Done:
    seconds: float
    megabytes: float  # the most that all of its processes had at one time
    output: str


def run(command, folder, **environment):
    """Type a command into a shell, wait until all that it has started has ended, in the background too.

    Raises:
        SystemExit: it failed; with what it said
    """
    mark = uuid.uuid4().hex
    environment = os.environ | {MARK: mark} | environment
    peak, ended = [0.0], threading.Event()

    def watch():
        while not ended.wait(0.2):
            peak[0] = max(peak[0], megabytes_of(mark))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    process = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seconds = time.perf_counter() - start
    while processes_with(f"{MARK}={mark}"):
        time.sleep(0.1)
    ended.set()
    watcher.join()
    if process.returncode:
        sys.exit(f"{command} ended with exit code {process.returncode}:\n{process.stdout}")
    return Done(seconds, peak[0], process.stdout)


def own_benchmark(name, command):
    """What a lesson's own benchmark prints, in a copy of its folder."""
    with tempfile.TemporaryDirectory() as parent:
        lesson = Lesson(name, Path(parent))
        Path(parent, "src").symlink_to(ROOT / "src")  # where lessons from 9 on find it
        assert command in lesson.commands, f"{command} does not stand in the README of {name}"
        return Printed(run(command, lesson.folder).output)


def megabytes_of(mark):
    """Memory of all these processes together. PSS: a page that n of them share counts as 1/n in each."""
    total = 0
    for folder in processes_with(f"{MARK}={mark}"):
        try:
            lines_of = (folder / "smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines_of if line.startswith("Pss:"))
    return total * 1024 / 1e6
