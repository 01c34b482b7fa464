"""What needs a GPU: bash tests/gpu/run.sh OUT runs these tests. Without a GPU they run on the CPU, in few steps."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lesson import REPOSITORY, SLOW
from training import WAITS_ON_CPU, Training, assert_equal, clean, free_port, numbers_of, steps, watched, weights

sys.path.insert(0, str(REPOSITORY))
from src.callbacks.checkpoints import newest

pytestmark = pytest.mark.gpu
HERE = Path(__file__).parent
GPU = torch.cuda.is_available()
ACCELERATOR = "gpu" if GPU else "cpu"
NCCL = "nccl" if GPU else "gloo"
SMALL = f"--accelerator {ACCELERATOR} --threads 1 --limit_val_batches 2 --logger csv --trainer.limit_test_batches 4"
CNN = f"{SMALL} --model.arch cnn --model.dropout 0.5"  # MNIST
COLOUR = f"{SMALL} --data ColourMNIST --model.channels_last true"
RESNET = f"{COLOUR} --batch_size 256 --model.arch resnet18 --model.stem cifar" if GPU else f"{COLOUR} --model.arch cnn"
EXACT = "--trainer.deterministic true --logger tensorboard --checkpoint_every 7 --validate_every 10 --max_epochs 2"
EXACT += " --limit_train_batches 15"
ONE_GPU = f"{HERE}/one_gpu.py"


def start(folder, flags, **options):
    return Training(folder, flags, path=HERE, **options)


def torchrun():
    return f"{sys.executable} -m torch.distributed.run --nproc_per_node 2 --master_port {free_port()} {ONE_GPU} gloo"


def killed_and_resumed(folder, flags, step=7, **options):
    """Two trainings: one that was killed after this step, and the one that resumed it."""
    (folder.parent / "slow.py").write_text(SLOW)
    slowly = f"{flags} --callbacks+=slow.Slow --callbacks.seconds=0.05"
    first = Training(folder, slowly, path=folder.parent, **options)
    first.until_step(step)
    first.kill()
    assert steps(folder)[-1] < 30, "it was not killed before its end"
    second = start(folder, flags, **options).ends_well()
    assert "going on from" in second.output()
    return first, second


def state(run):
    return torch.load(newest(run.folder), map_location="cpu", weights_only=True)


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
def test_precisions(tmp_path, precision):
    """With clipping and accumulation: it learns, its weights are finite and have 32 bits."""
    flags = f"{CNN} --precision {precision} --gradient_clip 1 --accumulate 2 --optimizer.lr 3e-3"
    run = start(tmp_path / "run", f"{flags} --max_epochs 1 --limit_train_batches 200").ends_well()
    assert numbers_of(run)[-1] > 0.8  # validation accuracy
    found = state(run)
    assert all(value.dtype != torch.float16 and value.isfinite().all() for value in found["state_dict"].values())
    assert found["global_step"] == 100
    if GPU:
        assert ("MixedPrecision" in found) == (precision == "16-mixed")  # the state of the gradient scaler


CASES = {
    "workers": f"{CNN} --num_workers 2",
    "16-mixed": f"{CNN} --precision 16-mixed --gradient_clip 1",
    "resnet, bf16": f"{RESNET} --precision bf16-mixed",
    "resnet, on the device": f"{RESNET} --precision bf16-mixed --data.on_device true",
    "compiled": f"{CNN} --model.compile true",
}


@pytest.mark.parametrize("case", CASES)
def test_killed_and_resumed_is_exact(tmp_path, case):
    flags = f"{CASES[case]} {EXACT}"
    whole = start(tmp_path / "whole", flags)
    parts = killed_and_resumed(tmp_path / "run", flags)
    assert_equal(parts, whole.ends_well())


def test_two_runs_are_equal_when_they_are_deterministic(tmp_path):
    runs = [start(tmp_path / name, f"{RESNET} {EXACT} --precision bf16-mixed") for name in "ab"]
    assert len({weights(run.ends_well()) for run in runs}) == 1


def test_a_compiled_network_gives_the_same_numbers(tmp_path):
    flags = f"{CNN} --model.dropout 0 --max_epochs 1 --limit_train_batches 50"
    runs = [start(tmp_path / flag, f"{flags} --model.compile {flag}") for flag in ("false", "true")]
    plain, compiled = (numbers_of(run.ends_well()) for run in runs)
    assert compiled == pytest.approx(plain, abs=0.02)


def test_the_memory_layout_changes_nothing(tmp_path):
    flags = f"{CNN} --model.dropout 0 --max_epochs 1 --limit_train_batches 50"
    runs = [start(tmp_path / flag, f"{flags} --model.channels_last {flag}") for flag in ("false", "true")]
    contiguous, last = (numbers_of(run.ends_well()) for run in runs)
    assert last == pytest.approx(contiguous, abs=0.02)


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_are_copied_from_pinned_memory(tmp_path, workers):
    flags = f"--data probes.Transfers {CNN} --num_workers {workers} --max_epochs 1 --limit_train_batches 3"
    run = start(tmp_path / "run", flags).ends_well()
    seen = re.findall("batch: .*", run.output())
    assert seen == [f"batch: cpu, pinned {GPU}, then {'cuda' if GPU else 'cpu'}"] * 3


def test_no_step_waits_for_the_gpu():
    assert watched(ACCELERATOR) == ([] if GPU else WAITS_ON_CPU)


@pytest.mark.parametrize("precision", ["32", "16-mixed", "bf16-mixed"])
def test_a_loss_that_is_not_finite(tmp_path, precision):
    """The last checkpoint is from before it; the batch is kept."""
    flags = f"--model probes.Times --model.step 12 --model.number .nan {CNN} --precision {precision} --max_epochs 1"
    run = start(tmp_path / "run", f"{flags} --limit_train_batches 40 --checkpoint_every 5")
    assert run.wait() == 1
    assert "the loss of step 12 is not finite" in run.output()
    assert "Traceback" not in run.output()
    assert steps(run.folder) == [5, 10]
    assert all(value.isfinite().all() for value in state(run)["state_dict"].values())
    [kept] = run.folder.glob("not_finite_*.pt")
    assert torch.load(kept, map_location="cpu", weights_only=True)["batch"][0].shape == (64, 1, 28, 28)


def test_gradients_that_overflow_in_16_bits_skip_a_step(tmp_path):
    """The loss is finite, its gradients are not: the scaler skips the step, and the training continues."""
    flags = f"--model probes.Times --model.step 12 --model.number 1e30 {CNN} --precision 16-mixed --max_epochs 1"
    run = start(tmp_path / "run", f"{flags} --limit_train_batches 40 --gradient_clip 1 --optimizer SGD").ends_well()
    found = state(run)
    assert all(value.isfinite().all() for value in found["state_dict"].values())
    if GPU:
        assert found["MixedPrecision"]["scale"] < 65536


def test_the_time_limit(tmp_path):
    """The training ends after some seconds, in the middle of an epoch, and tests its last weights."""
    run = start(tmp_path / "run", f"{CNN} --max_time 00:00:03 --max_epochs 1000 --data.on_device true").ends_well()
    assert "Time limit reached: stopping at step" in run.output()
    assert "test accuracy: " in run.output()
    [step] = {int(step) for step in re.findall(r"stopping at step (\d+)", run.output())}
    assert steps(run.folder)[-1] == step


def test_the_cpu_loads_and_tests_what_was_trained_here(tmp_path):
    """load_run gives the same weights to the last bit, and the CPU measures the same accuracy but for rounding."""
    flags = f"{RESNET} --precision bf16-mixed --max_epochs 1 --limit_train_batches 30"
    run = start(tmp_path / "run", flags).ends_well()
    code = f"""
