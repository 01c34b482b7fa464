"""The benchmark runs; the fast way to change images is torchvision's, bit for bit; no step waits for a GPU."""

import json
import re
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from lesson import REPOSITORY, Lesson, assert_one_sentence, readme_commands
from torchvision.transforms import ToTensor
from torchvision.transforms.v2 import functional as torchvision

sys.path.insert(0, str(REPOSITORY))
sys.path.insert(0, str(REPOSITORY / "tests/benchmarks"))

import report
from measure import Printed, Table, Target
from training import WAITS_ON_CPU, watched
from waits import on_cpu

from src.datasets.augment import crop, flip, normalise

PADDING = 4


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 17, 31), (1, 1, 5), (4, 9, 2)], ids=str)
def test_crop_flip_and_normalise_are_torchvisions(shape):
    """Given the same random numbers, bit for bit."""
    images = torch.randint(256, (50, *shape), dtype=torch.uint8)
    top, left = torch.randint(2 * PADDING + 1, (2, 50))
    top[:2], left[:2] = torch.tensor([0, 2 * PADDING]), torch.tensor([2 * PADDING, 0])  # the corners too
    chosen = torch.rand(50) < 0.5
    mean, std = torch.rand(2, shape[0]).add(0.1).tolist()
    ours = normalise(flip(crop(images, PADDING, top, left), chosen), mean, std)
    assert ours.dtype == torch.float32
    for number, image in enumerate(images):
        padded = torchvision.pad(image, [PADDING])
        theirs = torchvision.crop(padded, int(top[number]), int(left[number]), *shape[1:])
        theirs = torchvision.horizontal_flip(theirs) if chosen[number] else theirs
        theirs = ToTensor()(theirs.permute(1, 2, 0).numpy())  # from 0 to 1, by a division
        assert torch.equal(ours[number], torchvision.normalize(theirs, mean, std))


def test_grey_images_become_colour_when_there_are_three_means():
    images = torch.randint(256, (2, 1, 5, 7), dtype=torch.uint8)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    expected = torchvision.normalize((images / 255).expand(-1, 3, -1, -1), mean, std)
    assert torch.equal(normalise(images, mean, std), expected)


class Here(Lesson):
    """Commands are typed in the repository itself: nothing is written there."""

    def __init__(self):
        self.folder = REPOSITORY
        self.commands = readme_commands(REPOSITORY / "tests/benchmarks")


def test_the_commands_of_the_readme():
    assert Here().commands == [
        "python tests/benchmarks/run.py",
        "python tests/benchmarks/run.py lesson",
        "python tests/benchmarks/run.py data",
        "python tests/benchmarks/run.py step pages launch scaling",
        "python tests/benchmarks/run.py --write",
        "python tests/benchmarks/waits.py",
        "python tests/benchmarks/scaling.py",
        "python tests/benchmarks/scaling.py --project",
        "torchrun --nproc_per_node 2 tests/benchmarks/callbacks.py",
        "python tests/benchmarks/run.py cifar",
    ]


COLUMNS = {
    "lesson": ["seconds an epoch", "times the floor", "images a second", "data in percent", "MB", "accuracy"],
    "step": ["microseconds a step", "more"],
    "step-resnet18": ["microseconds a step", "more"],
    "pages": ["percent of an epoch", "seconds once a training"],
    "data": ["sample by sample", "by the batch", "ratio"],
    "launch": ["seconds"],
    "launch-step": ["imports", "configuration", "data", "network", "summary of the network", "logger",
                    "process group", "first step", "the rest", "total"],
    "launch-submit": ["typed to prompt", "prompt to running", "running to epoch line"],
    "scaling": ["images a second", "times one process", "step, ms", "computing, ms", "communication, ms", "data, ms",
                "the rest, ms"],
    "cifar": ["whole command", "training", "accuracy"],
}  # fmt: skip


WHEN = {
    "lesson": pytest.mark.slow,
    "cifar": pytest.mark.slow,
    "step pages launch scaling": pytest.mark.campaign,
}


