"""Commands that are typed wrongly, each in a sandbox of its own, in a fork of a Python that has imported everything.

A Python of its own for each command would spend most of its time on imports. A server, started by Sandboxes, does them
once; another one does without torch, because a fork of a small process takes a tenth of the time. For each row of
bad_input.py one of them prepares the sandbox, forks the command, waits for it, and compares what the sandbox holds with
what it held before.

One thing is not as in real life: `sys.executable` is a small program that asks that process for another fork, because
run.py starts `python src/train.py --prepare`, and lessons start `python data/get_data.py`.
"""

import contextlib
import ctypes
import gc
import gzip
import hashlib
import importlib
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import quick_python

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT = 20  # seconds for one command; most take a tenth of one
MEMORY = 1 << 30  # bytes that a command may take more than its imports have taken
LIGHT = """
    submitit src.launch.sagemaker src.launch.qsub src.launch.report src.search.command src.search.start
    src.search.study src.doctor.start _strptime
""".split()  # noqa: SIM905
HEAVY = [*LIGHT, *quick_python.IMPORTS, "src.train", "src.search.trial", "src.doctor.examine", "src.hdf5.pack"]
PR_SET_CHILD_SUBREAPER = 36

# The guard sees in /proc what `python` was called with. A shell starts faster than a Python that would ask over a
# socket, and not every user may be able to start Python.
CLIENT = """#!/bin/sh
folder=${0%/*}/..
mkfifo "$folder/$$" && echo $$ > "$folder/requests" && read -r code < "$folder/$$" && rm "$folder/$$"
[ "$code" -ge 0 ] || kill "$code" $$
exit "$code"
"""
# Schedulers that take every job. What is handed in is noted in the sandbox, where the test finds it.
STAND_INS = {
    "sbatch": 'echo "$@" >> "$SANDBOX/submitted"; echo "Submitted batch job 4711"',
    "qsub": 'echo "$@" >> "$SANDBOX/submitted"; echo 4711',
    "scancel": 'echo "$@" >> "$SANDBOX/cancelled"',
    "qdel": 'echo "$@" >> "$SANDBOX/cancelled"',
    **dict.fromkeys(["sinfo", "squeue", "sacct", "scontrol"], ":"),
    "qstat": "exit 1",
}