import torch
from src.load import load_run
from src.utils.seeds import weights_checksum
assert not torch.cuda.is_available()
print("the weights are", weights_checksum(load_run({str(run.folder)!r}, "last")))
"""
    environment = clean(os.environ) | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == f"the weights are {weights(run)}"
    common = f"--config {run.folder}/config.yaml --run {run.folder} --limit_val_batches 4"
    accuracies = []
    for accelerator in (ACCELERATOR, "cpu"):
        flags = f"{common} --accelerator {accelerator} --precision 32"
        tested = start(tmp_path / accelerator, flags, command="validate").ends_well()
        accuracies.append(float(re.search(r"val accuracy: (\d\.\d+)", tested.output())[1]))
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.005)


def test_one_process_with_ddp_over_nccl(tmp_path):
    """The same numbers as without DDP, also with synchronised BatchNorm."""
    flags = f"{RESNET} --precision bf16-mixed --max_epochs 1 --limit_train_batches 30"
    synchronised = "--sync_batchnorm true" if GPU else ""  # torch has it for GPUs only
    ddp = start(tmp_path / "ddp", f"{flags} {synchronised}", launcher=f"{sys.executable} {ONE_GPU} {NCCL}")
    plain = start(tmp_path / "plain", flags).ends_well()
    assert numbers_of(ddp.ends_well()) == pytest.approx(numbers_of(plain), abs=0.02)


def test_two_processes_share_the_gpu(tmp_path):
    """With gloo, as NCCL refuses that. One process gives the same numbers; a stop and a resume change no bit."""
    synchronised = "--sync_batchnorm true" if GPU else ""
    flags = f"{RESNET} {EXACT} --optimizer SGD --optimizer.lr 0.01"
    alone = start(tmp_path / "alone", flags)
    whole = start(tmp_path / "whole", f"{flags} {synchronised}", launcher=torchrun())
    parts = killed_and_resumed(tmp_path / "run", f"{flags} {synchronised}", launcher=torchrun())
    assert_equal(parts, whole.ends_well())
    if GPU:  # without synchronisation BatchNorm depends on how many share a batch
        assert numbers_of(whole) == pytest.approx(numbers_of(alone.ends_well()), abs=0.05)
    alone.kill()


def test_fsdp(tmp_path):
    """One process shards the network, over NCCL: the numbers of a training without it, and its weights can be read."""
    flags = f"{CNN} --model.arch mlp_wide --model.dropout 0 --max_epochs 1 --limit_train_batches 50"
    plain = start(tmp_path / "plain", flags)
    launcher = f"{sys.executable} {ONE_GPU} {NCCL}"
    sharded = start(tmp_path / "sharded", f"{flags} --strategy fsdp", launcher=launcher).ends_well()
    assert numbers_of(sharded) == pytest.approx(numbers_of(plain.ends_well()), abs=0.005)
    tested = start(tmp_path / "test", f"--config {sharded.folder}/config.yaml --run {sharded.folder}", command="test")
    [accuracy] = re.findall("test accuracy: [0-9.]+", tested.ends_well().output())
    assert accuracy in sharded.output()


def doctor(*flags):
    environment = clean(os.environ) | {"NO_COLOR": "1"}
    command = [sys.executable, "run.py", "doctor", *flags]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)


def test_doctor(tmp_path):
    logs = f"--log_path={tmp_path}"
    done = doctor("--gpus_per_node", str(int(GPU)), logs)
    assert "doctor: 0 errors" in done.stdout, done.stdout + done.stderr
    [line] = re.findall(" GPU: .*", done.stdout)
    assert (torch.cuda.get_device_name() if GPU else "none, the training runs on CPUs") in line


def test_doctor_misses_a_gpu(tmp_path):
    done = doctor("--gpus_per_node", str(torch.cuda.device_count() + 1), f"--log_path={tmp_path}")
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "torch sees" in done.stdout, done.stdout + done.stderr


def test_doctors_all_reduce():
    """The check that doctor makes between several GPUs, here with one."""
    code = f"""
import json, torch.distributed as dist
from src.doctor.together import all_reduce
store = dist.TCPStore("127.0.0.1", {free_port()}, 1, True, wait_for_workers=False)
print(json.dumps(vars(all_reduce({NCCL!r}, store, 0, 1))))
"""
    environment = clean(os.environ) | {"LOCAL_RANK": "0"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["level"] == "ok" and "GB/s" in found["text"], found
