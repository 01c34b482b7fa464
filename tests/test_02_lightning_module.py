"""Lesson 2: what its README says happens, happens."""

import os
import re

import pytest
from lesson import TEST_LINE, Lesson, assert_one_sentence, epochs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAME = "02-lightning-module"
CHECK = "python ../check.py 02"  # typed in test_exercises.py


@pytest.fixture
def lesson(tmp_path):
    return Lesson(NAME, tmp_path)


def test_every_command_of_the_readme_is_tested(lesson):
    # tests/test_05_improved_logging.py opens a TensorBoard in a browser.
    assert lesson.commands == ["bash ./run.sh", "sbatch ./run.sh", "tensorboard --logdir lightning_logs", CHECK]


def test_the_same_epochs_as_lesson_1_with_events_and_checkpoint(lesson, lesson_1):
    done = lesson.run("bash ./run.sh", "--max_epochs 2", real=True)
    assert done.returncode == 0, done.stderr
    lines = epochs(done.stdout)
    assert len(lines) == 2
    assert TEST_LINE.search(done.stdout)

    assert lines == epochs(lesson_1.stdout)[:2]  # digit for digit

    # The warning, on machines with enough CPUs for it.
    warned = "does not have many workers" in done.stdout + done.stderr
    assert warned == (len(os.sched_getaffinity(0)) > 2)

    # What TensorBoard shows is what was printed.
    events = EventAccumulator(str(lesson.folder / "lightning_logs/version_0")).Reload()
    for column, tag in enumerate(["train/loss", "train/accuracy", "val/loss", "val/accuracy"]):
        assert [scalar.value for scalar in events.Scalars(tag)] == pytest.approx(
            [line[column] for line in lines], abs=6e-5
        )

    # The README's Python block loads the checkpoint; the network in it classifies as well as was printed.
    block = re.search(r"```python\n(.*?)```", (lesson.folder / "README.md").read_text(), re.DOTALL)[1]
    count = """
import torch
from torchvision import datasets

test = datasets.MNIST("../../data", train=False)
images = (test.data / 255 - 0.1307) / 0.3081
model.eval()
with torch.no_grad():
    print((model(images).argmax(dim=1) == test.targets).double().mean().item())
"""
    (lesson.folder / "count.py").write_text(block + count)
    counted = lesson.shell("python count.py")
    assert counted.returncode == 0, counted.stderr
    assert f"{float(counted.stdout.split()[-1]):.4f}" == TEST_LINE.search(done.stdout)[2]


def test_on_a_terminal_there_is_a_progress_bar(lesson):
    screen = lesson.terminal("bash ./run.sh --max_epochs 1 --batch_size 1000")
    assert "Epoch 0" in screen
    assert "epoch: 01/01" in screen
    assert "test loss:" in screen


@pytest.mark.slow
def test_on_slurm(lesson, cluster):
    job = cluster.submit("./run.sh --max_epochs 1 --batch_size 1000", lesson.folder)
    assert cluster.wait(job) == "COMPLETED"
    log = (lesson.folder / f"slurm.{job}.out").read_text()
    assert len(epochs(log)) == 1
    assert "Epoch 0:" not in log  # no progress bar in a log
    assert list((lesson.folder / f"lightning_logs/version_{job}").glob("checkpoints/*.ckpt"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--max_epochs none", ["--max_epochs", "'none'"]),
        ("--lr inf", ["--lr", "'inf'"]),
        ("--seed 99999999999", ["--seed", "positive_int"]),
        ("--data_dir /nowhere", ["/nowhere", "get_data.py mnist"]),
    ],
)
def test_nonsense_in_a_flag_is_one_sentence(lesson, flags, words):
    assert_one_sentence(lesson.run("bash ./run.sh", flags), *words)


def test_a_folder_that_cannot_be_written_is_one_sentence(lesson):
    # /proc is a folder where not even root may write.
    script = lesson.folder / "src/main.py"
    assert_one_sentence(lesson.shell(f"cd /proc && python {script} --max_epochs 1"), "lightning_logs", "/proc")
