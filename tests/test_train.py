"""The final stage: what is configured is what happens, whoever starts the training."""

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from lesson import REPOSITORY, cannot_run
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from training import Training, clean, curves, epoch_lines, free_port, numbers_of, steps, weights

sys.path.insert(0, str(REPOSITORY))
from src.config import instantiate, merge, read
from src.models.classifier import Classifier
from src.models.sharding import attach_sharding

PYTHON = sys.executable
PRESETS = sorted(path.stem for path in (REPOSITORY / "src/presets").glob("*.yaml"))
FLAGS = "--model.dropout 0.5 --threads 1 --limit_train_batches 20 --limit_val_batches 2 --max_epochs 2 "

MINE = """
import torch

from src.models.classifier import Classifier


class OwnOptimizer(Classifier):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.125)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of FLAGS."""
    return Training(tmp_path_factory.mktemp("run") / "run", FLAGS).ends_well()


def merged(*argv):
    return yaml.safe_load(merge(argv))


@pytest.mark.parametrize("stack", [*([name] for name in PRESETS), ["one_gpu", "multi_node"]], ids="+".join)
def test_presets(stack):
    parts = instantiate(read(merge([word for name in stack for word in ("--config", name)])))
    assert parts.model.network
    assert parts.data.classes == list("0123456789") or {"one_gpu", "cifar10_fast"} & set(stack)
    optimizer = parts.optimizer(parts.model.parameters())
    if "multi_node" in stack and "one_gpu" in stack:
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.8)  # 0.1 for 128 images, 1,024 are in a batch
        assert parts.lr_scheduler(optimizer).T_max == 30


@pytest.mark.parametrize("job", ["{mem: 4G}", "{nodes: 2}", "{cpus_per_task: 1}", "{}"])
def test_a_file_may_name_part_of_the_job(job, tmp_path):
    """As the presets do: run.py adds the rest, but SageMaker and torchrun start this program without run.py."""
    (tmp_path / "part.yaml").write_text(f"job: {job}")
    flags = f"--config laptop --config {tmp_path}/part.yaml --limit_train_batches 2 --max_epochs 1"
    Training(tmp_path / "run", f"{flags} --prepare").ends_well()
    Training(tmp_path / "run", flags).ends_well()


def test_the_last_file_wins_and_flags_win(tmp_path):
    for name, text in {
        "a": "batch_size: 100\nmax_epochs: 7\nseed: 5",
        "b": "batch_size: 200\nmodel: {class_path: Classifier, init_args: {arch: cnn}}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    a, b = ("--config", f"{tmp_path}/a.yaml"), ("--config", f"{tmp_path}/b.yaml")
    both = merged(*a, *b, "--seed", "6")
    assert (both["batch_size"], both["max_epochs"], both["seed"]) == (200, 7, 6)
    assert merged(*b, *a)["batch_size"] == 100
    assert merged("--seed", "6", *a)["seed"] == 6  # a flag wins, wherever it stands
    assert both["model"]["init_args"]["arch"] == "cnn"
    assert merged(*b, "--model.dropout", "0.25")["model"]["init_args"] == {
        **both["model"]["init_args"],
        "dropout": 0.25,
    }


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--model.arc cnn", ["--model.arc", "Classifier has no arc, but arch"]),
        ("--model Clasifier", ["--model Clasifier", "Classifier"]),
        ("--data MNITS", ["--data MNITS", "MNIST"]),
        ("--optimizer Adamm", ["--optimizer Adamm", "Adam"]),
        ("--lr_scheduler StepLRR", ["--lr_scheduler StepLRR", "StepLR"]),
        ("--model mine.Nothing", ["--model", "mine"]),
        ("--batchsize 3", ["--batchsize", "did you mean --batch_size?"]),
        ("--max_epoch 3", ["--max_epoch", "--max_epochs"]),
        ("--logger nothing", ["--logger nothing", "tensorboard", "csv", "mlflow", "wandb"]),
        ("--keep some", ["--keep", "best", "last", "all"]),
        ("--batch_size 0", ["--batch_size", "0"]),
        ("--max_time 10", ["--max_time 10", "HH:MM:SS"]),
        ("--checkpoint_every often", ["--checkpoint_every often", "500", "1epoch"]),
        ("--overfit_batches 1 --limit_val_batches 2", ["--overfit_batches", "leave out"]),
        ("--strategy fsdp --precision 16-mixed", ["--strategy fsdp", "16-mixed", "bf16-mixed"]),
    ],
)
def test_a_mistake_is_one_sentence(flags, words):
    with pytest.raises(ValueError) as raised:
        merge(flags.split())
    message = str(raised.value)
    assert len(message) < 300
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_mistake_as_it_is_typed(tmp_path):
    done = Training(tmp_path / "run", "--model Clasifier")
    assert done.wait() == 2
    [line] = done.output().splitlines()
    assert line.startswith("train.py: error: --model Clasifier: there is no class of this name")
    assert not done.folder.exists()


