"""Projects as people bring them (tests/projects): they train, stop, resume and are evaluated like our own."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from lesson import REPOSITORY, Root, until
from training import Training, clean, curves, steps

PROJECTS = REPOSITORY / "tests/projects"
NAMES = ["audio", "lm", "gan", "stream", "seg", "finetune"]
DATA = {"lm": "--data.text", "stream": "--data.path"}  # they write a file
# One step for two processes: half of the batch in each, nothing random in the network, no padding.
# The GAN is not among them: it draws noise in each process.
HALF = {
    "audio": ("--model.dropout 0 --data.shortest 1200 --limit_train_batches 25", 8),
    "lm": ("--model.sizes.dropouts [0.0,0.0] --precision 32", 4),
    "stream": ("", 8),
    "seg": ("", 6),
    "finetune": ("--callbacks=[]", 10),
}
SLOW = pytest.mark.slow
ONE_AND_TWO = pytest.mark.parametrize("processes", [1, pytest.param(2, marks=SLOW)])
# Two processes of these on each change, those of the others before a release.
PROJECTS_AND_PROCESSES = pytest.mark.parametrize(
    ("name", "processes"),
    [(name, 1) for name in NAMES]
    + [pytest.param(name, 2, marks=SLOW) for name in ("gan", "seg", "finetune")]
    + [pytest.param(name, 2, marks=pytest.mark.campaign) for name in ("audio", "lm", "stream")],
)
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(folder, name): `src/train.py fit` of a project."""
    data = tmp_path_factory.mktemp("data")

    def started(folder, name, flags="", command="fit", processes=1):
        where = f"{DATA[name]} {data}/{name}.txt" if name in DATA else ""
        flags = f"--config {PROJECTS / name}.yaml --accelerator cpu --checkpoint_every 5 {where} {flags}"
        return Training(folder, flags, command, processes, path=PROJECTS)

    return started


@pytest.fixture(scope="module")
def whole(tmp_path_factory, start):
    """whole(name, processes, flags): a run that nobody stops; each is trained once."""
    parent, kept = tmp_path_factory.mktemp("whole"), {}

    def find(name, processes=1, flags=""):
        key = name, processes, flags
        if key not in kept:
            kept[key] = start(parent / str(len(kept)), name, flags, processes=processes).ends_well()
        return kept[key]

    return find


def checksums(training):
    return set(re.findall(r"the weights are (\w{16})$", training.output(), re.MULTILINE))


def assert_same(training, whole):
    """Weights and curves."""
    assert len(checksums(whole)) == 1
    assert checksums(training) == checksums(whole), training.output()
    assert shown(training.folder) == shown(whole.folder)


def shown(folder):
    """What TensorBoard shows.

    The GAN logs pictures under the number of the epoch, not of the step. After a resume, a picture may be there twice.
    """
    return {tag: list(dict.fromkeys(points)) for tag, points in curves(folder).items()}


def stopped(start, run, name, flags, ways, processes=1):
    """A training that is stopped in these ways, one after the other, and then resumes to its end.

    Args:
        ways: kill, ctrl-c, validation (Ctrl-C in one) or epoch (kill between two)
    Returns:
        its last part
    """
    mark = run / "validating"
    for way in ways:
        slow = {"ctrl-c": "--model.slow 0.05", "validation": "--model.slow_val 0.5 --callbacks small.Mark"}.get(way, "")
        every = "--checkpoint_every 1epoch" if way == "epoch" else ""
        before = (steps(run) or [0])[-1]
        part = start(run, name, f"{flags} {slow} {every}", processes=processes)
        if way == "validation":
            part.until(mark.exists)
        else:
            part.until(lambda before=before: steps(run) and steps(run)[-1] > before)
        if way in ("kill", "epoch"):
            part.kill()
        else:  # of several processes the first gets the signal
            os.kill(part.pids[0], signal.SIGINT)
            assert part.wait() in STOPPED, part.output()
            assert "SIGINT: saving" in part.output()
        mark.unlink(missing_ok=True)
    return start(run, name, flags, processes=processes).ends_well()


