"""Trainings as the tests start them, stop them and compare them. Each is a process of its own, or two."""

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import forkserver
from pathlib import Path

import quick_python
from lesson import REPOSITORY
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

LIMIT = 300  # seconds, for one training on a machine that has much else to do
EVERYTHING = {"tensors": 0}  # 0: all steps; the default is a sample of them
# On a CPU FiniteLoss looks at each loss at once: there is nobody to wait for.
WAITS_ON_CPU = ["1 a step    aten._local_scalar_dense.default    src/callbacks/finite_loss.py"]
# Processes of their own that have imported torch and Lightning already: what takes 5 seconds is done once.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["src.train"])
LOCK = threading.Lock()


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def clean(environment):
    """Without what torchrun, Slurm or the tests' own processes have left."""
    strays = ("SLURM_", "SUBMITIT_", "PYTEST_", "RANK", "WORLD_SIZE", "LOCAL_", "GROUP_RANK", "MASTER_")
    return {name: value for name, value in environment.items() if not name.startswith(strays)}


@functools.cache
def start_server():
    """Start the process that is forked for each training. Some tests start trainings in several threads."""
    with LOCK:
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = str(REPOSITORY)
        forkserver.ensure_running()
        # Not for a lesson that is typed later in this process: there the root's src would hide its own.
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


class Training:
    """`python src/train.py COMMAND --run_folder FOLDER FLAGS`, running, and what it has written."""

    def __init__(self, folder, flags, command="fit", processes=1, launcher=None, path=None):
        """Start it.

        Args:
            folder: the run's folder
            flags: as they are typed
            command: fit, validate, test or predict
            processes: how many share the work
            launcher: what is typed before src/train.py, such as python or torchrun; None: forked, which is faster
            path: a folder for PYTHONPATH
        """
        self.folder = Path(folder)
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.outputs = [Path(f"{self.folder}.{time.monotonic_ns()}.{rank}.txt") for rank in range(processes)]
        arguments = [command, "--run_folder", str(folder), *flags.split()]
        python_path = {"PYTHONPATH": f"{REPOSITORY}:{path}"} if path else {}
        if launcher:
            with open(self.outputs[0], "w") as output:
                started = subprocess.Popen(
                    [*launcher.split(), "src/train.py", *arguments],
                    cwd=REPOSITORY,
                    env=clean(os.environ) | python_path,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self.started = [started]
            self.outputs = self.outputs[:1]
        else:
            start_server()
            port = free_port()
            self.started = [
                FORKS.Process(target=forked, args=(arguments, output, rank, processes, port, path))
                for rank, output in enumerate(self.outputs)
            ]
            for process in self.started:
                process.start()

    @property
    def pids(self):
        return [process.pid for process in self.started]

    def codes(self):
        """Exit codes; None of those that are running."""
        return [process.poll() if hasattr(process, "poll") else process.exitcode for process in self.started]

    def running(self):
        return None in self.codes()

    def wait(self, limit=LIMIT):
        """Until it has ended; the exit code, of several the largest."""
        deadline = time.monotonic() + limit
        while self.running():
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {limit} s:\n{self.output()}")
            time.sleep(0.01)
        return max(self.codes())

    def ends_well(self):
        """Wait until it has ended; itself."""
        assert self.wait() == 0, self.output()
        return self

    def kill(self, number=signal.SIGKILL):
        """Each process with all that it has started."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(pid, number)
        while number == signal.SIGKILL and self.running():
            time.sleep(0.005)

    def has_noted(self, words):
        """Whether the test's model in the first process has noted this; see test_resume.py."""
        notes = Path(f"{self.folder}.notes.0")
        return notes.exists() and words in notes.read_text()

    def until(self, condition):
        """Wait until this is true."""
        deadline = time.monotonic() + LIMIT
        while not condition():
            assert self.running(), f"ended too early:\n{self.output()}"
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.002)

    def until_step(self, step):
        """Wait for a checkpoint of this step or a later one."""
        self.until(lambda: any(found >= step for found in steps(self.folder)))

    def output(self):
        return "".join(path.read_text() for path in self.outputs)


def forked(arguments, output, rank, processes, port, path):
    """What src/train.py does when it is called with these arguments, in this process."""
    os.setsid()
    # Data workers are started as from the command line, and not as this process was.
    multiprocessing.set_start_method("fork", force=True)
    with open(output, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    environment = clean(os.environ) | {
        "RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(processes),
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    if path:
        sys.path.insert(0, str(path))
    signal.signal(signal.SIGINT, signal.default_int_handler)

    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    from src.train import main

    rank_zero_only.rank = rank
    sys.argv = ["src/train.py", *arguments]
    main()
    # A thread of gloo's that is left may abort Python while it shuts down. What fsdp leaves, torch keeps.
    threads = []
    for path in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            threads.append(path.read_text().strip())
    assert not any("gloo" in name for name in threads) or "fsdp" in arguments, threads


def steps(folder):
    """Of the checkpoints in a run's folder."""
    return sorted(int(path.stem.split("=")[1]) for path in Path(folder).glob("checkpoints/step=*.ckpt"))


def weights(*trainings):
    """The checksum that all processes have logged."""
    found = {
        checksum
        for training in trainings
        for checksum in re.findall(r"the weights are (\w{16})$", training.output(), re.MULTILINE)
    }
    assert len(found) == 1, "\n".join(training.output() for training in trainings)
    return found.pop()


def epoch_lines(*trainings):
    """What was reported of each epoch, by the processes that have followed each other; each epoch once."""
    text = "".join(training.output() for training in trainings)
    lines = re.findall(r"epoch: (\d+)/\d+ +(training .*)$", text, re.MULTILINE)
    assert len({epoch for epoch, _ in lines}) == len(dict(lines))
    return dict(lines)


def numbers_of(run):
    """All numbers in the epoch lines of a run."""
    return [float(number) for line in epoch_lines(run).values() for number in re.findall(r": (\d+\.\d+)", line)]


def watched(accelerator):
    """Where a training step waits for a GPU, or would: lines of tests/benchmarks/waits.py, without line numbers."""
    done = subprocess.run(
        ["python", "tests/benchmarks/waits.py", "--accelerator", accelerator],
        cwd=REPOSITORY,
        env=quick_python.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == f"watched 5 steps on a {accelerator}"
    return [re.sub(r":\d+$", "", line) for line in lines]


def curves(folder):
    """All that TensorBoard shows of a run: for each tag the steps, with the value of a scalar or a hash of the rest."""
    events = EventAccumulator(str(folder), EVERYTHING).Reload()
    shown = {}
    for tag in events.Tags()["tensors"]:
        protos = [(event.step, event.tensor_proto) for event in events.Tensors(tag)]
        if tag == "__run_graph__":  # is no two times the same: times stand in it
            protos = []
        scalar = events.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
        shown[tag] = [
            (step, make_ndarray(proto).item() if scalar else hash(proto.SerializeToString())) for step, proto in protos
        ]
    return shown


def assert_equal(parts, whole):
    """A training in several parts, one after the other, and the same in one."""
    assert weights(parts[-1]) == weights(whole)
    assert epoch_lines(*parts) == epoch_lines(whole)
    assert curves(parts[-1].folder) == curves(whole.folder)