@pytest.mark.parametrize("command", ["data", *(pytest.param(tables, marks=mark) for tables, mark in WHEN.items())])
def test_each_table_in_its_smallest_setting(command, tmp_path):
    done = Here().run(f"python tests/benchmarks/run.py {command}", f"--smallest --results {tmp_path}")
    assert done.returncode == 0, done.stderr
    for name in command.split():
        result = json.loads((tmp_path / f"{name}.json").read_text())
        assert set(result) == {"date", "machine", "commit", "load", "sections"}
        assert f"torch {torch.__version__.split('+')[0]}" in result["machine"]
        assert list(result["sections"]) == [section for section in COLUMNS if section.split("-")[0] == name]
        for section, table in result["sections"].items():
            assert table["rows"]
            for row, columns in table["rows"].items():
                assert set(columns) <= set(COLUMNS[section])
                assert all(len(values) == 1 and values[0] >= 0 for values in columns.values() if section == "lesson")
                assert re.search(rf"^\| {re.escape(row)} +\|", done.stdout, re.MULTILINE)
            assert set().union(*table["rows"].values()) == set(COLUMNS[section])
            assert re.search(rf"^\| +\| +{' +[|] +'.join(COLUMNS[section])} +\|$", done.stdout, re.MULTILINE)
        assert f"with {result['machine']}" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_all_reduce_and_what_follows_from_it(tmp_path):
    """The model's own numbers: what hides behind the backward pass costs nothing, what does not costs itself."""
    from scaling import Network, efficiency, exposed

    network = Network(latency=1e-5, bandwidth=1e9)
    assert network.all_reduce(1, 1e8) == 0
    assert network.ring(2, 1e8) == pytest.approx(2 * (1e-5 + 0.05))
    assert network.tree(8, 1e8) == pytest.approx(6e-5 + 0.2)
    assert exposed(network, 8, 1e8, step=10.0) == network.all_reduce(8, 25e6)  # the last bucket
    assert exposed(network, 8, 1e8, step=0.0) == network.all_reduce(8, 1e8)
    assert efficiency(network, 1, 1e8, 1.0) == 1
    falling = [efficiency(network, 2**power, 1e8, 0.1) for power in range(11)]
    assert falling == sorted(falling, reverse=True)

    shutil.copy(REPOSITORY / "tests/benchmarks/results/scaling.json", tmp_path)
    missing = Here().run("python tests/benchmarks/scaling.py --project", f"--results {tmp_path}")
    assert_one_sentence(missing, "all_reduce.json is missing", "python tests/benchmarks/scaling.py")
    done = Here().run("python tests/benchmarks/scaling.py", f"--results {tmp_path}")
    assert re.fullmatch(r"(\d processes: \d+ us a message, [\d.]+ GB/s\n){2}", done.stdout), done.stderr
    out = f"--results {tmp_path} --out {tmp_path}/scaling.png"
    done = Here().run("python tests/benchmarks/scaling.py --project", out)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ 1024 +[\d.]+ ms", done.stdout, re.MULTILINE)
    for advice in ("Grow the batch", "Accumulate", "The limit", "DDP stops paying", "FSDP"):
        assert re.search(rf"^{advice}: ", done.stdout, re.MULTILINE)
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_callbacks(tmp_path):
    done = Here().run("torchrun --nproc_per_node 2 tests/benchmarks/callbacks.py", "--steps 10 --batch_size 8")
    assert done.returncode == 0, done.stderr
    for kind in ("none", "listening", "seeding", "finite loss", "checkpoints", "all"):
        assert re.search(rf"^{kind} +[\d.]+ +[\d.]+ +[\d.]+ to [\d.]+$", done.stdout, re.MULTILINE)


def test_a_table_that_is_not_there():
    done = Here().run("python tests/benchmarks/run.py", "speed")
    assert_one_sentence(done, "speed", "lesson", "scaling")
    assert_one_sentence(Here().run("python tests/benchmarks/run.py --write", "--smallest"), "--smallest")


RESULT = {"date": "2026-11-21 18:00", "machine": "this machine", "load": [0.1, 0.2]}


def table(*seconds):
    made = Table("A caption.", seeds=", seeds 1 to 3")
    for number in seconds:
        made.add("one", seconds=number, accuracy=0.9)
    made.add("two", seconds=1.0)
    return made


