"""Lesson 4: what its README says happens, happens."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lesson import TEST_LINE, Lesson, assert_one_sentence, epochs, until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAME = "04-auto-slurm-script-generation"


@pytest.fixture
def lesson(tmp_path):
    return Lesson(NAME, tmp_path)


@pytest.fixture
def no_slurm(tmp_path):
    """A PATH without sbatch: a laptop's."""
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "bin/bash").symlink_to(shutil.which("bash"))
    return {"PATH": str(python.parent)}


def submitted(done: subprocess.CompletedProcess) -> dict[str, str]:
    """Job ids and run folders, as run.py printed them."""
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"^job (\S+) +(\S+)$", done.stdout, re.MULTILINE))


def assert_complete(run_folder: Path, lr: str, number_of_epochs: int) -> None:
    assert f"lr: {lr}\n" in (run_folder / "hparams.yaml").read_text()
    assert len(list(run_folder.glob("checkpoints/*.ckpt"))) == 1
    events = EventAccumulator(str(run_folder)).Reload()
    for tag in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        assert len(events.Scalars(tag)) == number_of_epochs
    assert len(events.Scalars("test/accuracy")) == 1


def test_every_command_of_the_readme_is_tested(lesson):
    # tests/test_05_improved_logging.py opens a TensorBoard in a browser.
    assert lesson.commands == [
        "python run.py",
        "python run.py --dry_run",
        "python run.py --time 00:05:00 --mem 2G --cpus_per_task 1 --experiment_name short --max_epochs 2",
        "python run.py --lr 1e-4 1e-3",
        "python run.py --cluster local",
        "python run.py --cluster debug",
        "python run.py --help",
        "tensorboard --logdir logs",
        "python ../check.py 04",
    ]


def test_without_slurm_it_runs_here(lesson, lesson_1, no_slurm):
    done = lesson.run("python run.py", "--max_epochs 2", **no_slurm)
    assert done.returncode == 0, done.stderr
    assert epochs(done.stdout) == epochs(lesson_1.stdout)[:2]  # still the digits of lesson 1
    assert TEST_LINE.search(done.stdout)
    [experiment] = (lesson.folder / "logs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_mnist", experiment.name)
    [run_folder] = experiment.iterdir()
    assert f"run folder logs/{experiment.name}/{run_folder.name}" in done.stdout
    assert_complete(run_folder, "0.001", 2)


def test_debug_runs_in_this_process_one_run_after_the_other(lesson):
    done = lesson.run("python run.py --cluster debug", "--max_epochs 1 --lr 1e-4 1e-3 --batch_size 512 1024")
    assert done.returncode == 0, done.stderr
    assert len(re.findall("^epoch: 01/01 ", done.stdout, re.MULTILINE)) == 4
    [experiment] = (lesson.folder / "logs").iterdir()
    names = {f"lr={lr}_batch_size={batch_size}" for lr in ("0.0001", "0.001") for batch_size in (512, 1024)}
    assert {folder.name for folder in experiment.iterdir()} == names
    for name in names:
        assert_complete(experiment / name, name.split("_")[0].removeprefix("lr="), 1)


def test_local_runs_in_the_background_with_log_files(lesson):
    jobs = submitted(lesson.run("python run.py --cluster local", "--max_epochs 1 --batch_size 1000"))
    [(job, run_folder)] = jobs.items()
    run_folder = lesson.folder / run_folder
    result = run_folder.parent / f"{job}_0_result.pkl"
    until(result.exists)
    log = (run_folder.parent / f"{job}_0_log.out").read_text()
    assert len(epochs(log)) == 1
    assert "Epoch 0:" not in log  # no progress bar in a log
    assert_complete(run_folder, "0.001", 1)


def test_on_a_terminal_there_is_a_progress_bar(lesson):
    screen = lesson.terminal("python run.py --cluster debug --max_epochs 1 --batch_size 1000")
    assert "Epoch 0" in screen
    assert "epoch: 01/01" in screen
    assert "test loss:" in screen


