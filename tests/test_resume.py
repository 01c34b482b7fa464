"""Stopped anywhere, by anything: the final weights are those of the run that was never stopped."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from lesson import REPOSITORY
from training import Training, assert_equal, curves, epoch_lines, free_port, steps, weights

sys.path.insert(0, str(REPOSITORY))
from src.callbacks.checkpoints import is_complete, newest
from src.callbacks.finite_loss import FiniteLoss

PYTHON = sys.executable
SLOW = pytest.mark.slow
# Dropout, random crops, data workers, and validations in the middle of an epoch: all that could go another way.
FLAGS = (
    "--data ColourMNIST --model.arch cnn --model.dropout 0.5 --optimizer.lr 3e-3 --max_epochs 3 "
    "--limit_train_batches 50 --limit_val_batches 4 --checkpoint_every 7 --validate_every 20 --threads 1"
)
SMALL = "--model.dropout 0.5 --threads 1 --limit_train_batches 20 --limit_val_batches 2"  # MNIST, 3 layers

MINE = '''
import time

import torch
from torch.utils.data import Dataset

from src.datasets.datamodule import DataModule
from src.models.classifier import Classifier


class Numbers(Dataset):
    """Images of one number, that of their index."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return torch.full((1, 2, 2), index / 256), index % 2


class Counted(DataModule):
    """The last batch of training has 3 images, that of validation 1: two processes cannot share it."""

    shape = [1, 2, 2]
    classes = ["even", "odd"]

    def setup(self, stage):
        self.train_set, self.val_set, self.test_set = Numbers(203), Numbers(41), Numbers(41)