@pytest.mark.parametrize("name", NAMES)
def test_they_are_short(name):
    assert len((PROJECTS / f"{name}.py").read_text().splitlines()) < 120


@PROJECTS_AND_PROCESSES
def test_stopped_in_all_ways(start, whole, tmp_path, name, processes):
    """Three times SIGKILL, Ctrl-C in the training, Ctrl-C in a validation (of which the GAN has none)."""
    ways = ["kill", "ctrl-c", "kill"] if name == "gan" else ["kill", "validation", "ctrl-c", "kill"]
    part = stopped(start, tmp_path / "run", name, "", [*ways, "kill"] if processes == 1 else ways, processes)
    assert_same(part, whole(name, processes))


@SLOW
@pytest.mark.parametrize("name", HALF)
def test_one_process_and_two(whole, name):
    """The same samples in a step, and each once in an evaluation: the same numbers but for their last digits."""
    flags, size = HALF[name]
    shown = []
    for processes in (1, 2):
        options = f"{flags} --max_epochs 1 --data.batch_size {size * 2 // processes}"
        run = whole(name, processes, options).folder
        shown.append({tag: points for tag, points in curves(run).items() if tag != "__run_graph__"})
    one, two = shown
    assert list(one) == list(two)
    for tag, points in one.items():
        assert [step for step, _ in points] == [step for step, _ in two[tag]]
        values = [[value for _, value in run] for run in (points, two[tag])]
        if isinstance(values[0][0], float):
            np.testing.assert_allclose(*values, rtol=1e-3, err_msg=tag)


LOAD = """
import sys
from src.load import load_run
model = load_run(sys.argv[1], "last")
assert not model.training
print(eval(sys.argv[2]))
"""