def test_print_config_repeats_the_run(run, tmp_path):
    shown = Training(tmp_path / "shown", f"{FLAGS} --print_config").ends_well().output()
    assert yaml.safe_load(shown)["limit_train_batches"] == 20
    (tmp_path / "shown.yaml").write_text(shown)
    again = Training(tmp_path / "again", f"--config {tmp_path}/shown.yaml").ends_well()
    assert weights(again) == weights(run)
    assert epoch_lines(again) == epoch_lines(run)


def test_the_runs_own_config_repeats_it(run, tmp_path):
    again = Training(tmp_path / "again", f"--config {run.folder}/config.yaml").ends_well()
    assert weights(again) == weights(run)
    assert curves(again.folder)["val/loss"] == curves(run.folder)["val/loss"]
    assert (again.folder / "config.yaml").read_text() == (run.folder / "config.yaml").read_text()
    other = Training(tmp_path / "other", f"--config {run.folder}/config.yaml --seed 2").ends_well()
    assert weights(other) != weights(run)


def rows(folder):
    """metrics.csv: for each column its (step, value)."""
    with open(folder / "metrics.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    return {
        name: [(int(line["step"]), float(line[name])) for line in lines if line[name]]
        for name in lines[0]
        if name != "step"
    }


def rates(training):
    """The learning rate that was reported at the end of each epoch."""
    return [value for _, value in rows(training.folder)["train/lr"]]


def last_rate(training):
    """That of the optimizer in the last checkpoint."""
    path = training.folder / f"checkpoints/step={steps(training.folder)[-1]:08d}.ckpt"
    return torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"]


