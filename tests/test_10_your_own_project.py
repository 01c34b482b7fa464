"""Lesson 10: a copy of the root with a data file, a model file and a YAML, as its README says, and nothing edited."""

import re
import shlex
import signal
import subprocess
import time

import numpy as np
import pytest
import torch
from lesson import Lesson, Root, assert_one_sentence

NAME = "10-your-own-project"
OWN_TEST = "python -m pytest tests/test_my_project.py"
CHECK = "python lessons/check.py 10"  # typed in test_exercises.py
COPY = [
    "mkdir ../my-project",
    "cp -r run.py src requirements.txt .gitignore ../my-project",
    "mkdir ../my-project/tests",
    "cp tests/test_my_project.py ../my-project/tests",
    'ln -s "$PWD/data" ../my-project/data',
    f"cp lessons/{NAME}/my_data.py ../my-project/src/datasets",
    f"cp lessons/{NAME}/my_model.py ../my-project/src/models",
    f"cp lessons/{NAME}/my.yaml ../my-project",
    "cd ../my-project",
]
TRAIN = "python run.py --config my.yaml"
LIST = "python run.py list"
RESUME = "python run.py resume RUN"
SLURM = f"{TRAIN} --cluster slurm --nodes 2"
LOCAL = f"{TRAIN} --cluster local --tasks_per_node 2"
OTHER = f"{TRAIN} --model.width 16 --data.largest 30"
WRONG = f"{TRAIN} --data.larget 30"
TEST = "python run.py test RUN --ckpt best"
PREDICT = "python run.py predict RUN --ckpt best"
LOAD = """python -c "from src.load import load_run; print(load_run('logs/RUN'))\""""

WEIGHTS = re.compile(r"the weights are (\w{16})$", re.MULTILINE)
EPOCH = re.compile(r"epoch: (\d\d)/\d\d    train loss: (\d\.\d{4})    val error: (\d+\.\d{4})$", re.MULTILINE)


class Project(Lesson):
    def __init__(self, parent):
        root = Root(NAME, parent)
        self.commands = root.commands
        assert self.commands[: len(COPY)] == COPY
        done = root.shell("\n".join(["set -e", *COPY]))
        assert done.returncode == 0, done.stderr
        self.folder = parent / "my-project"


def name_of(output):
    return re.search(r"^run (\S+) ", output, re.MULTILINE)[1]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return Project(tmp_path_factory.mktemp("lesson-10"))


@pytest.fixture(scope="module")
def trained(project):
    """The first command: its output, and the run's name."""
    done = project.run(TRAIN, "--cluster debug")
    assert done.returncode == 0, done.stderr
    return done.stdout, name_of(done.stdout)


def test_every_command_of_the_readme_is_tested_here(project):
    assert project.commands == [
        *COPY,
        TRAIN,
        LIST,
        RESUME,
        SLURM,
        LOCAL,
        OTHER,
        WRONG,
        TEST,
        PREDICT,
        LOAD,
        OWN_TEST,
        CHECK,
    ]


def test_it_learns(project, trained):
    output, run = trained
    lines = EPOCH.findall(output)
    assert [epoch for epoch, _, _ in lines] == ["01", "02", "03", "04", "05"], output
    errors = [float(error) for _, _, error in lines]
    assert errors[-1] < 10  # degrees; who always says 0 is wrong by 22.5
    assert re.search(r"test error: \d", output)
    assert run in project.run(LIST).stdout


@pytest.mark.slow
def test_its_own_test_passes(project):
    done = project.run(OWN_TEST)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout


@pytest.mark.slow
def test_killed_it_goes_on_exactly(project, trained):
    before = {path.name for path in (project.folder / "logs").iterdir()}
    process = subprocess.Popen(
        shlex.split(f"{TRAIN} --cluster debug"), cwd=project.folder, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "epoch: 02" in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGINT
    assert "SIGINT: saving at step" in output
    [run] = {path.name for path in (project.folder / "logs").iterdir()} - before
    done = project.shell(RESUME.replace("RUN", run))
    assert done.returncode == 0, done.stderr
    assert WEIGHTS.findall(done.stdout) == WEIGHTS.findall(trained[0])


def test_test_and_predict(project, trained):
    output, run = trained
    done = project.shell(TEST.replace("RUN", run))
    assert done.returncode == 0, done.stderr
    error = float(re.search(r"test error: (\S+)", done.stdout)[1])
    done = project.shell(PREDICT.replace("RUN", run))
    assert done.returncode == 0, done.stderr
    [path] = (project.folder / "logs").glob("*/predictions.npz")
    with np.load(path) as arrays:
        predicted = torch.from_numpy(arrays["angle"])
    true = (2 * torch.rand(2_000, generator=torch.Generator().manual_seed(0)) - 1) * 45
    assert (predicted - true).abs().mean().item() == pytest.approx(error, abs=1e-3)


def test_load_in_python(project, trained):
    done = project.shell(LOAD.replace("RUN", trained[1]))
    assert done.returncode == 0 and done.stdout.startswith("AngleFinder("), done.stderr


@pytest.mark.slow
def test_two_processes_on_one_machine(project):
    done = project.run(LOCAL, "--max_epochs 2")
    assert done.returncode == 0, done.stderr
    run = project.folder / "logs" / name_of(done.stdout)
    deadline = time.monotonic() + 300
    logs = []
    while not (len(logs) == 2 and all(WEIGHTS.search(log) for log in logs)):
        assert time.monotonic() < deadline, logs
        time.sleep(0.3)
        logs = [path.read_text() for path in run.glob("*_log.out")]
    assert len({WEIGHTS.search(log)[1] for log in logs}) == 1
    assert len(EPOCH.findall("".join(logs))) == 2  # the first process says it


@pytest.mark.slow
def test_two_nodes(project, cluster):
    done = cluster.run(f"{SLURM} --max_epochs 2", project.folder, check=True)
    run = name_of(done.stdout)
    assert cluster.wait(run) == "COMPLETED"
    logs = [(project.folder / f"logs/{run}/{run}_{rank}_log.out").read_text() for rank in range(2)]
    assert len({WEIGHTS.search(log)[1] for log in logs}) == 1
    assert len(EPOCH.findall(logs[0])) == 2


def test_arguments_of_ones_own_classes(project):
    done = project.run(OTHER, "--cluster debug --max_epochs 1")
    assert done.returncode == 0, done.stderr
    config = (project.folder / "logs" / name_of(done.stdout) / "config.yaml").read_text()
    assert "width: 16" in config and "largest: 30" in config
    assert_one_sentence(project.run(WRONG, "--cluster debug"), "larget", "largest")


BARE = '''
import lightning as L
from torch import nn


class Bare(L.LightningModule):
    """No arguments, no test, no prediction, no metric, no line an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(784, 1))

    def training_step(self, batch):
        return (self.network(batch[0]).squeeze(1) - batch[1] / 45).square().mean()

    def validation_step(self, batch):
        self.log("val/loss", (self.network(batch[0]).squeeze(1) - batch[1] / 45).square().mean(), sync_dist=True)
'''


def test_the_least_that_is_asked_of_a_model(project):
    (project.folder / "src/models/bare.py").write_text(BARE)
    done = project.shell(f"{TRAIN} --cluster debug --model Bare --monitor val/loss --max_epochs 1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert WEIGHTS.search(done.stdout)
    assert (project.folder / "logs" / name_of(done.stdout) / "checkpoints/best.ckpt").exists()
    wrong = project.shell(f"{TRAIN} --cluster debug --model Bare --max_epochs 1")
    assert_one_sentence(wrong, "--monitor val/error is not among", "val/loss")
