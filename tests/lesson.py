"""A lesson as the tests use it: a fresh copy of its folder, in which the commands of its README are typed."""

import contextlib
import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import quick_python

REPOSITORY = Path(__file__).resolve().parents[1]

EPOCH_LINE = re.compile(
    r"epoch: (\d\d)/(\d\d)    training loss: (\d\.\d{4})    training accuracy: (\d\.\d{4})"
    r"    validation loss: (\d\.\d{4})    validation accuracy: (\d\.\d{4})$",
    re.MULTILINE,
)
TEST_LINE = re.compile(
    r"test loss: (\d\.\d{4})    test accuracy: (\d\.\d{4})    seconds per epoch: \d+\.\d\d$", re.MULTILINE
)


# What makes a run slow without using the CPU, so that several can be killed at once on a small machine.
SLOW = """
import time

import lightning as L


class Slow(L.Callback):
    def __init__(self, seconds: float):
        self.seconds = seconds

    def on_train_batch_end(self, *args):
        time.sleep(self.seconds)
"""


def cannot_run(reason: str) -> None:
    """Skip a test. In CI it fails: skipped there, it would be a test that nobody ever runs."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def chromium() -> str:
    """The browser's path."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return found or cannot_run("there is no Chromium on this machine")


def page_of(address: str, folder: Path) -> str:
    """HTML of a page of TensorBoard, when the browser has drawn it. folder: for what the browser keeps."""
    quiet = "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-sync"
    # Half a minute of the page's own clock: it asks the server for the runs, then draws them.
    command = [chromium(), "--headless", "--no-sandbox", *quiet.split(), "--virtual-time-budget=30000", "--dump-dom"]
    command += [f"--user-data-dir={folder}", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=300).stdout


def until(true, seconds: float = 300) -> None:
    """Wait until true() is."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def processes_with(text: str) -> list[Path]:
    """The processes that were started with this text in their environment: /proc/<pid> of each."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it belongs to somebody else, or has just ended
            if text.encode() in (folder / "environ").read_bytes():
                found.append(folder)
    return found


def readme_commands(folder: Path, name: str = "README.md") -> list[str]:
    """The lines of all ```bash blocks of the folder's README.md, or of another page."""
    blocks = re.findall(r"^```bash\n(.*?)^```", (folder / name).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


@contextlib.contextmanager
def modules_of(folder: Path):
    """Inside, `import src....` imports the modules of this folder: each lesson, and the root, calls its own src."""

    def ours():
        return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "src"}

    before = ours()
    for name in before:
        del sys.modules[name]
    path = sys.path[:]
    # Without the root: its src is a package, which wins over a folder without __init__.py that comes before it.
    sys.path[:] = [str(folder), *(entry for entry in path if not Path(entry, "src/__init__.py").exists())]
    try:
        yield
    finally:
        sys.path[:] = path
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


def epochs(output: str) -> list[tuple[float, ...]]:
    """For each epoch line: training loss, training accuracy, validation loss, validation accuracy."""
    lines = EPOCH_LINE.findall(output)
    numbers = [(int(epoch), int(last)) for epoch, last, *_ in lines]
    assert numbers == [(n, len(lines)) for n in range(1, len(lines) + 1)], f"not every epoch line once:\n{output}"
    return [tuple(float(number) for number in line[2:]) for line in lines]


class Lesson:
    """A copy of lessons/NAME in `parent`/lessons, with data/ beside it, so that nothing is written into yours."""

    def __init__(self, name: str, parent: Path) -> None:
        self.folder = parent / "lessons" / name
        self.data = parent / "data"
        ignored = shutil.ignore_patterns("logs", "lightning_logs", "work", "slurm.*.out", "__pycache__")
        shutil.copytree(REPOSITORY / "lessons" / name, self.folder, ignore=ignored)
        self.data.symlink_to(REPOSITORY / "data")
        self.commands = readme_commands(self.folder)

    def own_data(self) -> Path:
        """Replace the link to data/ by a copy that a test may break; only the archives are in it, nothing unpacked."""
        self.data.unlink()
        self.data.mkdir()
        for script in (REPOSITORY / "data").glob("*.py"):
            shutil.copy(script, self.data)
        (self.data / "MNIST/raw").mkdir(parents=True)
        for archive in (REPOSITORY / "data/MNIST/raw").glob("*.gz"):
            shutil.copy(archive, self.data / "MNIST/raw")
        return self.data / "MNIST/raw"

    def run(self, command: str, more: str = "", real: bool = False, **environment: str) -> subprocess.CompletedProcess:
        """Type a command of the README, with `more` flags behind it, into a shell in the lesson's folder."""
        assert command in self.commands, f"{command!r} does not stand in the README of {self.folder.name}"
        return self.shell(f"{command} {more}", real, **environment)

    def shell(self, command: str, real: bool = False, **environment: str) -> subprocess.CompletedProcess:
        """Type any command into a shell in the lesson's folder. real: `python` has not imported anything already."""
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=(os.environ if real else quick_python.environment()) | environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=900,
        )

    def terminal(self, command: str) -> str:
        """Type a command in a terminal of 120 columns; returns all that it wrote there."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        files = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        process = subprocess.Popen(["bash", "-c", command], cwd=self.folder, env=quick_python.environment(), **files)
        os.close(theirs)
        written = b""
        with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
            while block := os.read(ours, 65536):
                written += block
        os.close(ours)
        assert process.wait() == 0
        return written.decode()


def assert_one_sentence(done: subprocess.CompletedProcess, *words: str) -> None:
    """The command failed with one short message that holds these words, and no traceback."""
    assert done.returncode not in (0, -9), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    message = re.sub(r"^usage:(.|\n)*?(?=^\S+: error:)", "", done.stderr, flags=re.MULTILINE).strip()
    assert 0 < len(message.splitlines()) <= 2, done.stderr
    for word in words:
        assert word in message, f"{word!r} is not in: {message}"


class Root(Lesson):
    """A copy of the root, in which the commands of lesson NAME (9 and on) are typed; data/ is a link to ours."""

    def __init__(self, name: str, parent: Path) -> None:
        self.folder = parent / "root"
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "src", self.folder / "src", ignore=ignored)
        shutil.copytree(REPOSITORY / "lessons" / name, self.folder / "lessons" / name, ignore=ignored)
        for file in ("run.py", "requirements.txt", ".gitignore"):
            shutil.copy(REPOSITORY / file, self.folder)
        (self.folder / "tests").mkdir()
        shutil.copy(REPOSITORY / "tests/test_my_project.py", self.folder / "tests")
        (self.folder / "data").symlink_to(REPOSITORY / "data")
        self.commands = readme_commands(self.folder / "lessons" / name)
