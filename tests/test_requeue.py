"""A job that has saved is requeued, also if Slurm's controller is down for a while; event files stay in their order."""

import logging
import os
import subprocess
import sys

import pytest
from lesson import REPOSITORY
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from training import EVERYTHING

sys.path.insert(0, str(REPOSITORY))
from src.callbacks import stop_when_asked
from src.callbacks.stop_when_asked import requeue_patiently
from src.launch.payload import Run
from src.launch.progress import write_note
from src.utils.loggers import order_by_name


def test_a_controller_that_is_down_is_asked_again(caplog, monkeypatch, tmp_path):
    monkeypatch.setattr(stop_when_asked, "PAUSE", 0.01)
    asked = []

    def requeue(number, frame):
        asked.append(number)
        if len(asked) < 4:
            subprocess.check_call(["false"])
        sys.exit(255)

    with pytest.raises(SystemExit):
        requeue_patiently(requeue)
    assert len(asked) == 4
    [message] = caplog.messages
    assert message.startswith("Slurm did not requeue the job (Command '['false']' returned non-zero exit status 1.)")


def test_a_controller_that_stays_down_is_an_error(caplog, monkeypatch):
    monkeypatch.setattr(stop_when_asked, "PAUSE", 0.01)
    monkeypatch.setattr(stop_when_asked, "PATIENCE", 0.1)
    with pytest.raises(FileNotFoundError):
        requeue_patiently(lambda number, frame: subprocess.check_call(["/no/scontrol"]))
    assert len(caplog.messages) == 1


def test_what_submitit_refuses_is_not_tried_again():
    asked = []

    def refuse(number, frame):
        asked.append(number)
        raise RuntimeError("Job not requeued because: timed-out too many times.")

    with pytest.raises(RuntimeError):
        requeue_patiently(refuse)
    assert len(asked) == 1


def test_event_files_stay_in_order_if_the_clock_is_set_back(tmp_path):
    now = 1_800_000_000
    names = {}
    for content, stamp in (("first", now - 5000), ("second", now - 1), ("third", now), ("fourth", now + 86400)):
        names[content] = tmp_path / f"events.out.tfevents.{stamp}.node.{100 - len(names)}.0"
        names[content].write_text(content)
    (tmp_path / "events.out.tfevents.odd").write_text("odd")
    order_by_name(tmp_path, now + 0.5)
    found = sorted(tmp_path.glob("events.out.tfevents.1*"))
    assert [path.read_text() for path in found] == ["first", "second", "third", "fourth"]
    assert found[0] == names["first"] and all(path.name < f"events.out.tfevents.{now}" for path in found)


def test_curves_are_right_after_the_clock_was_set_back(tmp_path):
    """What is purged is what was written before, not after."""
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    with SummaryWriter(tmp_path, purge_step=0) as writer:
        for step in range(6):
            writer.add_scalar("loss", 0, step)
    [before] = tmp_path.iterdir()
    stamp = int(before.name.split(".")[3])
    before.rename(before.with_name(before.name.replace(str(stamp), str(stamp + 86400))))
    order_by_name(tmp_path, stamp)
    with SummaryWriter(tmp_path, purge_step=3) as writer:
        for step in range(3, 8):
            writer.add_scalar("loss", 1, step)
    events = EventAccumulator(str(tmp_path), EVERYTHING).Reload()
    assert [event.step for event in events.Tensors("loss")] == list(range(8))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_run_that_makes_no_step_tells_submitit_not_to_requeue_it(tmp_path, caplog):
    run = Run("fit", "", str(tmp_path))
    assert [run.checkpoint() is None for _ in range(4)] == [False, False, True, False]
    evaluation = Run("test", "", str(tmp_path))
    assert all(evaluation.checkpoint() for _ in range(9))
    write_note(tmp_path, "step=00000003.ckpt")
    assert run.checkpoint() is not None


LEAVING = """
import time
from multiprocessing.process import BaseProcess

from torch.utils.data import DataLoader

from src.callbacks.stop_when_asked import leave

kill = BaseProcess.kill


def slowly(worker):  # as on a machine that has much else to do
    kill(worker)
    time.sleep(0.2)


if __name__ == "__main__":
    BaseProcess.kill = slowly
    batches = iter(DataLoader(range(1000), num_workers=2))
    next(batches)
    leave(7)
"""


def test_killed_workers_are_no_error_for_a_process_that_leaves(tmp_path):
    """torch's handler of SIGCHLD raises an error when a worker is killed."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, tmp_path / "leaving.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
