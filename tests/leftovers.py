"""A plugin of pytest: a run fails if its tests leave processes, mounts, namespaces or files in /dev/shm behind."""

import os
import re
import time
import uuid
from pathlib import Path

import pytest

MARK = "STARTED_BY_TESTS"  # every process that a test starts inherits this variable
PATIENCE = 20  # seconds after which something that is still there counts: processes need a moment to end
SHM = Path("/dev/shm")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionstart(session):
    if not hasattr(session.config, "workerinput"):  # the first process, which starts those that run the tests
        os.environ[MARK] = str(uuid.uuid4())
        session.before = state()
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session):
    """Look when all other processes of pytest have ended."""
    result = yield
    if hasattr(session, "before") and (found := left(session.before, os.environ[MARK])):
        print("\nThe tests have left behind:", *found, sep="\n  ")
        session.exitstatus = 1
    return result


def state() -> dict[str, set[str]]:
    """The mounts of this machine, its named network namespaces, and this user's files in /dev/shm."""
    mounts = Path("/proc/self/mountinfo")
    return {
        "mount": {line.split()[4] for line in mounts.read_text().splitlines()} if mounts.exists() else set(),
        "network namespace": set(names("/run/netns")),
        "file in /dev/shm": {name for name in names(SHM) if is_mine(SHM / name)},
    }


def names(folder) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def is_mine(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except FileNotFoundError:  # it has just been removed
        return False


def processes(mark: str) -> list[str]:
    """The processes that were started with `mark` in their environment.

    Without this one, and without its children: with -n 0 these are servers for tests, which end when it ends.
    """
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if command and os.getpid() not in (int(folder.name), parent):  # one that has ended has no command
                    found.append(f"process {folder.name}: {command[:150]}")
        except OSError:  # it has ended, or belongs to somebody else
            pass
    return found


def left(before: dict[str, set[str]], mark: str) -> list[str]:
    """Everything that is there and was not there before, one line each."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = processes(mark)
        for kind, now in state().items():
            found += [f"{kind}: {name}" for name in sorted(now - before[kind])]
        if not found or time.monotonic() > deadline:
            return [line for line in found if not was_killed(line)]
        time.sleep(0.2)


def was_killed(line: str) -> bool:
    """Whether this file was left by a process that a test killed while the system was making it. It is removed then.

    torch names a file of tensors after its process. The C library and Python name a semaphore so until it is complete.
    """
    match = re.fullmatch(r"file in /dev/shm: (torch_(\d+)_\w+|sem\.(mp-\w{8}|\w{6}))", line)
    if not match or (match[2] and Path("/proc", match[2]).exists()):
        return False
    (SHM / match[1]).unlink(missing_ok=True)
    return True
