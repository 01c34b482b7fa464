"""Processes of one machine meet there, and nobody from outside can connect to them."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import psutil
import pytest
from lesson import REPOSITORY
from training import Training, free_port

from src.utils.processes import meet_on_this_machine

FLAGS = "--model.arch mlp --max_epochs 1 --limit_train_batches 40 --limit_val_batches 2 --batch_size 64"
LOOPBACK = {"127.0.0.1", "::1"}


def listening(pids):
    """The addresses at which these processes and their children listen."""
    found = set()
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
                found |= {one.laddr.ip for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_listen_to_this_machine_only(strategy, tmp_path):
    training = Training(tmp_path / "run", f"{FLAGS} --strategy {strategy}", processes=2)
    seen = set()
    while training.running():
        seen |= listening(training.pids)
        time.sleep(0.02)
    training.ends_well()
    assert seen and seen <= LOOPBACK


@pytest.fixture
def one_of_two(monkeypatch):
    """The first of two processes of this machine."""
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    monkeypatch.setattr(os, "environ", ranks | {"MASTER_PORT": str(free_port())})


def test_the_server_is_gone_when_nobody_holds_it(one_of_two):
    port = int(os.environ["MASTER_PORT"])
    store = meet_on_this_machine()
    assert listening([os.getpid()]) <= LOOPBACK
    socket.create_connection(("127.0.0.1", port)).close()
    del store
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize(
    "other",
    [
        {"WORLD_SIZE": "4"},  # several nodes
        {"RANK": "1"},  # the first process has the server
        {"TORCHELASTIC_USE_AGENT_STORE": "True"},  # torchrun's server
    ],
)
def test_no_server_of_ours(one_of_two, other):
    os.environ.update(other)
    assert meet_on_this_machine() is None


def test_a_port_that_is_taken_is_one_sentence(one_of_two):
    says = r"cannot meet at port \d+ of this machine \(Address already in use\): .* set MASTER_PORT to another"
    with (
        socket.create_server(("127.0.0.1", int(os.environ["MASTER_PORT"]))),
        pytest.raises(SystemExit, match=says),
    ):
        meet_on_this_machine()


def test_an_interface_that_the_user_named_stays(one_of_two):
    os.environ["GLOO_SOCKET_IFNAME"] = "eth7"
    store = meet_on_this_machine()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "eth7"
    del store


def test_a_process_that_is_killed_while_it_shows_a_bar_blocks_nobody(tmp_path):
    """tqdm's own lock is shared with forked processes, and nobody gives it back."""
    code = """
import os, signal
from src.utils.progress import tqdm
list(tqdm(range(3)))
if os.fork() == 0:
    tqdm.get_lock().acquire()
    os.kill(os.getpid(), signal.SIGKILL)
os.wait()
list(tqdm(range(3)))
"""
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=60, capture_output=True)


LOADED = """
import threading
from src.datasets.batches import Batches, make_loader
loader = make_loader([1.0, 2.0, 3.0], Batches(3, 2), num_workers=1, pin_memory=False)
print(list(loader), [thread.name for thread in threading.enumerate() if "serve" in thread.name])
"""


def test_a_script_ends_though_its_data_workers_ignore_signals():
    """And it has no thread that hands tensors to them: a worker that is forked at that moment may wait forever."""
    options = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=REPOSITORY, **options)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[tensor([1., 2.], dtype=torch.float64), tensor([3.], dtype=torch.float64)] []\n"


FAILING = """
import sys
from src.datasets.batches import Batches, make_loader

class Item:
    def __reduce__(self):
        raise RuntimeError(sys.argv[1])

loader = make_loader([Item(), Item()], Batches(2, 1), num_workers=1, pin_memory=False)
loader.dataset.__class__.__getitem__ = lambda self, batch: Item()
next(iter(loader))
"""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("cannot be pickled", "exited unexpectedly"),
        ("unable to allocate shared memory(shm) for file", "workers are out of shared memory"),
    ],
)
def test_a_batch_that_a_worker_cannot_hand_over_ends_the_training(error, words):
    """Python says so in the worker, and torch would wait forever."""
    options = {"capture_output": True, "text": True, "timeout": 120}
    done = subprocess.run([sys.executable, "-c", FAILING, error], cwd=REPOSITORY, **options)
    assert done.returncode == 1
    assert f"RuntimeError: {error}" in done.stderr and words in done.stderr