class Noting(Classifier):
    """Takes its time, and notes what it is given: a line for each batch, in a file for each process."""

    def __init__(
        self, *args, notes: str, pause: float = 0.01, nan_at: int = 0, nan_from_rank: int = 0, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.notes, self.pause, self.nan_at, self.nan_from_rank = notes, pause, nan_at, nan_from_rank

    def note(self, *words):
        with open(f"{self.notes}.notes.{self.trainer.global_rank}", "a") as file:
            print(*words, file=file)

    def training_step(self, batch, batch_idx):
        images, _ = batch
        self.note("train", self.current_epoch, batch_idx, *(images[:, 0, 0, 0] * 256).int().tolist())
        time.sleep(self.pause)
        loss = super().training_step(batch)
        wrong = self.trainer.global_step + 1 == self.nan_at and self.trainer.global_rank >= self.nan_from_rank
        return loss * float("nan") if wrong else loss

    def validation_step(self, batch, batch_idx):
        self.note("sanity" if self.trainer.sanity_checking else "validate", self.trainer.global_step, batch_idx)
        time.sleep(self.pause * (1 + 3 * self.trainer.global_rank))  # the second process is slower
        return super().validation_step(batch)
'''


@pytest.fixture
def mine(tmp_path):
    """Starts trainings with the user's data and model above: mine(run, more flags)."""
    (tmp_path / "mine.py").write_text(MINE)

    def start(run, more="", **options):
        flags = (
            f"--data mine.Counted --model mine.Noting --model.notes {tmp_path / run} --model.dropout 0.5 "
            f"--batch_size 10 --max_epochs 2 --threads 1 {more}"
        )
        return Training(tmp_path / run, flags, path=tmp_path, **options)

    start.notes = lambda run, rank=0: [
        line.split() for line in (tmp_path / f"{run}.notes.{rank}").read_text().splitlines()
    ]
    return start


def torchrun():
    return f"{PYTHON} -m torch.distributed.run --nproc_per_node 2 --master_port {free_port()}"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The run of FLAGS that nobody stops, with 1 and with 2 processes."""
    parent = tmp_path_factory.mktemp("unbroken")
    trainings = {n: Training(parent / str(n), FLAGS, processes=n) for n in (1, 2)}
    return {n: training.ends_well() for n, training in trainings.items()}


@pytest.mark.parametrize(("processes", "workers"), [(1, 2), pytest.param(2, 0, marks=SLOW)])
def test_killed_with_the_commands_that_are_typed(unbroken, tmp_path, processes, workers):
    flags = f"{FLAGS} --num_workers {workers}"
    parts = [Training(tmp_path / "run", flags, launcher=PYTHON if processes == 1 else torchrun())]
    parts[0].until_step(70)
    parts[0].kill()
    assert 70 <= steps(tmp_path / "run")[-1] < 150
    parts.append(Training(tmp_path / "run", flags, launcher=PYTHON if processes == 1 else torchrun()).ends_well())
    assert "going on from" in parts[1].output()
    assert_equal(parts, unbroken[processes])
    shown = curves(tmp_path / "run")
    assert [step for step, _ in shown["val/loss"]] == [19, 39, 59, 79, 99, 119, 139]
    assert len(shown["train/loss"]) == 3
    assert not list(tmp_path.glob("run/checkpoints/.*"))


@pytest.mark.parametrize("processes", [pytest.param(1, marks=SLOW), 2])
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop(mine, processes, asked):
    """Nothing is lost: no step is done twice. Only the last process is asked, the others are told."""
    whole = mine("whole", processes=processes)
    first = mine("run", "--num_workers 1", processes=processes)
    first.until(lambda: first.has_noted("train 1 3 "))
    os.kill(first.pids[-1], asked)
    first.wait()
    assert first.codes()[-1] == 128 + asked
    [step] = re.findall(r"stopped at step (\d+). Resume it with: ", first.output())
    assert steps(first.folder)[-1] == int(step)
    assert "Traceback" not in first.output()
    second = mine("run", "--num_workers 1", processes=processes).ends_well()
    for rank in range(processes):
        places = [line[1:3] for line in mine.notes("run", rank) if line[0] == "train"]
        assert places == [[str(epoch), str(batch)] for epoch in range(2) for batch in range(21)]
    assert_equal([first, second], whole.ends_well())


@pytest.mark.parametrize("processes", [pytest.param(1, marks=SLOW), 2])
def test_asked_to_stop_in_a_validation(mine, processes):
    """41 images: the first process has a batch more than the second, which is slower."""
    flags = "--validate_every 15 --model.pause 0.03"
    whole = mine("whole", flags, processes=processes)
    first = mine("run", flags, processes=processes)
    first.until(lambda: first.has_noted("validate 15 1"))
    os.kill(first.pids[0], signal.SIGTERM)
    assert first.wait() == 143
    assert "stopped at step 15" in first.output()
    assert steps(first.folder)[-1] == 15
    second = mine("run", flags, processes=processes).ends_well()
    assert_equal([first, second], whole.ends_well())
    lines = mine.notes("run")
    begun_again = [line[2] for line in lines if line[:2] == ["validate", "15"]]
    assert begun_again[-5:] == ["0", "1", "2", "3", "4"]  # once more, from its beginning
    assert len([line for line in lines if line[0] == "train"]) == 42


def test_asked_to_stop_in_the_sanity_check(mine):
    whole = mine("whole")
    first = mine("run", "--model.pause 0.3")
    first.until(lambda: first.has_noted("sanity 0 0"))
    os.kill(first.pids[0], signal.SIGTERM)
    assert first.wait() == 143
    assert "stopped at step 0" in first.output()
    assert_equal([first, mine("run").ends_well()], whole.ends_well())


@pytest.mark.parametrize("processes", [1, 2])
def test_each_image_is_drawn_once_an_epoch_over_a_kill(mine, processes):
    flags = f"--checkpoint_every 4 --num_workers {2 - processes}"
    first = mine("run", flags, processes=processes)
    first.until_step(12)
    first.kill()
    mine("run", flags, processes=processes).ends_well()
    drawn = {}
    for rank in range(processes):
        for what, *numbers in mine.notes("run", rank):
            if what == "train":
                epoch, batch, *indices = (int(number) for number in numbers)
                drawn[rank, epoch, batch] = indices  # what was noted last is what went into the weights
    for epoch in range(2):
        indices = [index for place, share in drawn.items() if place[1] == epoch for index in share]
        assert len(indices) == len(set(indices))  # none twice
        # The last batch has 3 images: two processes leave out one, so that they share the others alike.
        assert len(indices) == 203 - (203 % 10) % processes
    sizes = [{place[1:]: len(share) for place, share in drawn.items() if place[0] == rank} for rank in range(processes)]
    assert all(size == sizes[0] for size in sizes)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One epoch, two and three of SMALL that nobody stops; a checkpoint each 5 steps is kept."""
    parent = tmp_path_factory.mktemp("small")
    flags = f"{SMALL} --checkpoint_every 5 --keep all"
    trainings = {n: Training(parent / str(n), f"{flags} --max_epochs {n}") for n in (2, 3)}
    return {n: training.ends_well() for n, training in trainings.items()}


def test_a_damaged_checkpoint_is_seen(small, tmp_path):
    """Cut off at 20 lengths; a wrong bit at 200 places and in each of the last 1,000 bytes, which say what is where."""
    whole = (small[2].folder / "checkpoints/step=00000040.ckpt").read_bytes()
    chance = random.Random(0)
    path = tmp_path / "checkpoints/step=00000040.ckpt"
    path.parent.mkdir()
    before = path.with_name("step=00000035.ckpt")
    shutil.copy(small[2].folder / "checkpoints" / before.name, before)
    for length in [0, 1, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(20))]:
        path.write_bytes(whole[:length])
        assert newest(tmp_path) == before, length
    places = {chance.randrange(len(whole)) for _ in range(200)} | set(range(len(whole) - 1000, len(whole)))
    for place in places:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        assert newest(tmp_path) == before, place
    path.write_bytes(whole)
    assert newest(tmp_path) == path


def test_a_checkpoint_that_another_program_wrote_is_read(small, tmp_path):
    """It has no checksum of the whole: those of its parts are looked at."""
    state = torch.load(small[2].folder / "checkpoints/step=00000040.ckpt", weights_only=True)
    torch.save(state, tmp_path / "other.ckpt")
    assert is_complete(tmp_path / "other.ckpt")
    content = (tmp_path / "other.ckpt").read_bytes()
    for wrong in (content[:-100], content[:100_000] + b"wrong" + content[100_005:]):
        (tmp_path / "other.ckpt").write_bytes(wrong)
        assert not is_complete(tmp_path / "other.ckpt")


def test_the_checkpoint_before_a_damaged_one_is_taken(small, tmp_path):
    shutil.copytree(small[2].folder, tmp_path / "run")
    for step in (35, 40):
        path = tmp_path / f"run/checkpoints/step={step:08d}.ckpt"
        path.write_bytes(path.read_bytes()[:100_000])
    run = Training(tmp_path / "run", f"{SMALL} --checkpoint_every 5 --keep all --max_epochs 2").ends_well()
    for step in (35, 40):
        assert f"step={step:08d}.ckpt is damaged: the checkpoint before it is taken" in run.output()
    assert "step=00000030.ckpt" in re.search("going on from (.*)", run.output())[1]
    assert weights(run) == weights(small[2])
    assert all(is_complete(path) for path in (tmp_path / "run/checkpoints").iterdir())


DYING = """
import os
import signal

import lightning as L


class Dying(L.Callback):
    def on_train_end(self, trainer, module):
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("limit", ["--max_epochs 2", pytest.param("--max_steps 27", marks=SLOW)])
def test_killed_when_the_last_checkpoint_is_written(tmp_path, limit):
    """What is left of the run, its test, is made up for; and TensorBoard's last pages are there."""
    (tmp_path / "dying.py").write_text(DYING)
    flags = f"{SMALL} {limit}"
    whole = Training(tmp_path / "whole", flags).ends_well()
    first = Training(tmp_path / "run", f"{flags} --callbacks+=dying.Dying", path=tmp_path)
    assert first.wait() == -signal.SIGKILL
    assert steps(first.folder) == steps(whole.folder)
    second = Training(tmp_path / "run", flags).ends_well()
    assert weights(second) == weights(whole)
    shown, expected = curves(second.folder), curves(whole.folder)
    assert {"val/confusion_matrix", "val/predictions", "test/accuracy"} <= set(expected)
    # Lightning's count of epochs, beside the test: for it an epoch that --max_steps ends is over, until one resumes it.
    assert shown.pop("epoch")[:-1] == expected.pop("epoch")[:-1]
    assert shown == expected


def test_a_finished_run_trains_nothing(small, tmp_path):
    shutil.copytree(small[2].folder, tmp_path / "run")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/checkpoints").iterdir()}
    run = Training(tmp_path / "run", f"{SMALL} --checkpoint_every 5 --keep all --max_epochs 2").ends_well()
    assert epoch_lines(run) == {}
    assert weights(run) == weights(small[2])
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run/checkpoints").iterdir()}


def test_a_finished_run_goes_on_for_more_epochs(small, tmp_path):
    shutil.copytree(small[2].folder, tmp_path / "run")
    run = Training(tmp_path / "run", f"{SMALL} --checkpoint_every 5 --keep all --max_epochs 3").ends_well()
    assert weights(run) == weights(small[3])
    assert epoch_lines(run) == {"03": epoch_lines(small[3])["03"]}
    expected, shown = curves(small[3].folder), curves(tmp_path / "run")
    for tag in ("train/loss", "val/loss", "val/accuracy"):
        assert shown[tag] == expected[tag], tag


@pytest.mark.parametrize(
    "limit", ["--max_steps 27", pytest.param("--max_steps 20", marks=SLOW), pytest.param("--max_epochs 1", marks=SLOW)]
)
def test_a_limit_that_was_reached_is_raised(small, tmp_path, limit):
    """27 steps are one epoch and a part of the second: the rest of it is still to be done."""
    flags = f"{SMALL} --checkpoint_every 5 --keep all"
    Training(tmp_path / "run", f"{flags} {limit}").ends_well()
    again = Training(tmp_path / "run", f"{flags} {limit}").ends_well()
    assert epoch_lines(again) == {}
    run = Training(tmp_path / "run", f"{flags} --max_epochs 2").ends_well()
    assert weights(run) == weights(small[2])
    assert epoch_lines(run)["02"] == epoch_lines(small[2])["02"]


def test_a_run_that_was_stopped_early_stays_stopped(tmp_path):
    """Its accuracy is said to be the better the smaller it is, so it gets worse at once."""
    (tmp_path / "early.yaml").write_text(
        "callbacks: [{class_path: EarlyStopping, init_args: {monitor: val/accuracy, mode: min, patience: 1}}]"
    )
    first, again = (
        Training(tmp_path / "run", f"--config {tmp_path}/early.yaml {SMALL} --max_epochs 9").ends_well() for _ in "12"
    )
    assert list(epoch_lines(first)) == ["01", "02"]
    assert epoch_lines(again) == {}
    assert weights(again) == weights(first)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on(tmp_path, before, after):
    flags = f"{SMALL} --checkpoint_every 7 --max_epochs 1"
    Training(tmp_path / "run", f"{flags} --max_steps 10", processes=before).ends_well()
    (tmp_path / "run/checkpoints/step=00000010.ckpt").unlink()  # 7 is in the middle of the epoch
    second = Training(tmp_path / "run", flags, processes=after).ends_well()
    assert f"{before} processes wrote the checkpoint, {after} go on" in second.output()
    assert steps(tmp_path / "run")[-1] == 20
    assert weights(second)


def test_one_folder_is_for_one_run_at_a_time(mine):
    whole = mine("whole")
    first = mine("run", "--model.pause 0.05")
    first.until(lambda: first.has_noted("train 0 0"))
    second = mine("run")
    assert second.wait() == 1
    assert "Traceback" not in second.output()
    assert re.search(r"run folder .* is in use by job -, process \d+ on \S+: wait for it, or stop it", second.output())
    assert str(first.pids[0]) in second.output()
    assert_equal([first.ends_well()], whole.ends_well())


@contextlib.contextmanager
def mounted(folder, *options):
    folder.mkdir(exist_ok=True, parents=True)
    done = subprocess.run(["mount", *options, folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"needs root: {done.stderr}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def test_a_full_disk(small, tmp_path):
    """Three checkpoints of 1.7 MB and TensorBoard's files do not fit into 4 MB."""
    flags = f"{SMALL} --checkpoint_every 5 --keep last --max_epochs 2"
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        first = Training(tmp_path / "disk/run", flags)
        assert first.wait() == 1
        assert "Traceback" not in first.output()
        assert "could not be written (No space left on device)" in first.output()
        assert len(first.output().split("No space left on device")) < 12  # a line each
        found = steps(tmp_path / "disk/run")
        assert found == [5, 10]
        assert newest(tmp_path / "disk/run").name == "step=00000010.ckpt"
        remount(tmp_path / "disk", "size=20m")
        second = Training(tmp_path / "disk/run", flags).ends_well()
        assert weights(second) == weights(small[2])
        assert epoch_lines(first) | epoch_lines(second) == epoch_lines(small[2])
        assert curves(tmp_path / "disk/run") == curves(small[2].folder)


def test_a_disk_that_becomes_read_only(mine, tmp_path):
    """Only what is written from then on: Linux makes no disk read-only where a file is open for writing."""
    whole = mine("whole", "--checkpoint_every 5")
    checkpoints = tmp_path / "run/checkpoints"
    first = mine("run", "--checkpoint_every 5")
    first.until_step(10)
    with mounted(checkpoints, "--bind", checkpoints):
        remount(checkpoints, "bind,ro")
        assert first.wait() == 1
        assert "Traceback" not in first.output()
        assert "step=00000020.ckpt could not be written (Read-only file system)" in first.output()
        assert "the end of the training could not be written" in first.output()
    assert_equal([mine("run", "--checkpoint_every 5").ends_well()], whole.ends_well())


def test_a_loss_that_is_not_finite(mine):
    run = mine("run", "--model.nan_at 5 --checkpoint_every 2")
    assert run.wait() == 1
    assert "Traceback" not in run.output()
    [(step, path)] = re.findall(r"the loss of step (\d+) is not finite. .* are in (\S+);", run.output())
    assert step == "5"
    kept = torch.load(path, weights_only=True)
    assert kept["step"] == 5
    images, labels = kept["batch"]
    assert (images[:, 0, 0, 0] * 256).int().tolist() == [int(number) for number in mine.notes("run")[-1][3:]]
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert steps(run.folder) == [2, 4]


def test_what_ended_before_its_first_checkpoint_begins_anew(mine):
    mine("run", "--model.nan_at 5 --validate_every 2").wait()
    whole = mine("whole", "--validate_every 2")
    assert_equal([mine("run", "--validate_every 2").ends_well()], whole.ends_well())


def test_a_learning_rate_that_is_far_too_large(tmp_path):
    run = Training(tmp_path / "run", f"{SMALL} --optimizer.lr 1e30 --max_epochs 1")
    assert run.wait() == 1
    assert "Traceback" not in run.output()
    assert "is not finite" in run.output()


@pytest.mark.parametrize("rank", [pytest.param(0, marks=SLOW), 1])
def test_a_loss_that_is_not_finite_in_two_processes(mine, rank):
    """In both, or in the second one only."""
    flags = f"--model.nan_at 5 --model.nan_from_rank {rank} --checkpoint_every 2"
    run = mine("run", flags, launcher=torchrun())
    assert run.wait() == 1
    assert "the loss of step 5 is not finite" in run.output()
    assert "src/train.py" not in "".join(re.findall(r"Traceback[\s\S]*?\n\S", run.output()))  # torchrun's own is there
    assert steps(run.folder) == [2, 4]


def test_on_a_gpu_no_checkpoint_is_written_before_its_losses_are_looked_at(tmp_path):
    """The GPU is made up: a loss that is not finite, whose copy is on its way."""
    callback = FiniteLoss(tmp_path)
    copied = SimpleNamespace(synchronize=lambda: None)
    callback.waiting.append((5, [torch.zeros(2)], torch.tensor(False), copied))
    trainer = SimpleNamespace(global_rank=0, lightning_module=torch.nn.Linear(1, 1))
    with pytest.raises(SystemExit, match="the loss of step 5 is not finite"):
        callback.on_save_checkpoint(trainer, None, {})


# Each row: flags; the checkpoints that are there at the end. An epoch has 20 steps if nothing else is said.
CHECKPOINTS = {
    "--max_epochs 2": ("best", 20, 40),
    "--max_epochs 3": ("best", 40, 60),
    "--max_epochs 3 --keep last": (40, 60),
    "--max_epochs 3 --keep all": (20, 40, 60),
    "--max_epochs 4 --keep all --checkpoint_every 2epochs": (40, 80),
    "--max_epochs 3 --keep all --checkpoint_every 2epochs": (40, 60),
    "--max_epochs 1 --limit_train_batches 25 --keep all --checkpoint_every 10": (10, 20, 25),
    "--max_epochs 1 --limit_train_batches 25 --keep all --checkpoint_every 10steps": (10, 20, 25),
    "--max_epochs 2 --keep last --checkpoint_every 15": (30, 40),
    "--max_steps 15 --keep all": (15,),
    "--max_steps 30 --keep all --checkpoint_every 12": (12, 24, 30),
    "--max_epochs 2 --accumulate 2 --keep all --checkpoint_every 6": (6, 12, 18, 20),
    "--smoke true": ("best", 1),
    "--max_epochs 2 --validate_every 2epochs": ("best", 20, 40),
    "--max_epochs 2 --validate_every 100": (20, 40),
    "--fast_dev_run true": (),
}


@pytest.mark.slow
def test_which_checkpoints_are_written(tmp_path):
    trainings = {}
    for number, flags in enumerate(CHECKPOINTS):
        trainings[flags] = Training(tmp_path / str(number), f"{SMALL} {flags}")
        if number % 2:
            trainings[flags].wait()
    found = {}
    for flags, training in trainings.items():
        training.ends_well()
        best = ["best"] if (training.folder / "checkpoints/best.ckpt").exists() else []
        found[flags] = (*best, *steps(training.folder))
    assert found == CHECKPOINTS


def test_a_smoke_test_is_one_batch_of_each(mine):
    run = mine("run", "--smoke true").ends_well()
    assert [line[0] for line in mine.notes("run")] == ["sanity", "train", "validate"]
    assert list(epoch_lines(run)) == ["01"]


def test_a_limit_of_time(mine):
    begin = time.monotonic()
    run = mine("run", "--max_epochs 1000 --max_time 00:00:03").ends_well()
    assert time.monotonic() - begin < 20
    done = len([line for line in mine.notes("run") if line[0] == "train"])
    assert steps(run.folder)[-1] == done < 21_000


def test_a_limit_of_time_falls_between_two_steps(mine):
    """Five batches make a step, and an epoch has 21: four steps of five, and one of one."""
    flags = "--max_epochs 6 --accumulate 5 --model.pause 0.05"
    whole = mine("whole", flags)
    first = mine("run", f"{flags} --max_time 00:00:03").ends_well()
    batches = len([line for line in mine.notes("run") if line[0] == "train"])
    assert batches % 21 % 5 == 0
    assert "Time limit reached: stopping at step" in first.output()
    assert 0 < batches < 6 * 21
    second = mine("run", f"{flags} --max_time 00:10:00").ends_well()
    whole.ends_well()
    assert weights(second) == weights(whole)
    assert [line for line in mine.notes("run") if line[0] == "train"] == [
        line for line in mine.notes("whole") if line[0] == "train"
    ]
    assert epoch_lines(second).items() <= epoch_lines(whole).items()
    assert len(epoch_lines(first)) < 6


EVERY = 5  # steps between two checkpoints of the campaign
KILLS = 4 * int(os.environ.get("CAMPAIGN", 1))  # of each kind; CAMPAIGN=4 python -m pytest -m slow kills 64 times


def campaign(parent, processes, workers, chance):
    """Kill a training again and again at random moments; when it has ended all the same, begin another.

    Returns:
        the trainings of each run, in their order; the steps after which was killed; how many kills fell into a save
    """
    flags = f"{FLAGS} --checkpoint_every {EVERY} --num_workers {workers}"
    runs, killed_after, while_saving = [[]], [], 0
    while True:
        folder = parent / f"{processes}-{workers}-{len(runs)}"
        begin = (steps(folder) or [0])[-1]
        training = Training(folder, flags, processes=processes)
        runs[-1].append(training)
        if len(killed_after) < KILLS:
            target = begin + EVERY * chance.randint(1, 5)
            while training.running() and (steps(folder) or [0])[-1] < target:
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.05))
            if training.running():
                training.kill()
                killed_after.append((steps(folder) or [0])[-1])
                while_saving += bool(list(folder.glob("checkpoints/.*.partial")))
                continue
        training.ends_well()
        if len(killed_after) == KILLS:
            return runs, killed_after, while_saving
        runs.append([])


@pytest.mark.slow
def test_killed_at_random_moments(unbroken, tmp_path):
    begin = time.monotonic()
    kills, ended, saving = [], 0, 0
    for processes in (1, 2):
        with ThreadPoolExecutor() as threads:
            pairs = [(workers, random.Random(10 * processes + workers)) for workers in (0, 2)]
            results = [threads.submit(campaign, tmp_path, processes, *pair) for pair in pairs]
        for result in results:
            runs, killed_after, while_saving = result.result()
            for trainings in runs:
                assert_equal(trainings, unbroken[processes])
                assert not list(trainings[0].folder.glob("checkpoints/.*"))
            kills += killed_after
            saving += while_saving
            ended += len(runs)
    print(
        f"{len(kills)} kills, {saving} of them while a checkpoint was written, in {ended} runs of 150 steps; "
        f"the checkpoints then were of steps {sorted(kills)}. "
        f"All {ended} ended with the weights, epoch lines and curves of the unbroken run. "
        f"{time.monotonic() - begin:.0f} s"
    )
    assert len(kills) == 4 * KILLS