def loaded(run, expression):
    """What a program prints that has loaded the model of a run."""
    path = os.pathsep.join([str(REPOSITORY), str(PROJECTS)])
    command = [sys.executable, "-c", LOAD, run, expression]
    done = subprocess.run(command, env=clean(os.environ) | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@PROJECTS_AND_PROCESSES
def test_test_validate_and_predict(whole, tmp_path, name, processes):
    """test prints what was printed at the end of the training; what there is no loader or step for, is one sentence."""
    run = whole(name, 1, HALF[name][0] if processes == 2 and name in HALF else "")
    flags = f"--config {run.folder / 'config.yaml'} --run {run.folder}"
    hooks = (PROJECTS / f"{name}.py").read_text()
    for command, stage in (("test", "test"), ("validate", "val"), ("predict", "predict")):
        folder = tmp_path / command
        done = Training(folder, flags, command, processes, path=PROJECTS)
        code, text = done.wait(), done.output()
        if f"def {stage}_dataloader" not in hooks:
            assert code == 1 and f"{command} needs a {stage}_dataloader" in text, text
            continue
        assert code == 0, text
        if command == "predict":
            assert samples_in(folder) == PREDICTED[name]
        else:
            [line] = re.findall(r"rank 0 train: (.*)    \(checkpoint", text)
            assert numbers_in(line)
            if command == "test":
                ended = numbers_in(re.search(r"rank 0 train: (.*)seconds per epoch", run.output())[1])
                assert numbers_in(line) == pytest.approx(ended, abs=2e-4 if processes > 1 else 0)


# How many samples there are to predict.
PREDICTED = {"audio": 101, "lm": 25, "gan": 101, "stream": 410, "seg": 34, "finetune": 101}


def samples_in(folder):
    """How many samples have a prediction, each of them once."""
    if (folder / "predictions.npz").exists():
        arrays = np.load(folder / "predictions.npz")
        [count] = {len(arrays[name]) for name in arrays.files if name != "classes"}
        return count
    batches = [torch.load(path, weights_only=True) for path in sorted((folder / "predictions").glob("*.pt"))]
    if batches[0]["samples"] is None:  # of a stream
        return sum(len(batch["result"]) for batch in batches)
    places = sorted(place for batch in batches for place in batch["samples"].tolist())
    assert places == list(range(len(places)))
    return len(places)


def numbers_in(line):
    """Of the metrics in a line of the log: {name: value}."""
    return {name: float(value) for name, value in re.findall(r"(\S.*?): (-?\d+\.\d{4})", line)}


@pytest.mark.parametrize("name", NAMES)
def test_load(whole, name):
    module = re.search(r"class_path: (\w+\.\w+)\n", (PROJECTS / f"{name}.yaml").read_text().partition("model:")[2])[1]
    assert loaded(whole(name).folder, "type(model).__name__").strip() == module.partition(".")[2]


# Callbacks of Lightning's

C = "lightning.pytorch.callbacks"
CALLBACKS = {
    "EMAWeightAveraging": {"decay": 0.9},
    "WeightAveraging": {},
    "BackboneFinetuning": {"unfreeze_backbone_at_epoch": 2, "verbose": False},
    "EarlyStopping": {"monitor": "val_loss", "patience": 1, "min_delta": 0.5},
    "ModelCheckpoint": {"monitor": "val_loss", "save_top_k": 2},
    "LearningRateMonitor": {"logging_interval": "step"},
    "DeviceStatsMonitor": {},
    "RichProgressBar": {},
}


def flag_for(callback, arguments=None):
    content = [{"class_path": f"{C}.{callback}", "init_args": arguments or CALLBACKS[callback]}]
    return f"--callbacks={json.dumps(content, separators=(',', ':'))}"


@pytest.mark.parametrize("callback", CALLBACKS)
def test_callbacks_stopped_and_resumed(start, whole, tmp_path, callback):
    flags = flag_for(callback)
    part = stopped(start, tmp_path / "run", "small", flags, ["ctrl-c", "validation", "epoch"])
    whole = whole("small", 1, flags)
    if callback == "DeviceStatsMonitor":  # how busy the machine was is no number of the training
        assert checksums(part) == checksums(whole) and len(checksums(whole)) == 1
    else:
        assert_same(part, whole)


def test_a_callback_that_cannot_be_resumed_is_refused(start, tmp_path):
    refused = start(tmp_path / "run", "small", flag_for("StochasticWeightAveraging", {"swa_lrs": 0.01}))
    assert refused.wait() and "StochasticWeightAveraging cannot be resumed exactly" in refused.output()


# Attributes that count, and hooks at the start of an epoch


@ONE_AND_TWO
def test_plain_attributes_and_epoch_starts(start, whole, tmp_path, processes):
    ways = ["ctrl-c", "epoch", "epoch", "ctrl-c", "validation"]
    part = stopped(start, tmp_path / "run", "counting", "", ways, processes)
    assert_same(part, whole("counting", processes))
    if processes == 1:  # the mean loss is an attribute
        flags = f"--config {part.folder / 'config.yaml'} --run {part.folder}"
        again = Training(tmp_path / "test", flags, "test", path=PROJECTS).ends_well()
        [ended], [tested] = (re.findall(r"test_loss: (\S+)", run.output()) for run in (part, again))
        assert ended == tested
        assert float(loaded(part.folder, "model.mean_loss")) != 1


# Loaders of all kinds

EXACT = ["weighted", "distributed", "several", "stateful", "batches", "generators"]
AS_IT_IS = {
    "batch sampler": "Pairs is a batch sampler of your own",
    "iterable": "Endless is an IterableDataset, not a src.datasets.stream.Stream",
    "own": "Own is not a DataLoader of torch's",
}


def with_loader(kind, workers=0):
    model = "--model loaders.Both" if kind == "several" else ""
    return f"--data loaders.Loaders --data.kind {kind} --data.workers {workers} {model}"


@ONE_AND_TWO
@pytest.mark.parametrize("kind", EXACT)
def test_loaders_that_resume_exactly(start, whole, tmp_path, kind, processes):
    flags = with_loader(kind, 0 if kind == "stateful" else 2)
    again = stopped(start, tmp_path / "run", "small", flags, ["ctrl-c", "validation", "kill", "epoch"], processes)
    assert "used as it is" not in again.output() or kind == "stateful"
    assert_same(again, whole("small", processes, flags))


@ONE_AND_TWO
@pytest.mark.parametrize("kind", AS_IT_IS)
def test_loaders_that_are_used_as_they_are(start, tmp_path, kind, processes):
    """They train, the processes stay together, and the log says what they cannot do: at the start and at a resume."""
    flags = with_loader(kind.replace(" ", "_"))
    first = start(tmp_path / "run", "small", f"{flags} --model.slow 0.1", processes=processes)
    first.until_step(5)
    first.kill()
    each = "each of the 2 processes reads all its batches, and " if processes == 2 else ""
    begins = f"the train loader is used as it is, because {AS_IT_IS[kind]}: {each}"
    assert f"{begins}a resume in the middle of an epoch is not exact" in first.output()
    again = start(tmp_path / "run", "small", flags, processes=processes).ends_well()
    assert f"{begins}it repeats batches of this epoch, so this resume is not exact" in again.output()
    assert len(checksums(again)) == 1
    uneven = kind == "iterable" and processes == 2
    assert ("the processes have different numbers of batches" in again.output()) == uneven


def test_a_loaders_state_is_of_so_many_processes(start, tmp_path):
    flags = with_loader("stateful")
    first = start(tmp_path / "run", "small", f"{flags} --model.slow 0.1")
    first.until_step(5)
    first.kill()
    again = start(tmp_path / "run", "small", flags, processes=2)
    assert again.wait() == 1
    assert "the state of Stateful is from 1 processes: resume with 1 processes" in again.output()


# Processes that have to agree


@pytest.mark.parametrize(
    "flags",
    [
        "--model.logs differently",
        "--model.logs first",
        "--model.late true",
        "--model.logs in_steps --data small.Single --max_epochs 2",
    ],
)
def test_two_processes_agree(start, tmp_path, flags):
    """The ranks agree on the learning rate, on the best checkpoint and on when to stop. No rank waits forever."""
    stopping = flag_for("EarlyStopping")
    run = start(tmp_path / "run", "small", f"{flags} {stopping}", processes=2).ends_well()
    assert "batch size: 10 per process, 20 in all" in run.output()
    assert len(checksums(run)) == 1 and (tmp_path / "run/checkpoints/best.ckpt").exists()


# A copy of the root in which nothing of ours is left


@SLOW
def test_a_copy_with_one_project_alone(tmp_path):
    """Trained, killed, resumed, tested and searched, with the commands that are typed."""
    root = Root("10-your-own-project", tmp_path)
    own = re.compile(r"^class \w+\(.*(DataModule|LightningModule|Images)\)", re.MULTILINE)
    for folder in ("src/datasets", "src/models"):
        for path in (root.folder / folder).glob("*.py"):
            if own.search(path.read_text()) and path.name != "datamodule.py":
                path.unlink()
    for file in ("audio.py", "audio.yaml"):
        shutil.copy(PROJECTS / file, root.folder)
    logs = root.folder / "logs"
    command = "python run.py --cluster debug --config audio.yaml --checkpoint_every 5 --max_epochs 2"

    def typed(line):
        done = root.shell(line)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def new(before):
        return set(logs.glob("*/")) - before if logs.exists() else set()

    alone = typed(command)
    [checksum] = re.findall(r"the weights are (\w{16})$", alone, re.MULTILINE)
    before = new(set())
    process = subprocess.Popen(
        ["bash", "-c", f"exec {command} --model.slow 0.2"], cwd=root.folder, stdout=subprocess.DEVNULL
    )
    until(lambda: [step for run in new(before) for step in steps(run)])
    process.kill()
    process.wait()
    [run] = new(before)
    assert re.findall(r"the weights are (\w{16})$", typed(f"python run.py resume {run.name}"), re.MULTILINE) == [
        checksum
    ]
    assert re.search(r"epoch: 02/02    .*val_acc: \d", alone)
    tested = re.search(r"train: (.*?)    seconds per epoch", alone)[1]
    assert tested in typed(f"python run.py test {run.name}")
    typed(f"python run.py predict {run.name} --ckpt best")
    typed(f"{command.replace('run.py', 'run.py search')} --name lr --search.model.lr log:1e-4..1e-2 --trials 2")
    assert "2 complete" in typed("python run.py search lr")
