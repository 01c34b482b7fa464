"""Lesson 5: what its README says happens, happens."""

import csv
import importlib.util
import io
import re
import shutil
import subprocess
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from lesson import REPOSITORY, TEST_LINE, Lesson, assert_one_sentence, epochs, page_of
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray
from torchvision import datasets

NAME = "05-improved-logging"
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO   |WARNING) rank 0 ([\w.]+): (.*)")
METRICS = ["loss", "accuracy", "precision", "recall", "f1"]
SCALARS = {f"{stage}/{name}" for stage in ("val", "test") for name in METRICS}
SCALARS |= {"train/loss", "train/accuracy", "train/lr", "epoch"}
IMAGES = {"val/examples", "val/confusion_matrix", "val/predictions", "val/mistakes"}
WEIGHTS = {f"weights/{layer}.{kind}" for layer in (1, 3, 5) for kind in ("weight", "bias")}
FILES = ["hparams.yaml", "model_summary.txt", "fit-profiler.txt", "checkpoints/epoch=*.ckpt", "events.out.tfevents.*"]


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    return Lesson(NAME, tmp_path_factory.mktemp("lesson-5"))


@pytest.fixture(scope="module")
def lesson_4(tmp_path_factory):
    """Two epochs of lesson 4, started at once; they train while lesson 5 does."""
    lesson = Lesson("04-auto-slurm-script-generation", tmp_path_factory.mktemp("lesson-4"))
    with ThreadPoolExecutor() as pool:
        yield pool.submit(lesson.shell, "python run.py --cluster debug --max_epochs 2")


@pytest.fixture(scope="module")
def trained(lesson, lesson_4):
    """Two epochs in this process. Returns what was printed, and the run folder."""
    done = lesson.run("python run.py", "--cluster debug --max_epochs 2 --log_path logs/trained", real=True)
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (lesson.folder / "logs/trained").iterdir()
    return done, folder


@pytest.fixture(scope="module")
def events(trained):
    accumulator = EventAccumulator(
        str(trained[1]), size_guidance=dict.fromkeys(["scalars", "images", "tensors", "histograms"], 0)
    )
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="module")
def by_hand(trained):
    """Probabilities and labels of the validation images, from the saved weights, without any of the lesson's code."""
    mnist = datasets.MNIST(REPOSITORY / "data", train=True)
    indices = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))[55_000:]
    images = (mnist.data[indices] / 255 - 0.1307) / 0.3081
    [checkpoint] = trained[1].glob("checkpoints/*.ckpt")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    x = images.flatten(start_dim=1)
    for layer in (1, 3, 5):
        x = x @ weights[f"network.{layer}.weight"].T + weights[f"network.{layer}.bias"]
        x = x.relu() if layer < 5 else x
    return x.softmax(dim=1).numpy(), mnist.targets[indices].numpy()


def confusion(predicted, labels):
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def complete(folder: Path) -> None:
    missing = [name for name in FILES if not list(folder.glob(name))]
    assert not missing, f"{missing} not among {sorted(path.name for path in folder.iterdir())}"


def test_every_command_of_the_readme_is_tested_here(lesson):
    assert lesson.commands == [
        "python run.py",
        "python run.py --arch cnn --optimizer SGD --criterion MultiMarginLoss",
        "python run.py --lr 1e-4 1e-3",
        "python run.py --logger csv",
        "tensorboard --logdir logs",
        "python ../check.py 05",
    ]


def test_the_training_is_that_of_lesson_4(trained, lesson_4):
    before = lesson_4.result()
    assert epochs(trained[0].stdout) == epochs(before.stdout) != []
    assert TEST_LINE.search(trained[0].stdout)[2] == TEST_LINE.search(before.stdout)[2]


def test_log_lines_have_time_level_rank_and_name(trained):
    lines = [LOG_LINE.match(line) for line in trained[0].stdout.splitlines()]
    said = {match[3][:14]: match[2] for match in lines if match}
    assert said["epoch: 01/02  "] == said["epoch: 02/02  "] == said["the network"] == "src.main"
    assert said["Seed set to 1"].startswith("lightning.fabric")
    assert said["`Trainer.fit` "].startswith("lightning.pytorch")
    assert all("advice" not in text for text in said)
    assert trained[0].stderr == ""