@dataclass
class Result:
    """What became of a command.

    Args:
        code: its exit code, -9 if it was killed
        out: what it has written to standard output
        err: what it has written to standard error
        seconds: that it took
        hangs: whether it was killed because it did not end
        changed: paths in the sandbox that are new, gone or different
        left: the command lines of the processes that it has left behind
    """

    code: int
    out: str
    err: str
    seconds: float
    hangs: bool
    changed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class Sandboxes:
    """The servers, and a copy of the repository for them. They end with the `with` block."""

    def __enter__(self) -> "Sandboxes":
        self.folder = Path(tempfile.mkdtemp(prefix="bad-"))
        self.folder.chmod(0o777)  # for the users of the rows
        os.mkfifo(self.folder / "requests")
        (self.folder / "requests").chmod(0o666)
        copy_repository(self.folder / "repository")
        bin_folder = self.folder / "bin"
        bin_folder.mkdir()
        for name, command in STAND_INS.items():
            (bin_folder / name).write_text(f"#!/bin/sh\n{command}\n")
        (bin_folder / "python").write_text(CLIENT)
        for program in bin_folder.iterdir():
            program.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHON"))}
        environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": environment}
        self.servers = {}
        for kind in ("heavy", "light"):  # the first makes what both need
            self.servers[kind] = subprocess.Popen([sys.executable, __file__, str(self.folder), kind], **pipes)
            assert self.servers[kind].stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_) -> None:
        for server in self.servers.values():
            server.stdin.close()
            server.wait()
        shutil.rmtree(self.folder)

    def run(self, row) -> Result:
        """Run a row of bad_input.py."""
        for kind, server in self.servers.items():
            assert server.poll() is None, f"the {kind} server has ended with code {server.poll()}"
        server = self.servers["heavy" if row.heavy else "light"]
        server.stdin.write(f"{json.dumps(row.name)}\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        assert isinstance(answer, dict), answer
        return Result(**answer)


def copy_repository(folder: Path) -> None:
    """What a user has: the programs, the lessons, and the archives of MNIST, by links."""
    ignored = shutil.ignore_patterns("__pycache__", "logs", "lightning_logs", "work", "*.png", "*.md", "raw")
    folder.mkdir()
    for name in ("src", "lessons", "data"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    shutil.copy(REPOSITORY / "run.py", folder)
    (folder / "logs").mkdir()
    (folder / "logs").chmod(0o777)
    raw = folder / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for archive in (REPOSITORY / "data/MNIST/raw").glob("*.gz"):
        (raw / archive.name).symlink_to(archive)
        with gzip.open(archive) as source, open(raw / archive.stem, "wb") as target:
            shutil.copyfileobj(source, target)


def serve(folder: Path, kind: str) -> None:
    """Run the rows whose names come in on standard input."""
    repository = folder / "repository"
    sys.path.insert(0, str(repository))
    os.chdir(repository)
    for name in HEAVY if kind == "heavy" else LIGHT:
        importlib.import_module(name)
    import bad_input

    templates = folder / "templates"
    if kind == "heavy":
        bad_input.make_templates(templates)
    bad_input.TEMPLATES = templates
    rows = {row.name: row for row in bad_input.ROWS}
    gc.freeze()
    os.umask(0)  # for the users of the rows
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of the commands become children
    answers = os.dup(1)
    os.set_inheritable(answers, False)
    os.dup2(2, 1)
    os.write(answers, b"ready\n")
    requests = os.open(folder / "requests", os.O_RDWR) if kind == "heavy" else None
    while True:
        if requests in select.select([0] + [requests] * (kind == "heavy"), [], [])[0]:
            Guard(folder, None, requests).serve()  # for a command of the other server
            continue
        line = sys.stdin.readline()
        if not line:
            return
        row = rows[json.loads(line)]
        try:
            answer = vars(Guard(folder, row, requests).run())
        except Exception as error:  # the test's own mistake
            answer = f"{row.name}: {error!r}"
        os.write(answers, f"{json.dumps(answer)}\n".encode())


class Guard:
    """Runs one row, and looks what becomes of it."""

    def __init__(self, folder, row, requests):
        self.folder, self.row, self.requests = folder, row, requests
        self.box = folder / "box"
        self.started = {}  # pid of a Python that the command has started: pid of the client that waits for it

    def run(self):
        for name in ("", "home", "tmp"):
            (self.box / name).mkdir()
        environment = {
            "HOME": str(self.box / "home"),
            "TMPDIR": str(self.box / "tmp"),
            "SANDBOX": str(self.box),
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "CUDA_VISIBLE_DEVICES": "",
        }
        os.chdir(self.box)
        try:
            for name, content in self.row.files.items():
                put(self.box / name, content)
            environment = {name: value for name, value in (environment | self.row.env).items() if value is not None}
            watched = [self.box, self.folder / "repository"]
            before = [contents(place) for place in watched]
            result = self.command(environment)
            for place, old in zip(watched, before, strict=True):
                new = contents(place)
                result.changed += sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            return result
        finally:
            os.chdir("/")
            remove(self.box)
            for logs in (self.folder / "repository").glob("**/logs"):  # what a command has written instead of refusing
                for path in logs.iterdir():
                    remove(path)

    def command(self, environment):
        """Fork the command and serve it until it has ended."""
        streams = [self.folder / name for name in ("out", "err")]
        words = [str(self.folder / "repository" / self.row.words[0]), *self.row.words[1:]]
        for path in streams:
            path.write_bytes(b"")
        began = time.monotonic()
        uid = self.row.uid if os.getuid() == 0 else 0
        command = self.fork(words, self.box, environment, ["/dev/null", *streams], uid)
        code, hangs = None, False
        while code is None:
            self.start_requested()
            while code is None:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid in self.started:
                    self.answer(self.started.pop(pid), os.waitstatus_to_exitcode(status))
                elif pid == command:
                    code = os.waitstatus_to_exitcode(status)
            if time.monotonic() - began > LIMIT and code is None:
                hangs = True
                os.kill(command, signal.SIGKILL)
        seconds = time.monotonic() - began
        left = self.end_all(grace=0 if hangs else 0.5)
        out, err = (path.read_bytes()[: 1 << 20].decode(errors="replace") for path in streams)
        return Result(code, out, err, seconds, hangs, left=[] if hangs else left)

    def serve(self):
        """Start what a command of the other server has started, and wait for it."""
        self.start_requested()
        while self.started:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in self.started:  # not an orphan
                self.answer(self.started.pop(pid), os.waitstatus_to_exitcode(status))
            for pid, client in list(self.started.items()):
                if not os.path.exists(f"/proc/{client}"):  # it was killed
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            self.start_requested()  # src/train.py starts data/get_data.py

    def start_requested(self):
        """Start what was asked for. Wait a little if nothing was."""
        if select.select([self.requests] if self.requests else [], [], [], 0.002)[0]:
            for client in os.read(self.requests, 4096).split():
                self.start(int(client))

    def start(self, client):
        """A command has started `python WORDS`, that is, this client."""
        process = Path(f"/proc/{client}")
        try:
            _, _, *words = os.fsdecode((process / "cmdline").read_bytes()).split("\0")[:-1]
            variables = os.fsdecode((process / "environ").read_bytes()).split("\0")[:-1]
            folder, uid = os.readlink(process / "cwd"), process.stat().st_uid
        except (OSError, ValueError):  # it was killed meanwhile
            return
        environment = dict(variable.split("=", 1) for variable in variables)
        files = [process / f"fd/{number}" for number in range(3)]
        words = [word for word in words if word != "-u"]
        self.started[self.fork(words, folder, environment, files, uid)] = client

    def answer(self, client, code):
        if os.path.exists(f"/proc/{client}"):
            with open(self.folder / str(client), "w") as file:
                file.write(f"{code}\n")

    def fork(self, *called):
        pid = os.fork()
        if pid == 0:
            try:
                self.become(*called)
            finally:
                os._exit(1)
        return pid

    def become(self, words, folder, environment, files, uid):
        """Become `python WORDS`."""
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(os.open(file, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND), number)
        os.closerange(3, 100)
        sys.stdout.reconfigure(errors="strict")
        used = int(Path("/proc/self/status").read_text().partition("VmData:")[2].split()[0]) * 1024
        resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if uid != os.getuid() and os.getuid() == 0:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        os.umask(0o022)
        tempfile.tempdir = None
        sys.executable = str(self.folder / "bin/python")
        sys.argv = words
        if "/lessons/" in words[0]:  # each has a src of its own
            for name in [name for name in sys.modules if name.split(".")[0] == "src"]:
                del sys.modules[name]
            sys.path.remove(str(self.folder / "repository"))
        quick_python.leave(words)

    def end_all(self, grace):
        """Wait for what is about to end; kill the rest. Returns the command lines of these."""
        deadline = time.monotonic() + grace
        left = []
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return left
            if pid == 0 and time.monotonic() > deadline:
                for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
                    with contextlib.suppress(OSError):  # it has just ended
                        words = Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace").split("\0")
                        left.append(" ".join(words).strip())
                        os.kill(int(child), signal.SIGKILL)
                deadline = time.monotonic() + 1
            elif pid == 0:
                time.sleep(0.002)


def put(path, content):
    """Make what a row asks for at this path: a text, bytes, or what a function of the path makes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)


def remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def contents(folder):
    """{path: what can be seen of it} of all that is below a folder. Small files are read."""
    found = {}
    for parent, folders, files in os.walk(os.fsencode(folder)):
        for name in folders + files:
            path = os.path.join(parent, name)
            seen = os.lstat(path)
            shown = [seen.st_mode]
            if name not in folders:
                shown += [seen.st_size, seen.st_mtime_ns]
                if not os.path.islink(path) and os.path.isfile(path) and seen.st_size < 1 << 20 and b"/box" in parent:
                    with open(path, "rb") as file:
                        shown.append(hashlib.sha256(file.read()).hexdigest())
            found[os.path.relpath(path, os.fsencode(folder)).decode(errors="replace")] = shown
    return found


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2])
