"""Test your project: a killed and resumed run ends with the same weights, and two processes train like one.

    python -m pytest tests/test_my_project.py

Copy this file to tests/ of your project. If necessary, change the constants below. On a CPU this takes 1-2 minutes.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "my.yaml" if (ROOT / "my.yaml").exists() else "laptop"
# Few batches, and some checkpoints.
SHORT = (
    "--accelerator cpu --threads 1 --checkpoint_every 3 --max_epochs 2 --limit_train_batches 12 --limit_val_batches 4"
)
# Flags for one process and for two. Both must give the same global batch. If your data module makes its own loaders,
# the batch size is per process: set "--data.batch_size 32" and "--data.batch_size 16", for example.
ONE, TWO = "", ""
# How far the numbers of two processes may differ. BatchNorm and dropout see half of a batch in each process. If the
# network contains neither, set 1e-3.
TOLERANCE = 0.1


def start(folder, flags, processes=1):
    """A training in a process of its own, or in several."""
    launcher = "" if processes == 1 else f"-m torch.distributed.run --standalone --nproc_per_node {processes}"
    command = f"{launcher} src/train.py fit --run_folder {folder} --config {CONFIG} {SHORT} {flags}"
    with open(f"{folder}.log", "a") as log:
        return subprocess.Popen(
            [sys.executable, *command.split()], cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )


def ends_well(folder, process):
    """What the run has written to its log."""
    code, text = process.wait(600), Path(f"{folder}.log").read_text()
    assert code == 0, text
    return text


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The log of a training that nobody stops."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    return ends_well(folder, start(folder, ONE))


def weights(text):
    """The checksum of the weights, which is the same in all processes."""
    [checksum] = set(re.findall(r"the weights are (\w{16})$", text, re.MULTILINE))
    return checksum


def numbers(text):
    """All numbers in the epoch lines."""
    lines = re.findall(r"epoch: (\d+)/\d+(.*)$", text, re.MULTILINE)
    assert len(lines) == 2, text
    return [float(number) for _, line in lines for number in re.findall(r": (-?\d+\.\d+)", line)]


def test_killed_it_ends_with_the_same_weights(alone, tmp_path):
    folder = tmp_path / "run"
    process = start(folder, ONE)
    while not list(folder.glob("checkpoints/step=*.ckpt")):
        assert process.poll() is None, Path(f"{folder}.log").read_text()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it has ended before it was killed: raise --limit_train_batches"
    text = ends_well(folder, start(folder, ONE))
    assert "going on from" in text
    assert weights(text) == weights(alone)


def test_two_processes_learn_what_one_does(alone, tmp_path):
    folder = tmp_path / "run"
    text = ends_well(folder, start(folder, TWO, processes=2))
    assert weights(text)
    assert numbers(text) == pytest.approx(numbers(alone), rel=TOLERANCE)
