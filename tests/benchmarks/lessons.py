"""Lessons 1 to 8, each by the command of its README, and what a reader would do otherwise."""

import json
import re
import tempfile
from pathlib import Path

import loops
import torch
from lesson import Lesson
from measure import Table, Target, own_benchmark, rounds, run

ROUNDS, EPOCHS = 3, 3
MNIST_EPOCH = ["mlp", [1, 28, 28], 860, 79]  # network, images, batches of training and of validation
HUNDRED_BATCHES = ["resnet18", [3, 32, 32], 100, 10]
# lesson: its folder, its command, more flags, the network's part of an epoch; {n} is the number of epochs
LESSONS = {
    "1 plain loop": ("01-simple-model-training", "bash ./run.sh", "--max_epochs {n}", MNIST_EPOCH),
    "2 Lightning": ("02-lightning-module", "bash ./run.sh", "--max_epochs {n}", MNIST_EPOCH),
    "3 data by the batch": ("03-improved-data-loading", "bash ./run.sh", "--max_epochs {n}", MNIST_EPOCH),
    "4 run.py": ("04-auto-slurm-script-generation", "python run.py --cluster debug", "--max_epochs {n}", MNIST_EPOCH),
    "5 metrics, pictures": ("05-improved-logging", "python run.py", "--cluster debug --max_epochs {n}", MNIST_EPOCH),
    "6 data modules": ("06-lightning-data-module", "python run.py", "--cluster debug --max_epochs {n}", MNIST_EPOCH),
    "7 ResNet-18, 100 batches": (
        "07-changing-architectures",
        "python run.py --dataset colour-mnist --arch resnet18 --max_epochs 2",
        "--cluster debug --max_epochs 1 --limit_train_batches 100 --limit_val_batches 10",
        HUNDRED_BATCHES,
    ),
    "8 two processes": (
        "08-distributed-training",
        "python run.py --cluster local --tasks_per_node 2",
        "--max_epochs {n}",
        MNIST_EPOCH,
    ),
}
SMALLEST = ["3 data by the batch"]
RESULT = re.compile(r"test accuracy: (\d\.\d+)    seconds per epoch: (\d+\.\d+)")


def run_lesson(name, seed, epochs):
    """Train in a copy of the lesson's folder: (what the command took, seconds an epoch, accuracy, the data's clock)."""
    folder, command, more, _ = LESSONS[name]
    with tempfile.TemporaryDirectory() as parent:
        lesson = Lesson(folder, Path(parent))
        assert command in lesson.commands, f"{command} does not stand in the README of {folder}"
        clocks = Path(parent, "clocks")
        clocks.mkdir()
        command = f"{command} {more.format(n=epochs)} --seed {seed}"
        clock = {"PYTHONPATH": str(Path(__file__).parent / "data_clock"), "BENCHMARK_DATA_CLOCK": str(clocks)}
        done = run(command, lesson.folder, **clock)
        logs = "".join(path.read_text() for path in sorted(lesson.folder.glob("logs/*/*.out")))
        [(accuracy, seconds)] = RESULT.findall(done.output) or RESULT.findall(logs) or [(None, None)]
        assert seconds, f"{command} did not say how long it took:\n{done.output}\n{logs}"
        clock = max((json.loads(path.read_text()) for path in clocks.glob("*.json")), key=lambda read: read["seconds"])
    return done, float(seconds), float(accuracy), clock


def otherwise(table, name, smallest):
    """A reader's own loop, with data sample by sample."""
    images = 2_000 if smallest else 55_000
    seconds = loops.per_sample(int(name.split()[-2]), images)
    table.add(name, seconds_an_epoch=seconds, images_a_second=images / seconds)


def measure(smallest):
    turns, epochs = (1, 1) if smallest else (ROUNDS, EPOCHS)
    torch.set_num_threads(1)
    table = Table(
        f"Lessons 1 to 8, each by the command of its README, {epochs} epochs: seconds an epoch with its validation; "
        "how many times the compute-only floor that is (the same network and batches in a bare loop on one core, one "
        "batch again and again); images a second while it trains; the part of a step that is spent on data; memory of "
        "all processes together; accuracy on the test images. Below: the plain loop with data sample by sample.",
        seeds=f", seeds 1 to {turns}",
    )
    lessons = SMALLEST if smallest else list(LESSONS)
    loop = [f"plain loop, {workers} workers" for workers in ([1] if smallest else [0, 1, 2, 4])]
    floors = {str(LESSONS[name][3]): LESSONS[name][3] for name in lessons}
    table.rows = {name: {} for name in [*lessons, *loop]}
    seconds_of = {}
    for turn, name in rounds([*lessons, *loop, *floors], turns):
        if name in floors:
            arch, shape, steps, val_steps = floors[name]
            scale = 10 if smallest else 1
            seconds_of[turn, name] = scale * loops.floor(arch, shape, steps // scale, val_steps // scale)
        elif name in loop:
            otherwise(table, name, smallest)
        else:
            done, seconds, accuracy, clock = run_lesson(name, turn + 1, epochs)
            table.add(
                name,
                seconds_an_epoch=seconds,
                times_the_floor=seconds,  # is divided below, when the floor of this round is known
                images_a_second=loops.BATCH_SIZE * clock["steps"] / clock["seconds"],
                data_in_percent=100 * clock["data"] / clock["seconds"],
                MB=done.megabytes,
                accuracy=accuracy,
            )
    for name in lessons:
        ratios = table.rows[name]["times the floor"]
        for turn in range(turns):
            ratios[turn] /= seconds_of[turn, str(LESSONS[name][3])]
    late = [name for name in lessons if int(name[0]) >= 3]
    targets = [
        Target(
            f"lesson {name}: data in a step, percent", table.mean(name, "data in percent"), 10 if name[0] == "3" else 5
        )
        for name in late
    ]
    sections = {"lesson": table}
    if not smallest:
        sections["lesson-3"] = own_benchmark("03-improved-data-loading", "python benchmark.py")
    return sections, targets
