"""The command for GPU machines: it rehearses on the CPU, and says what is wrong before it starts."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from lesson import REPOSITORY, assert_one_sentence, processes_with, readme_commands, until
from PIL import Image

SLOW = pytest.mark.slow
SPEED_RUN = """
import torch

def main(run):
    images = torch.load("cifar10/train.pt", weights_only=True)["images"]
    assert images.shape == (200, 32, 32, 3) and images.dtype == torch.uint8
    return 0.5
"""


def typed(command, folder, **environment):
    """Type a command in this folder. Paths below tests/ are those of the repository."""
    command = command.replace("tests/gpu", str(REPOSITORY / "tests/gpu"))
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=os.environ | environment, capture_output=True, text=True
    )


def make_archive(path):
    """A tiny CIFAR-10 as image files: 200 images for training, 100 for the test."""
    chance = np.random.default_rng(0)
    with tarfile.open(path, "w:xz") as tar:
        for part, count in (("train", 20), ("test", 10)):
            for name in ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"):
                for number in range(count):
                    stream = io.BytesIO()
                    Image.fromarray(chance.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG")
                    member = tarfile.TarInfo(f"{part}/{name}/{number:04}.jpg")
                    member.size = stream.tell()
                    stream.seek(0)
                    tar.addfile(member, stream)


def test_the_commands_of_the_readme():
    assert readme_commands(REPOSITORY / "tests/gpu") == [
        "bash tests/gpu/prepare.sh tests/gpu/prepared",
        "bash tests/gpu/run.sh results",
    ]


STEPS = ["images", "tests", "record", "cost", "throughput", "published"]
SHORT = ["images", "cost", "published"]


@pytest.mark.parametrize(
    "steps",
    [pytest.param(SHORT, id="short", marks=SLOW), pytest.param(STEPS, id="complete", marks=pytest.mark.campaign)],
)
def test_the_rehearsal(steps, tmp_path):
    """These steps end well on the CPU, with what prepare.sh has prepared; nothing is left behind."""
    make_archive(tmp_path / "images.tar.xz")
    (tmp_path / "speed_run.py").write_text(SPEED_RUN)
    done = typed("bash tests/gpu/prepare.sh prepared images.tar.xz speed_run.py", tmp_path)
    assert done.returncode == 0, done.stderr
    [size] = re.findall(r"^prepared: 10 wheels and 2 files, ([\d.]+) MiB$", done.stdout, re.MULTILINE)
    assert 1 < float(size) < 45
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    only = "" if steps == STEPS else f"--only {' '.join(steps)}"  # as typed: all of them
    command = f"bash tests/gpu/run.sh results --smoke --minutes 30 --prepared prepared {only}"
    done = typed(command, tmp_path, PYTHON=sys.executable, TMPDIR=str(temporary))
    log = tmp_path / "results/log.txt"
    assert done.returncode == 0, done.stdout + done.stderr + (log.read_text() if log.exists() else "")
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("results/*.json")}
    assert set(found) == {"machine", *steps}
    assert {found[step]["state"] for step in steps} == {"done"}
    assert "images.tar.xz, 300 images" in found["images"]["rows"]
    if steps == STEPS:
        assert len(found["tests"]["rows"]) == 26 and not found["tests"]["notes"]
        assert "CIFAR-10, JPEG copy" in found["record"]["caption"]
        runs = {row: len(columns["accuracy"]) for row, columns in found["record"]["rows"].items()}
        assert runs == {"compiled": 1, "not compiled": 1}
    assert found["published"]["rows"]["speed_run"]["accuracy"] == [50.0]
    table = (tmp_path / "results/table.md").read_text()
    assert table.strip() in done.stdout
    assert "A rehearsal on the CPU: the numbers mean nothing." in table
    assert all(f"| {step} | done |" in table for step in steps)
    assert not list(temporary.glob("gpu-run-*"))
    assert not processes_with(str(temporary))


@pytest.mark.campaign
def test_an_interruption_loses_nothing(tmp_path):
    """After a signal no process is left; --skip-done continues with the measurement that was interrupted."""
    flags = "results --smoke --only record --minutes 20 --prepared none"
    record = tmp_path / "results/record.json"
    command = ["bash", REPOSITORY / "tests/gpu/run.sh", *flags.split()]
    environment = os.environ | {"PYTHON": sys.executable, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        until(lambda: record.exists())  # the first of two measurements is in it
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    time.sleep(0.1)
    assert not processes_with(str(tmp_path))
    assert not list(tmp_path.glob("gpu-run-*"))
    first = json.loads(record.read_text())
    assert (list(first["rows"]), first["state"]) == (["compiled"], "interrupted")
    done = typed(f"bash tests/gpu/run.sh {flags} --skip-done", tmp_path, PYTHON=sys.executable)
    assert done.returncode == 0, done.stdout + done.stderr
    second = json.loads(record.read_text())
    assert second["state"] == "done"
    assert second["rows"]["compiled"] == first["rows"]["compiled"]
    assert second["rows"]["not compiled"]


def test_limits(tmp_path):
    command = "bash tests/gpu/run.sh out --smoke --only images tests --minutes 0.1"
    done = typed(command, tmp_path, PYTHON=sys.executable)
    assert done.returncode == 1
    assert re.search(r"^images +no time left$", done.stdout, re.MULTILINE)
    assert done.stderr.startswith("not done: images, tests; ")
    machine = tmp_path / "out/machine.json"
    machine.write_text(machine.read_text().replace('"smoke": true', '"smoke": false'))
    mixed = typed(f"{command} --skip-done", tmp_path, PYTHON=sys.executable)
    assert mixed.returncode == 1
    assert "are from a different machine or setting: name a new folder" in mixed.stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run.sh", ["OUT"]),
        ("run.sh out", ["torch sees no GPU here", "--smoke"]),
        ("run.sh out --only nonsense", ["nonsense", "record"]),
        ("run.sh full", ["full is not empty", "--skip-done"]),
        ("prepare.sh", ["usage: bash tests/gpu/prepare.sh DIR"]),
        ("prepare.sh --help", ["usage: bash tests/gpu/prepare.sh DIR"]),
        ("prepare.sh full", ["full is not empty"]),
        ("prepare.sh new missing.py", ["missing.py does not exist"]),
        ("prepare.sh new full/notes.txt", ["notes.txt is neither"]),
    ],
)
def test_a_mistake_is_one_sentence(command, words, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    done = typed(f"bash tests/gpu/{command}", tmp_path, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES="")
    assert_one_sentence(done, *words)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["full", "notes.txt"]


def test_a_python_that_lacks_packages(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    done = typed("bash tests/gpu/run.sh out --smoke --prepared none", tmp_path, PYTHON=str(tmp_path / "env/bin/python"))
    assert done.returncode == 1
    assert_one_sentence(done, "there are no wheels in", "bash tests/gpu/prepare.sh DIR")