def test_a_table_as_markdown():
    assert " ".join(report.heading(table(2.0, 4.0), RESULT).split()) == (
        "A caption. Measured on 2026-11-21 18:00 with this machine. Mean ± standard deviation of 2 rounds, "
        "seeds 1 to 3. Load average: 0.10 at the start, later at most 0.20."
    )
    assert report.markdown(table(2.0, 4.0)).splitlines() == [
        "|     |  seconds |   accuracy |",
        "|-----|---------:|-----------:|",
        "| one | 3.00 ± 1 | 0.9000 ± 0 |",
        "| two |     1.00 |            |",
    ]
    assert report.markdown(Printed("as it is\n")) == "```\nas it is\n```"


def test_what_has_changed_is_what_is_larger_than_the_spread():
    last = RESULT | {"sections": {"lesson": {"rows": table(2.0, 2.1, 2.2).rows}}}
    [since, changed, others] = report.changes(table(4.0, 4.1, 4.3), "lesson", last)
    assert since == "Since 2026-11-21 18:00, on this machine:"
    assert changed == "    one, seconds: 2.10 -> 4.13, x 1.97"
    assert others == "    2 of 3 numbers are as they were, within the spread of both"
    assert report.changes(table(2.1, 2.2, 2.3), "lesson", last)[1:] == [
        "    3 of 3 numbers are as they were, within the spread of both"
    ]
    assert report.changes(table(1.0), "lesson", None) == []


def test_targets():
    assert str(Target("a share", 2.96, 3)) == "met     a share: 3.0, at most 3"
    assert str(Target("a share", 3.1, 3)).startswith("MISSED")
    assert str(Target("times", 21.0, 20, at_least=True)) == "met     times: 21.0, at least 20"
    assert str(Target("times", 19.9, 20, at_least=True)).startswith("MISSED")


def test_only_what_stands_between_the_marks_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    before = "above\n<!-- benchmark: lesson -->\nold\n<!-- /benchmark -->\nbelow\n"
    before += "<!-- benchmark: x -->\nkept\n<!-- /benchmark -->\n"
    readme = tmp_path / "README.md"
    readme.write_text(before)
    assert report.write_into_readmes("lesson", Printed("new"), RESULT) == ["README.md"]
    when = "Measured on 2026-11-21 18:00 with this machine. Load average: 0.10 at the start, later at most 0.20."
    assert readme.read_text() == before.replace("old", f"{when}\n\n```\nnew\n```")
    assert report.write_into_readmes("lesson", Printed("new"), RESULT) == []


def test_every_mark_in_a_readme_is_that_of_a_table():
    sections = {*COLUMNS, "lesson-3", "data-11", "scaling-8"}
    texts = [path.read_text() for path in [REPOSITORY / "README.md", *REPOSITORY.glob("lessons/*/README.md")]]
    texts.append((REPOSITORY / "tests/benchmarks/README.md").read_text())
    assert set(re.findall(r"<!-- benchmark: (\S+) -->", "".join(texts))) == sections


WAITS = {
    "item": lambda x: x.sum().item(),
    "bool": lambda x: bool(x.sum() > 3),
    "float": lambda x: float(x.sum()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to": lambda x: x.to("cpu"),
    "numpy": lambda x: x.numpy(),
    "mask": lambda x: x[x > 3],
    "nonzero": lambda x: x.nonzero(),
    "unique": lambda x: x.unique(),
    "number": lambda x: x + torch.tensor(3.0),
}


@pytest.mark.parametrize("name", WAITS)
def test_what_would_wait_is_found(name):
    found = Counter()
    with on_cpu(found):
        WAITS[name](torch.arange(5.0))
    assert {where.split(":")[0] for _, where in found} == {"tests/test_benchmarks.py"}


def test_what_does_not_wait_is_not_found():
    found, images = Counter(), torch.randint(256, (8, 3, 9, 9), dtype=torch.uint8)
    normalise(images, [0.5] * 3, [0.2] * 3)  # mean and deviation are copied once
    with on_cpu(found):
        normalise(flip(crop(images, PADDING, *torch.randint(9, (2, 8))), torch.rand(8) < 0.5), [0.5] * 3, [0.2] * 3)
        images.float().mean().mul(2).clone()
        torch.from_numpy(np.arange(5))
    assert not found


def test_nothing_in_a_step_would_wait_for_a_gpu():
    """But for FiniteLoss."""
    assert watched("cpu") == WAITS_ON_CPU