def test_slurm(lesson, cluster):
    command = "python run.py --time 00:05:00 --mem 2G --cpus_per_task 1 --experiment_name short --max_epochs 2"
    assert command in lesson.commands
    done = cluster.run(command, lesson.folder)
    [(job, run_folder)] = submitted(done).items()
    experiment = (lesson.folder / run_folder).parent
    assert experiment.name.endswith("_short")

    # The three commands it prints work.
    for line in ("follow the log", "see the queue", "open TensorBoard"):
        assert line in done.stdout
    assert f"tail -F logs/{experiment.name}/{job}_0_log.out" in done.stdout
    assert job in cluster.run(re.search("see the queue +(.*)", done.stdout)[1], lesson.folder, check=True).stdout
    assert "tensorboard --logdir logs" in done.stdout

    assert cluster.wait(job) == "COMPLETED"
    assert cluster.sacct(job, "JobName,NCPUS,Timelimit,ReqMem") == [
        {"JobName": "short", "NCPUS": "1", "Timelimit": "00:05:00", "ReqMem": "2G"}
    ]
    assert len(epochs((experiment / f"{job}_0_log.out").read_text())) == 2
    assert (experiment / f"{job}_0_log.err").exists()
    assert_complete(lesson.folder / run_folder, "0.001", 2)

    # --dry_run showed the script that was submitted, but for the time in the folder's name.
    dry = cluster.run(command + " --dry_run", lesson.folder, check=True).stdout
    assert len(list((lesson.folder / "logs").iterdir())) == 1
    folder_name = re.search(r"logs/(\S+?_short)/", dry)[1]
    script = (experiment / f"{job}_submission.sh").read_text()
    assert dry.replace(folder_name, experiment.name).strip() == script.strip()


def test_an_array_has_a_folder_for_each_run(lesson, cluster):
    jobs = submitted(cluster.run("python run.py --lr 1e-4 1e-3 --max_epochs 1 --batch_size 1000", lesson.folder))
    assert len(jobs) == 2
    array = next(iter(jobs)).split("_")[0]
    assert list(jobs) == [f"{array}_0", f"{array}_1"]
    assert cluster.wait(array) == "COMPLETED"
    assert [row["State"] for row in cluster.sacct(array, "State")] == ["COMPLETED", "COMPLETED"]
    for (job, run_folder), lr in zip(jobs.items(), ("0.0001", "0.001"), strict=True):
        run_folder = lesson.folder / run_folder
        assert_complete(run_folder, lr, 1)
        assert len(epochs((run_folder.parent / f"{job}_0_log.out").read_text())) == 1


@pytest.mark.slow
def test_a_cancelled_job_is_seen_as_cancelled(lesson, cluster):
    done = cluster.run("python run.py --max_epochs 1000 --batch_size 1000", lesson.folder)
    [(job, run_folder)] = submitted(done).items()
    log = (lesson.folder / run_folder).parent / f"{job}_0_log.out"
    until(lambda: log.exists() and "epoch: 01/1000" in log.read_text())
    cluster.run(f"scancel {job}", lesson.folder, check=True)
    assert cluster.wait(job) == "CANCELLED"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--partition nope", ["nothing was submitted", "invalid partition specified: nope"]),
        ("--account nobody", ["nothing was submitted", "Invalid account"]),
        ("--nodes 9", ["nothing was submitted", "Batch job submission failed"]),
    ],
)
def test_what_slurm_refuses_is_said_in_its_words_and_leaves_nothing(lesson, cluster, flags, words):
    done = cluster.run(f"python run.py {flags}", lesson.folder)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert not list((lesson.folder / "logs").iterdir())


def test_dry_run_works_without_slurm_and_writes_nothing(lesson, no_slurm):
    flags = "--gpus_per_node 2 --nodes 2 --partition gpu --time 1-00:00:01"
    done = lesson.run("python run.py --dry_run", flags, **no_slurm)
    assert done.returncode == 0, done.stderr
    for line in [
        "#!/bin/bash",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=2",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --cpus-per-task=2",
        "#SBATCH --mem=4G",
        "#SBATCH --partition=gpu",
        "#SBATCH --time=1441",  # minutes
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
    ]:
        assert line in done.stdout.splitlines()
    assert not (lesson.folder / "logs").exists()