def test_a_thread_that_waits_soon_sleeps():
    """torch's library for threads says itself what it goes by."""
    for given, taken in (({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        environment = clean(os.environ) | {"OMP_DISPLAY_ENV": "VERBOSE"} | given
        done = subprocess.run(
            [sys.executable, "src/train.py", "--help"], cwd=REPOSITORY, env=environment, capture_output=True
        )
        assert f"GOMP_SPINCOUNT = '{taken}'" in done.stderr.decode()


def test_optimizers_and_schedulers_act(tmp_path):
    flags = f"{FLAGS} --logger csv --max_epochs 3 --optimizer SGD --optimizer.lr 0.1"
    (tmp_path / "mine.py").write_text(MINE)
    plain, step, cycle, plateau, torchs, scaled = (
        Training(tmp_path / str(number), f"{flags} {more}", path=tmp_path).ends_well()
        for number, more in enumerate(
            [
                "",
                "--lr_scheduler StepLR --lr_scheduler.step_size 1 --lr_scheduler.gamma 0.5",
                "--lr_scheduler OneCycleLR --lr_scheduler.max_lr 0.2 --lr_scheduler.total_steps 60 --lr_interval step",
                # the smaller the better, it is said, so it gets worse
                "--lr_scheduler lightning.pytorch.cli.ReduceLROnPlateau --lr_scheduler.monitor val/accuracy"
                " --lr_scheduler.patience 0 --lr_scheduler.mode min --lr_scheduler.factor 0.5",
                # torch's own looks at val/loss: here a larger one is said to be better
                "--lr_scheduler torch.optim.lr_scheduler.ReduceLROnPlateau --lr_scheduler.patience 0"
                " --lr_scheduler.mode max --lr_scheduler.factor 0.5",
                "--scale_lr 32",  # 64 images are in a batch
            ]
        )
    )
    assert rates(plain) == pytest.approx([0.1] * 3)
    assert rates(step) == pytest.approx([0.05, 0.025, 0.0125])  # what the next epoch has
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        torch.optim.SGD([torch.zeros(1)], lr=0.1), max_lr=0.2, total_steps=60
    )
    expected = [schedule.get_last_lr()[0]]
    for _ in range(60):
        schedule.optimizer.step()
        schedule.step()
        expected.append(schedule.get_last_lr()[0])
    assert rates(cycle) == pytest.approx([expected[at] for at in (20, 40, 60)], rel=1e-4)
    assert last_rate(plateau) == pytest.approx(0.025)  # two epochs were no better than the first
    assert last_rate(torchs) == pytest.approx(0.025)
    assert rates(scaled) == pytest.approx([0.2] * 3)
    own = Training(tmp_path / "own", f"{FLAGS} --logger csv --model mine.OwnOptimizer", path=tmp_path).ends_well()
    assert rates(own) == [0.125] * 2


def test_csv_goes_on_where_it_was(tmp_path):
    flags = f"{FLAGS} --logger csv --checkpoint_every 7 --validate_every 5 --limit_train_batches 100"
    whole = Training(tmp_path / "whole", flags).ends_well()
    first = Training(tmp_path / "run", flags)
    first.until_step(70)
    first.kill()
    second = Training(tmp_path / "run", flags).ends_well()
    assert weights(second) == weights(whole)
    assert rows(second.folder) == rows(whole.folder)
    assert len(rows(whole.folder)["val/loss"]) == 40


def test_mlflow_goes_on_in_its_run(tmp_path):
    pytest.importorskip("mlflow")
    flags = f"{FLAGS} --logger mlflow --checkpoint_every 7"
    first = Training(tmp_path / "run", f"{flags} --max_steps 25").ends_well()
    identity = (tmp_path / "run/mlflow_run_id.txt").read_text()
    second = Training(tmp_path / "run", flags).ends_well()
    assert "going on from" in second.output()
    assert (tmp_path / "run/mlflow_run_id.txt").read_text() == identity
    assert first.folder == second.folder

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    [experiment] = [found for found in client.search_experiments() if found.name == "runs"]
    [found] = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == identity.strip()
    assert found.data.params["max_epochs"] == "2"
    assert len(client.get_metric_history(found.info.run_id, "val/loss")) == 2


def numbers(training):
    """The metrics in the line that validate and test print."""
    [line] = re.findall(r"((?:val|test) loss: .*?) +\(checkpoint", training.output())
    return {name: float(value) for name, value in re.findall(r"(\w+ \w+): (\S+)", line)}


def test_evaluation_is_exact_for_any_number_of_processes(run, tmp_path):
    """5,000 and 10,000 images, 96 in a batch: the last batch is smaller."""
    flags = f"--config {run.folder}/config.yaml --run {run.folder} --batch_size 96 --limit_val_batches null"
    found = {
        (command, n): Training(tmp_path / f"{command}-{n}", flags, command=command, processes=n).ends_well()
        for command in ("validate", "test", "predict")
        for n in (1, 2)
    }
    for command in ("validate", "test"):
        assert numbers(found[command, 1]) == pytest.approx(numbers(found[command, 2]), abs=1.1e-4)
        assert len(numbers(found[command, 1])) == 5
    [reported] = re.findall(r"test accuracy: (\S+)", run.output())
    assert numbers(found["test", 1])["test accuracy"] == float(reported)

    (tmp_path / "load.py").write_text(LOAD)
    loaded = subprocess.run(
        [PYTHON, tmp_path / "load.py", run.folder, tmp_path / "expected.npy"],
        env=clean(os.environ) | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert loaded.returncode == 0, loaded.stderr
    expected = np.load(tmp_path / "expected.npy")
    for n in (1, 2):
        predictions = np.load(tmp_path / f"predict-{n}/predictions.npz")
        assert predictions["probabilities"].shape == (10_000, 10)
        assert np.abs(predictions["probabilities"] - expected).max() < 1e-5
        assert (predictions["predicted"] == expected.argmax(1)).mean() > 0.9999
        assert list(predictions["classes"]) == list("0123456789")


FAST = (
    "--config cifar10_fast --data ColourMNIST --model.arch cnn --accelerator cpu --threads 1 --batch_size 100 "
    "--limit_train_batches 8 --limit_val_batches 2 --max_epochs 2 --validate_every 1epoch"
)


def test_the_fast_preset_without_a_gpu(tmp_path):
    """On its device or loaded by workers: the same images, augmented alike."""
    held = Training(tmp_path / "held", f"{FAST} --data.on_device true --model.compile false").ends_well()
    loaded = Training(tmp_path / "loaded", f"{FAST} --data.on_device false --model.compile false --num_workers 1")
    assert weights(held) == weights(loaded.ends_well())
    assert epoch_lines(held) == epoch_lines(loaded)
    wrong = Training(tmp_path / "wrong", f"{FAST} --data.on_device true --num_workers 2")
    assert wrong.wait() == 1
    assert "Traceback" not in wrong.output()
    assert wrong.output().splitlines()[-1].startswith("num_workers 2: with on_device there is nothing to load")


@pytest.mark.slow
def test_the_fast_preset_compiled(tmp_path):
    """The same but for rounding; its pages in TensorBoard, its checkpoints, and whoever loads them notice nothing."""
    flags = f"{FAST} --data.on_device true --precision 32"
    eager, compiled = (Training(tmp_path / flag, f"{flags} --model.compile {flag}") for flag in ("false", "true"))
    eager.ends_well()
    assert compiled.wait(400) == 0, compiled.output()
    expected, found = numbers_of(eager), numbers_of(compiled)
    assert found == pytest.approx(expected, abs=0.02)
    states = [torch.load(run.folder / "checkpoints/best.ckpt")["state_dict"] for run in (eager, compiled)]
    assert list(states[0]) == list(states[1])
    assert set(curves(eager.folder)) == set(curves(compiled.folder))


def test_the_images_are_in_memory_once_per_node(tmp_path):
    """Four processes with data workers: all of them read from the same memory."""
    flags = "--num_workers 2 --threads 1 --checkpoint_every 200 --limit_val_batches 1"
    run = Training(tmp_path / "run", flags, processes=4)
    run.until_step(200)
    try:
        for pid in run.pids:
            os.killpg(pid, signal.SIGSTOP)
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        found = list(filter(None, [shared_memory(pid) for pid in pids if session(pid) in run.pids]))
    finally:
        run.kill()
    assert len(found) == 4 * (1 + 2 + 2)  # the workers of training and of validation
    assert len({memory["file"] for memory in found}) == 1
    total = {key: 1024 * sum(memory[key] for memory in found) for key in ("Rss", "Pss")}
    images = 60_000 * (28 * 28 + 8)  # with their labels
    assert 0.9 * images < total["Pss"] < 1.01 * images  # Pss: what several hold counts in parts
    assert total["Rss"] > 4 * images


def test_fsdp(tmp_path):
    """Two processes hold a part of the network each. Killed and resumed as with DDP; one process alone reads it."""
    flags = f"{FLAGS} --model.arch mlp_wide --checkpoint_every 7"
    ddp = Training(tmp_path / "ddp", flags, processes=2).ends_well()
    whole = Training(tmp_path / "whole", f"{flags} --strategy fsdp", processes=2).ends_well()
    assert epoch_lines(whole) == epoch_lines(ddp)  # to the last digit shown; the sums are rounded otherwise
    first = Training(tmp_path / "run", f"{flags} --strategy fsdp", processes=2)
    first.until_step(14)
    first.kill()
    second = Training(tmp_path / "run", f"{flags} --strategy fsdp", processes=2).ends_well()
    assert "going on from" in second.output()
    assert weights(second) == weights(whole)
    tested = Training(tmp_path / "test", f"--config {whole.folder}/config.yaml --run {whole.folder}", command="test")
    assert f"test accuracy: {numbers(tested.ends_well())['test accuracy']:.4f}" in whole.output()
    small = Training(
        tmp_path / "small", f"{flags} --strategy fsdp --batch_size 102", processes=3
    )  # 5,000 = 49 * 102 + 2
    assert small.wait() == 1
    assert "--strategy fsdp: of 5000 images 2 are in the last batch, and each of 3 processes" in small.output()
    assert "Traceback" not in small.output()


def test_fsdp_with_synchronised_batch_norm():
    """Here only that the layers are exchanged: torch has SyncBatchNorm for GPUs only."""
    model = Classifier([3, 32, 32], 10, "resnet18")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model._device_mesh = init_device_mesh("cpu", (1,), mesh_dim_names=("data_parallel",))
        attach_sharding(model, sync_batchnorm=True)
        model.configure_model()
    finally:
        dist.destroy_process_group()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 20 and all(isinstance(norm, nn.SyncBatchNorm) for norm in norms)


def test_gradients_are_clipped_in_mixed_precision_too(tmp_path):
    """Also where the configuration has a fused optimizer, for which Lightning cannot clip."""
    flags = f"{FLAGS} --max_epochs 1 --precision bf16-mixed --optimizer SGD --optimizer.fused true --optimizer.lr 1"
    runs = [Training(tmp_path / clip, f"{flags} --gradient_clip {clip}").ends_well() for clip in ("1e-9", "1")]
    still, moved = (numbers_of(run)[-1] for run in runs)  # validation accuracy
    assert still < 0.3 and moved > 0.6


def session(pid):
    with contextlib.suppress(ProcessLookupError):  # it has ended
        return os.getsid(pid)


def shared_memory(pid):
    """What a process holds of the memory in which the images are: its file, and kB by kind. None if it has none."""
    mappings = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path(f"/proc/{pid}/smaps").read_text(), flags=re.MULTILINE)
    ours = [mapping for mapping in mappings if "memfd:data set" in mapping.partition("\n")[0]]
    if not ours:
        return None
    kinds = {
        kind: sum(int(re.search(rf"^{kind}: +(\d+)", mapping, re.MULTILINE)[1]) for mapping in ours)
        for kind in ("Rss", "Pss")
    }
    [file] = {mapping.split()[4] for mapping in ours}  # its inode
    return kinds | {"file": file}


# A plain Python process: the run in one line, the test images in their order by torchvision alone.
LOAD = """
import sys
import numpy as np, torch
from torchvision.datasets import MNIST
from src.load import load_run

model = load_run(sys.argv[1], "last")
assert not model.training
test = MNIST("{data}", train=False)
images = (test.data[:, None] / 255 - 0.1307) / 0.3081
with torch.no_grad():
    np.save(sys.argv[2], model(images).softmax(1).numpy())
best, last = load_run(sys.argv[1]), load_run(sys.argv[1], "last")
state = torch.load(sys.argv[1] + "/checkpoints/best.ckpt", weights_only=True)["state_dict"]
assert all(torch.equal(value, state[name]) for name, value in best.state_dict().items())
""".replace("{data}", str(REPOSITORY / "data"))


def test_a_run_without_a_best_checkpoint_is_loaded_from_its_last(run, tmp_path):
    from src.load import load_run

    shutil.copytree(run.folder, tmp_path / "run")
    last = load_run(tmp_path / "run", "last").state_dict()
    (tmp_path / "run/checkpoints/best.ckpt").unlink()
    assert all(torch.equal(value, last[name]) for name, value in load_run(tmp_path / "run").state_dict().items())
    with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
        load_run(tmp_path)


def test_begin_with_the_weights_of_another_run(run, tmp_path):
    """A learning rate too small to change a number: what is tested at the end are the weights of the beginning."""
    flags = f"{FLAGS} --max_epochs 1 --optimizer SGD --optimizer.lr 1e-30"
    for source in (run.folder, run.folder / "checkpoints/step=00000040.ckpt"):
        begun = Training(tmp_path / source.name, f"{flags} --init_from {source}").ends_well()
        assert weights(begun) == weights(run)
    wrong = Training(tmp_path / "wrong", f"{flags} --init_from {run.folder} --model.arch cnn")
    assert wrong.wait() == 1
    assert "Traceback" not in wrong.output()
    assert wrong.output().splitlines()[-1].startswith(f"--init_from {run.folder}: ")


@pytest.mark.slow
def test_torchrun_and_python_give_the_same(run, tmp_path):
    launcher = f"{PYTHON} -m torch.distributed.run --nproc_per_node 1 --master_port {free_port()}"
    launched = Training(tmp_path / "run", FLAGS, launcher=launcher).ends_well()
    assert weights(launched) == weights(run)
    assert epoch_lines(launched) == epoch_lines(run)


@pytest.mark.slow
def test_mpirun_and_torchrun_give_the_same(tmp_path):
    if shutil.which("mpirun") is None:
        cannot_run("there is no mpirun")
    launcher = f"mpirun --allow-run-as-root --oversubscribe -n 2 {PYTHON}"
    launched = Training(tmp_path / "mpi", FLAGS, launcher=launcher).ends_well()
    assert weights(launched) == weights(Training(tmp_path / "two", FLAGS, processes=2).ends_well())
    assert len(epoch_lines(launched)) == 2
