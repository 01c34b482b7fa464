"""A run of several processes that is stuck says so within two minutes, names the process, and is requeued."""

import contextlib
import os
import signal
import sys
import time
from types import SimpleNamespace

import lightning as L
import pytest
from lesson import REPOSITORY
from training import Training, steps

sys.path.insert(0, str(REPOSITORY))
from src.callbacks.hooks import OFTEN, skip_empty_hooks
from src.callbacks.watchdog import Watchdog


class Stopped(Exception):
    pass


class Watched(Watchdog):
    """Notes why it would end the process."""

    def stop(self, reason):
        raise Stopped(reason)


def counters():
    progress = SimpleNamespace(ready=0, completed=0)
    return SimpleNamespace(batch_progress=SimpleNamespace(total=progress, current=progress))


class Processes:
    """Several in one: their threads are called by hand, and time passes as fast as the test likes."""

    def __init__(self, folder, count=3, stuck_after=600):
        self.dogs = [Watched(folder, rank, count, stuck_after) for rank in range(count)]
        self.seconds = 0

    def begin(self, ranks):
        for rank in ranks:
            loops = {"validate_loop": counters(), "test_loop": counters()}
            epoch_loop = SimpleNamespace(val_loop=counters(), **vars(counters()))
            progress = SimpleNamespace(total=SimpleNamespace(ready=0, completed=0))
            fit_loop = SimpleNamespace(epoch_loop=epoch_loop, epoch_progress=progress)
            stage = {"validating": False, "sanity_checking": False, "global_step": 0}
            self.dogs[rank].trainer = SimpleNamespace(fit_loop=fit_loop, **loops, **stage)

    def step(self, *ranks):
        for rank in ranks:
            trainer = self.dogs[rank].trainer
            trainer.fit_loop.epoch_loop.batch_progress.total.ready += 1
            trainer.global_step += 1

    def validate(self, *ranks):
        for rank in ranks:
            self.dogs[rank].trainer.validating = True
            self.dogs[rank].trainer.fit_loop.epoch_loop.val_loop.batch_progress.current.ready += 1

    def wait(self, seconds, ranks=None):
        for _ in range(seconds // 5):
            self.seconds += 5
            for rank in range(len(self.dogs)) if ranks is None else ranks:
                self.dogs[rank].look(5)

    def train(self, ranks=(0, 1, 2), times=10):
        for _ in range(times):
            self.step(*ranks)
            self.wait(5)
        self.seconds = 0


@pytest.fixture
def processes(tmp_path):
    found = Processes(tmp_path)
    found.wait(10)
    found.begin(range(3))
    found.train()
    return found


@pytest.mark.parametrize("dead", [(1,), (0,), (1, 2)])
def test_a_process_that_is_stopped(processes, dead):
    alive = [rank for rank in range(3) if rank not in dead]
    processes.step(*alive)
    with pytest.raises(Stopped) as stopped:
        processes.wait(1000, alive)
    assert processes.seconds <= 120
    for rank in range(3):
        assert (f"rank {rank} (on " in str(stopped.value)) == (rank in dead)
    assert "at step 10" in str(stopped.value)


def test_a_process_that_is_stuck_in_its_own_code(processes, caplog):
    """Also if it is the first."""
    processes.step(1, 2)
    processes.wait(120)
    [message] = set(caplog.messages)
    assert "waits for rank 0 (on " in message and "rank 1" not in message
    with pytest.raises(Stopped, match="no progress for 6.. s: it waits for rank 0"):
        processes.wait(1000)
    assert len(caplog.messages) == 1
    assert 600 <= processes.seconds <= 700


def test_all_wait_for_each_other(processes, caplog):
    processes.wait(120)
    assert "waits, each process for the others" in caplog.text
    with pytest.raises(Stopped):
        processes.wait(1000)


def test_in_a_validation_the_one_behind_is_named(processes, caplog):
    processes.validate(0, 1, 2)
    processes.validate(0, 2)
    processes.wait(150)
    [message] = caplog.messages
    assert "waits for rank 1 (" in message and "rank 2" not in message


def test_what_takes_long_is_not_stuck(processes, caplog):
    """A validation of an hour; one rank that writes for a minute each time; a pause that is twice as long."""
    for _ in range(300):
        processes.validate(0, 1, 2)
        processes.wait(10)
    for _ in range(3):
        processes.step(1, 2)
        processes.wait(60)
        processes.step(0)
        processes.wait(5)
    processes.step(1, 2)
    processes.wait(200)
    assert not caplog.messages


def test_a_slow_start_is_not_stuck(tmp_path, caplog):
    """The data are loaded for half an hour, then the network is compiled for as long."""
    processes = Processes(tmp_path)
    processes.wait(1800)
    processes.begin(range(3))
    processes.step(0, 1, 2)
    processes.wait(1800)
    processes.train()
    assert not caplog.messages


def test_a_process_that_does_not_start(tmp_path, caplog):
    """The signs of an attempt before this one are there."""
    before = Processes(tmp_path)
    before.begin(range(3))
    before.train()
    processes = Processes(tmp_path)
    processes.begin([0, 2])
    processes.wait(120, [0, 2])
    assert "waits for rank 1 (not yet started)" in caplog.text
    with pytest.raises(Stopped, match="rank 1 .not yet started"):
        processes.wait(1000, [0, 2])


def test_a_process_that_is_stopped_after_its_first_sign(tmp_path):
    """A batch was begun, so it had started, though the sign alone may be of an attempt before this one."""
    processes = Processes(tmp_path)
    processes.begin(range(3))
    processes.step(0, 1, 2)
    processes.wait(5, [1, 2, 0])
    processes.step(0, 2)
    with pytest.raises(Stopped, match=r"no sign of life from rank 1 \(on "):
        processes.wait(1000, [0, 2])
    assert processes.seconds <= 120


def test_a_process_that_has_ended_is_not_missed(processes):
    processes.dogs[1].end()
    for _ in range(100):
        processes.step(0, 2)
        processes.wait(5, [0, 2])
    processes.dogs[0].end()
    processes.step(2)
    processes.wait(60, [2])


def test_a_job_that_was_suspended_goes_on(processes, monkeypatch):
    """Its clock has advanced by an hour, and no process has given a sign."""
    seen = []
    dog = processes.dogs[0]
    clock = iter([0, 0, 5, 3605])
    monkeypatch.setattr("src.callbacks.watchdog.time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(dog, "look", seen.append)
    monkeypatch.setattr(dog.ended, "wait", lambda seconds: len(seen) == 3)
    dog.run()
    assert seen == [0, 5, 10]


def test_stuck_after_0_only_says_so(tmp_path, caplog):
    processes = Processes(tmp_path, stuck_after=0)
    processes.begin(range(3))
    processes.train()
    processes.step(0, 1)
    processes.wait(5000)
    assert "waits for rank 2" in caplog.text


def test_empty_hooks_are_not_called():
    class Mine(L.Callback):
        def on_train_batch_end(self, *args):
            pass

    callback = skip_empty_hooks(Mine())
    assert [name for name in OFTEN if callable(getattr(callback, name))] == ["on_train_batch_end"]
    assert callable(callback.on_train_epoch_end)


FAST = """
import src.callbacks.watchdog as watchdog
from src.models.classifier import Classifier

watchdog.PERIOD, watchdog.SILENT, watchdog.WARN = 0.5, 4, 4


class Mine(Classifier):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_gets_a_stop_signal(tmp_path, rank):
    (tmp_path / "mine.py").write_text(FAST)
    flags = "--model mine.Mine --threads 1 --max_epochs 1000 --checkpoint_every 20 --limit_val_batches 2"
    run = Training(tmp_path / "run", flags, processes=2, path=tmp_path)
    try:
        run.until_step(40)
        time.sleep(3)
        os.kill(run.pids[rank], signal.SIGSTOP)
        other, deadline = run.started[1 - rank], time.monotonic() + 60
        while other.exitcode is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert other.exitcode == 1, run.output()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(run.pids[rank], signal.SIGCONT)
        run.kill()
    assert f"no sign of life from rank {rank} (on " in run.output()
    assert "Resume it with: python run.py resume run" in run.output()
    assert steps(run.folder)[-1] >= 40
