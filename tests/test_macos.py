"""macOS lacks some of Linux: what a first hour there needs works without it.

Nothing here runs on macOS. What it lacks is taken away: functions of the module os, /dev/shm, /proc, GNU's ps, and
processes that are forked.
"""

import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from lesson import REPOSITORY, SLOW, Root, until
from PIL import Image
from training import clean

from src.launch import ranks, slurm

LACKING = [
    *("sched_getaffinity", "sched_setaffinity", "memfd_create", "posix_fadvise", "posix_fallocate", "fdatasync"),
    *("eventfd", "pidfd_open", "getrandom", "copy_file_range", "getresuid", "getxattr"),
]
SITE = f"""
import multiprocessing, os
for name in {LACKING}:
    if hasattr(os, name):
        delattr(os, name)
multiprocessing.set_start_method("spawn")
"""
# BSD's takes all behind the first = for the heading of the column, commas too.
PS = """#!/bin/bash
for word in "$@"; do
    case "$word" in
        *=*,*) echo "ps: one column in each -o: $word" >&2; exit 1;;
        --*) echo "ps: illegal option -- -" >&2; exit 1;;
    esac
done
exec {ps} "$@"
"""
SMALL = "--model.arch mlp --max_epochs 1 --limit_train_batches 3 --limit_val_batches 1"


@pytest.fixture
def mac(tmp_path):
    """A copy of the root; .type(COMMAND) types a command there as on macOS."""
    root = Root("10-your-own-project", tmp_path)
    (root.folder / "src/callbacks/slow.py").write_text(SLOW)
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text(SITE)
    write_ps(tmp_path / "bin")
    environment = clean(os.environ) | {"PYTHONPATH": f"{tmp_path}/site", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}

    def type_(command):
        return subprocess.run(
            ["bash", "-c", command], cwd=root.folder, env=environment, capture_output=True, text=True, timeout=300
        )

    return SimpleNamespace(folder=root.folder, type=type_)


def write_ps(folder):
    folder.mkdir()
    (folder / "ps").write_text(PS.format(ps=shutil.which("ps")))
    (folder / "ps").chmod(0o755)


def test_cpus_where_no_system_call_says_which(monkeypatch):
    assert ranks.cpus() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert (ranks.cpus(), ranks.cpu_numbers()) == (6, [0, 1, 2, 3, 4, 5])


def test_no_file_of_ours_asks_for_what_only_linux_has():
    """Or it looks first whether it is there."""
    calls = re.compile(rf"\bos\.({'|'.join(LACKING)})\(")
    for path in [*REPOSITORY.glob("src/**/*.py"), *REPOSITORY.glob("lessons/0[1-8]*/**/*.py")]:
        text = path.read_text()
        for name in calls.findall(text):
            assert f'hasattr(os, "{name}")' in text, f"{path} calls os.{name}"


def test_bsd_ps(tmp_path, monkeypatch):
    write_ps(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    child = subprocess.Popen(["sleep", "60"])
    try:
        starts = slurm.process_starts([os.getpid(), child.pid])
        assert set(starts) == {os.getpid(), child.pid}
        assert starts[child.pid] > starts[os.getpid()] - 3
        assert child.pid in slurm.descendants(os.getpid())
    finally:
        child.kill()
        child.wait()


@pytest.mark.slow
def test_a_first_hour(mac):
    """Train in the terminal and in the background, list, log, cancel, pack."""
    done = mac.type(f"python run.py --cluster debug {SMALL} --name first --num_workers 1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test accuracy" in done.stdout

    flags = f"{SMALL} --max_epochs 10000 --callbacks+=src.callbacks.slow.Slow --callbacks.seconds 0.2"
    done = mac.type(f"python run.py --cluster local --name second {flags}")
    assert done.returncode == 0, done.stdout + done.stderr
    [run] = re.findall(r"^run (\S+)", done.stdout, re.MULTILINE)
    try:
        until(lambda: any("epoch: 01/" in path.read_text() for path in mac.folder.glob(f"logs/{run}/*_0_log.out")))
        assert "epoch: 01/10000" in mac.type(f"python run.py log {run}").stdout
        listed = mac.type("python run.py list").stdout
        assert re.search(rf"^{run} +RUNNING ", listed, re.MULTILINE), listed
        assert re.search(r"^\S+_first +COMPLETED ", listed, re.MULTILINE), listed
    finally:
        done = mac.type(f"python run.py cancel {run}")
    assert "cancelled" in done.stdout, done.stdout + done.stderr
    assert re.search(rf"^{run} +CANCELLED ", mac.type("python run.py list").stdout, re.MULTILINE)

    for number in range(4):
        path = mac.folder / f"images/train/class{number % 2}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    shutil.copytree(mac.folder / "images/train", mac.folder / "images/test")
    done = mac.type("python src/hdf5/pack.py folder images out.h5 && python src/hdf5/pack.py check out.h5")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_doctor_without_proc_and_dev_shm(mac, namespaces):
    """In namespaces in which they are empty."""
    hide = "mount -t tmpfs tmpfs /dev && mknod /dev/null c 1 3 && mknod /dev/urandom c 1 9 && chmod 666 /dev/*"
    hide += " && mount -t tmpfs tmpfs /proc"
    done = mac.type(f"unshare -m bash -c '{hide} && exec {sys.executable} run.py doctor --cluster debug'")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "could not be checked" not in done.stdout
    assert "shared memory: there is no /dev/shm here" in done.stdout
    assert "doctor: 0 errors" in done.stdout