def test_two_runs_in_one_process_say_everything_twice_not_more(lesson):
    """The second diverges: it ends all the same, and its numbers say so."""
    done = lesson.shell(
        "python run.py --lr 1e-1 1e30 --optimizer SGD --cluster debug --max_epochs 1 --batch_size 1000"
        " --log_path logs/two"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("Seed set to 1", "epoch: 01/01", "`Trainer.fit` stopped", "GPU available", "test loss"):
        assert done.stdout.count(text) == 2, text
    assert done.stdout.count("training loss: nan") == done.stdout.count("validation loss: nan") == 1
    folders = list((lesson.folder / "logs/two").iterdir())
    assert len(folders) == 2
    for folder in folders:
        complete(folder)


def test_the_run_folder_is_complete(trained):
    complete(trained[1])
    summary = (trained[1] / "model_summary.txt").read_text()
    assert summary in trained[0].stdout
    assert "network.5" in summary and "[1, 256]" in summary and "136 K" in summary
    report = (trained[1] / "fit-profiler.txt").read_text()
    assert "FIT Profiler Report" in report and "FIT Profiler Report" in trained[0].stdout
    assert "run_training_epoch" in report and "run_training_epoch" in trained[0].stdout
    hparams = (trained[1] / "hparams.yaml").read_text().splitlines()
    for line in ("arch: mlp", "optimizer: Adam", "criterion: CrossEntropyLoss", "lr: 0.001", "batch_size: 64"):
        assert line in hparams


def test_tensorboard_has_every_page(trained, events):
    tags = events.Tags()
    assert set(tags["scalars"]) == SCALARS
    assert set(tags["images"]) == IMAGES
    assert set(tags["histograms"]) == WEIGHTS
    assert set(tags["tensors"]) == {"custom_scalars__config__"} | {f"pr/{number}" for number in range(10)}
    assert tags["graph"]
    assert len(events.Histograms("weights/1.weight")) == 3  # before the training, and after each epoch
    layout = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert layout.index(b"train/loss") < layout.index(b"val/loss") < layout.index(b"train/accuracy")
    [projector] = trained[1].glob("*/val%2ffeatures")
    assert len((projector / "tensors.tsv").read_text().splitlines()) == 500
    assert set((projector / "metadata.tsv").read_text().split()) == set("0123456789")
    assert Image.open(projector / "sprite.png").size[0] == 23 * 28  # 500 thumbnails in a square


def test_pictures_are_not_blank(events):
    for tag in IMAGES:
        [image] = events.Images(tag)
        pixels = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB")).astype(int)
        assert pixels.std() > 20, tag
        if tag in ("val/predictions", "val/mistakes"):
            red, green, blue = pixels.transpose(2, 0, 1)
            assert ((red > green + 60) & (red > blue + 60)).any() or tag == "val/predictions", "mistakes are red"
            green_text = ((green > red + 60) & (green > blue + 60)).any()
            assert green_text == (tag == "val/predictions"), "only what is right is green"


def test_metrics_equal_a_hand_count(trained, events, by_hand):
    probabilities, labels = by_hand
    matrix = confusion(probabilities.argmax(axis=1), labels)
    right, predicted, true = matrix.diagonal(), matrix.sum(axis=0), matrix.sum(axis=1)
    expected = {
        "val/accuracy": right.sum() / 5000,
        "val/precision": (right / predicted).mean(),
        "val/recall": (right / true).mean(),
        "val/f1": (2 * right / (predicted + true)).mean(),
        "val/loss": -np.log(probabilities[range(5000), labels].astype(float)).mean(),
    }
    for tag, value in expected.items():
        assert events.Scalars(tag)[-1].value == pytest.approx(value, rel=2e-6), tag  # the second epoch alone

    # Every number that was printed is the one that is in the charts.
    for number, tag in enumerate(["train/loss", "train/accuracy", "val/loss", "val/accuracy"]):
        printed = [line[number] for line in epochs(trained[0].stdout)]
        assert [round(event.value, 4) for event in events.Scalars(tag)] == pytest.approx(printed, abs=1e-6)
    assert [event.value for event in events.Scalars("train/lr")] == pytest.approx([1e-3, 1e-3])


def test_pr_curves_equal_a_hand_count(events, by_hand):
    probabilities, labels = by_hand
    for number in range(10):
        first, second = events.Tensors(f"pr/{number}")
        for event in (first, second):
            counts = make_ndarray(event.tensor_proto)[:4]
            assert (counts.sum(axis=0) == 5000).all()  # each epoch has its own images, not those of the one before too
        score = np.floor(probabilities[:, number] * 126)
        for threshold in (0, 1, 63, 125):
            above = score >= threshold
            true, false = (above & (labels == number)).sum(), (above & (labels != number)).sum()
            # A probability that lies on a threshold can fall to either side of it.
            assert counts[:2, threshold] == pytest.approx([true, false], abs=1)


WITHOUT_TRAINING = """
import torch
from torch.utils.tensorboard import SummaryWriter
from src.main import Classifier
from src.utils.tensorboard import add_confusion_matrix, add_pr_curves

# Two epochs of made-up images through the hooks that Lightning calls: the second has forgotten the first.
module = Classifier("mlp", "Adam", "CrossEntropyLoss", 1e-3)
for seed in (0, 1):
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.randn(300, 1, 28, 28, generator=generator), torch.randint(10, (300,), generator=generator)
    module.on_validation_epoch_start()
    for part in (slice(0, 200), slice(200, 300)):
        module.validation_step((images[part], labels[part]))
expected = torch.zeros(10, 10, dtype=int)
for true, predicted in zip(labels, module(images).argmax(dim=1)):
    expected[true, predicted] += 1
assert (module.val_confusion.compute() == expected).all()
assert (module.val_labels.compute() == labels).all()

labels = torch.arange(1000) % 10
probabilities = (5.0 * torch.nn.functional.one_hot(labels, 10)).softmax(dim=1)
with SummaryWriter("logs/perfect") as writer:
    add_pr_curves(writer, probabilities, labels, 0)


class Kept:
    def add_figure(self, name, figure, step):
        self.figure = figure


# A network that takes everything for a 7: its numbers are on dark squares, and the diagonal is pale.
kept, matrix = Kept(), torch.zeros(10, 10, dtype=int)
matrix[:, 7] = 500
add_confusion_matrix(kept, matrix, 0)
for text in kept.figure.axes[0].texts:
    column, row = text.get_position()
    assert text.get_color() == ("white" if column == 7 else "black"), (row, column)
"""


def test_confusion_matrix_and_a_perfect_predictor(lesson):
    done = lesson.shell(f"python - <<'END'{WITHOUT_TRAINING}END")
    assert done.returncode == 0, done.stderr
    perfect = EventAccumulator(str(lesson.folder / "logs/perfect"))
    perfect.Reload()
    for number in range(10):
        curve = make_ndarray(perfect.Tensors(f"pr/{number}")[0].tensor_proto)
        precision, recall = curve[4], curve[5]
        average_precision = -np.sum(np.diff(np.append(recall, 0)) * precision)
        assert average_precision == pytest.approx(1, abs=1e-6)


def test_hparams_with_final_metrics(events):
    content = events.PluginTagToContent("hparams")
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert {"val/accuracy", "test/accuracy"} <= metrics <= set(events.Tags()["scalars"])
    values = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
    assert values["arch"].string_value == "mlp"
    assert values["lr"].number_value == 1e-3


@pytest.fixture(scope="module")
def tensorboard(trained, lesson):
    """The address of a TensorBoard that shows the trained run, on this machine only."""
    server = subprocess.Popen(
        ["tensorboard", "--logdir", "logs", "--host", "127.0.0.1", "--port", "0"],
        cwd=lesson.folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield next(match[0] for line in server.stderr if (match := re.search(r"http://\S+:\d+/", line)))
    server.terminate()
    server.wait()


def test_tensorboard_serves_the_logs(tensorboard):
    listing = urllib.request.urlopen(f"{tensorboard}data/plugins_listing", timeout=30).read().decode()
    for page in ("custom_scalars", "pr_curves", "hparams", "projector"):
        assert f'"{page}"' in listing


def test_a_browser_opens_tensorboard(tensorboard, trained, tmp_path):
    page = page_of(tensorboard, tmp_path)
    assert "Custom Scalars" in page
    assert trained[1].name in page  # the run, in the list at the side


def test_local_job(lesson):
    done = lesson.run("python run.py", "--cluster local --max_epochs 1 --batch_size 1000 --log_path logs/local")
    assert done.returncode == 0, done.stdout + done.stderr
    job, folder = re.search(r"^job (\d+)    (\S+)    lr=0.001 batch_size=1000$", done.stdout, re.MULTILINE).groups()
    folder = lesson.folder / folder
    assert folder.name == job
    log = lesson.folder / re.search(r"tail -F (\S+)", done.stdout)[1]
    deadline = time.monotonic() + 300
    while not (folder / f"{job}_0_result.pkl").exists():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    assert log.parent == folder
    complete(folder)
    assert len(epochs(log.read_text())) == 1
    assert log.read_text().count("Job completed successfully") == 1
    assert "lightning" not in (folder / f"{job}_0_log.err").read_text().lower()
    assert [path.name for path in folder.parent.iterdir()] == [job]  # and no folder called %j


def test_csv_and_the_other_choices(lesson):
    command = "python run.py --arch cnn --optimizer SGD --criterion MultiMarginLoss"
    done = lesson.run(command, "--cluster debug --max_epochs 1 --logger csv --lr 0.1 --log_path logs/csv")
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = epochs(done.stdout)
    assert line[3] > 0.9
    [folder] = (lesson.folder / "logs/csv").iterdir()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    metrics = {name: float(value) for row in rows for name, value in row.items() if value}
    assert metrics.keys() == SCALARS | {"step"}
    assert round(metrics["val/accuracy"], 4) == line[3]
    assert "arch: cnn" in (folder / "hparams.yaml").read_text()
    assert not list(folder.glob("events*"))


def without(package, lesson):
    """The environment in which Python does not find the package."""
    folder = lesson.folder / f"without-{package}"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(
        "import importlib.util\nfind_spec = importlib.util.find_spec\n"
        f"importlib.util.find_spec = lambda name, *more: None if name == {package!r} else find_spec(name, *more)\n"
    )
    return {"PYTHONPATH": str(folder)}


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_one_sentence_and_nothing_is_started(lesson, package):
    command = f"python run.py --logger {package} --log_path logs/{package}"
    done = lesson.shell(command, **without(package, lesson))
    assert_one_sentence(done, f"--logger {package}", f"pip install {package}")
    assert not (lesson.folder / f"logs/{package}").exists()


def test_mlflow(lesson):
    command = "python run.py --logger mlflow --cluster debug --max_epochs 1 --batch_size 1000 --log_path logs/store"
    if importlib.util.find_spec("mlflow") is None:
        assert_one_sentence(lesson.shell(command), "pip install mlflow")
        return
    done = lesson.shell(command)
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = epochs(done.stdout)
    client = importlib.import_module("mlflow").MlflowClient(f"sqlite:///{lesson.folder}/logs/store/mlflow.db")
    [run] = client.search_runs([client.get_experiment_by_name("mnist").experiment_id])
    assert SCALARS - {"epoch"} <= run.data.metrics.keys()
    assert round(run.data.metrics["val/accuracy"], 4) == line[3]
    assert run.data.params["arch"] == "mlp" and run.data.params["lr"] == "0.001"
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("flags", ["--arch vgg", "--optimizer adam", "--criterion NLLLoss", "--logger paper"])
def test_nonsense_in_a_flag_is_one_sentence(lesson, flags):
    flag, value = flags.split()
    assert_one_sentence(lesson.run("python run.py", flags), flag, repr(value), "choose from")


def test_run_py_does_not_import_torch(lesson):
    done = lesson.shell("python -X importtime run.py --dry_run --logger csv")
    assert done.returncode == 0, done.stderr
    assert "/logs/%j/%j_0_log.out" in done.stdout
    assert not re.search(r"\| +(torch|lightning)$", done.stderr, re.MULTILINE)


@pytest.mark.slow
def test_on_slurm(lesson, cluster, tmp_path):
    """With an sbatch that answers late: a job that began at once would not find the folder for its log."""
    late = tmp_path / "sbatch"
    late.write_text(f'#!/bin/sh\n{shutil.which("sbatch")} "$@" && sleep 2\n')
    late.chmod(0o755)
    python = f"PATH={tmp_path}:$PATH python"
    flags = "--cluster slurm --max_epochs 1 --batch_size 1000 --log_path logs/slurm"
    one = cluster.run(f"{python} run.py {flags}", lesson.folder, check=True).stdout
    two = cluster.run(f"{python} run.py --lr 1e-4 1e-3 {flags}", lesson.folder, check=True).stdout
    for refused in ("--partition nowhere --lr 1 2", "--cpus_per_task 99"):
        done = cluster.run(f"{python} run.py {flags} {refused}", lesson.folder)
        assert done.returncode != 0 and "nothing was submitted" in done.stderr
    jobs = re.findall(r"^job (\S+)    (\S+)    (.*)$", one + two, re.MULTILINE)
    assert [values for _, _, values in jobs] == [f"lr={lr} batch_size=1000" for lr in ("0.001", "0.0001", "0.001")]
    for job, folder, _ in jobs:
        assert cluster.wait(job) == "COMPLETED"
        folder = lesson.folder / folder
        assert folder.name == job
        complete(folder)
        array_id = job.split("_")[0]
        assert "#SBATCH --job-name=mnist" in (folder / f"{array_id}_submission.sh").read_text()
        log = (folder / f"{job}_0_log.out").read_text()
        assert len(epochs(log)) == 1
        assert "lightning" not in (folder / f"{job}_0_log.err").read_text().lower()
    assert sorted(path.name for path in (lesson.folder / "logs/slurm").iterdir()) == sorted(job for job, _, _ in jobs)
    for text in (one, two):
        assert (lesson.folder / re.search(r"tail -F (\S+)", text)[1]).exists()