def test_describing_a_job_does_not_import_torch(lesson):
    done = lesson.shell("python -X importtime run.py --dry_run")
    assert done.returncode == 0
    assert "submitit" in done.stderr
    assert not re.search(r"\| +(torch|lightning|torchvision)$", done.stderr, re.MULTILINE)


def test_help_names_every_flag(lesson):
    done = lesson.run("python run.py --help")
    job = "cluster nodes gpus_per_node cpus_per_task mem time partition account log_path experiment_name dry_run"
    training = "lr batch_size max_epochs num_workers seed data_dir"
    for flag in f"{job} {training}".split():
        assert re.search(rf"^  --{flag}\b", done.stdout, re.MULTILINE), flag


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--lr 0", ["--lr", "positive_float", "'0'"]),
        ("--lr 1e-3 x", ["--lr", "'x'"]),
        ("--batch_size 1.5", ["--batch_size", "'1.5'"]),
        ("--max_epochs -1", ["--max_epochs", "'-1'"]),
        ("--num_workers 3", ["--num_workers 3", "--cpus_per_task 2"]),
        ("--seed x", ["--seed", "'x'"]),
        ("--nodes 0", ["--nodes", "'0'"]),
        ("--nodes 2 --cluster local", ["--nodes 2", "needs Slurm"]),
        ("--gpus_per_node -1", ["--gpus_per_node", "'-1'"]),
        ("--gpus_per_node 2 --cluster debug", ["--gpus_per_node 2", "needs Slurm"]),
        ("--cpus_per_task two", ["--cpus_per_task", "'two'"]),
        ("--mem 4", ["--mem", "'4'", "4G"]),
        ("--mem 4GB", ["--mem", "'4GB'", "4G"]),
        ("--time 10", ["--time", "'10'", "HH:MM:SS"]),
        ("--time 00:00:00", ["--time", "HH:MM:SS"]),
        ("--experiment_name a/b", ["--experiment_name", "'a/b'"]),
        ("--cluster pbs", ["--cluster", "'pbs'", "slurm", "local", "debug"]),
        ("--max_epoch 3", ["--max_epoch 3"]),
        ("--log_path /proc/logs --cluster debug", ["/proc/logs", "--log_path"]),
        ("--log_path run.py --cluster debug", ["run.py", "--log_path"]),
    ],
)
def test_nonsense_in_a_flag_is_one_sentence(lesson, flags, words):
    assert_one_sentence(lesson.run("python run.py", flags), *words)
    assert not (lesson.folder / "logs").exists()


def test_a_log_folder_that_is_read_only_is_one_sentence(lesson, tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir(mode=0o500)
    command = f"python run.py --cluster debug --log_path {logs}"
    if os.geteuid() == 0:  # root may write anywhere but on a read-only mount
        mount = f"mount --bind {logs} {logs} && mount -o remount,ro,bind {logs}"
        command = f"unshare --mount bash -c '{mount} && {command}'"
    assert_one_sentence(lesson.shell(command, real=True), str(logs), "--log_path")


def test_a_broken_archive_submits_nothing(lesson):
    archive = lesson.own_data() / "train-images-idx3-ubyte.gz"
    broken = archive.read_bytes()[:-100]
    archive.write_bytes(broken)
    assert_one_sentence(lesson.run("python run.py --cluster local"), archive.name)
    assert archive.read_bytes() == broken
    assert not (lesson.folder / "logs").exists()


def test_two_submissions_in_the_same_second_do_not_share_a_folder(lesson):
    both = "python run.py --cluster debug --max_epochs 1 --batch_size 4096"
    done = lesson.shell(f"{both} & {both} & wait")
    assert len(re.findall("^epoch: 01/01 ", done.stdout, re.MULTILINE)) == 2, done.stderr
    folders = list((lesson.folder / "logs").iterdir())
    assert len(folders) == 2
    for folder in folders:
        assert_complete(folder / "lr=0.001_batch_size=4096", "0.001", 1)
