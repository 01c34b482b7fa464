"""Lesson 8: what its README says happens, happens."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
from lesson import Lesson, assert_one_sentence, epochs, until

NAME = "08-distributed-training"
# 28 steps: long enough to learn something, short enough that the rounding of sums does not grow. --batch_size 2000
# leaves a last batch of 1,000, which four processes share too. One thread, or the number of threads would decide in
# which order numbers are added up, and with it the digits.
SHORT = "--max_epochs 1 --batch_size 2000 --cpus_per_task 1"


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    return Lesson(NAME, tmp_path_factory.mktemp("lesson-8"))


def start(lesson: Lesson, command: str) -> Path:
    """Submit one run; its folder."""
    done = lesson.shell(command)
    assert done.returncode == 0, done.stdout + done.stderr
    [(job, folder)] = re.findall(r"^job (\S+) +(\S+)", done.stdout, re.MULTILINE)
    return lesson.folder / folder


def here(lesson: Lesson, flags: str) -> tuple[Path, list[str]]:
    """A run of one process, in the one that types it: its folder, and its log."""
    done = lesson.shell(f"python run.py --cluster debug {flags}")
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    return lesson.folder / re.search(r"^run folder (\S+)", done.stdout, re.MULTILINE)[1], [done.stdout]


def log_of(folder: Path, rank: int = 0) -> str:
    return (folder / f"{folder.name}_{rank}_log.out").read_text()


def running(pid: str) -> bool:
    """Z: has ended, and nobody has asked how."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True).stdout
    return state != "" and not state.startswith("Z")


def finish(folder: Path, processes: int) -> list[str]:
    """Wait until all processes of a local run have ended well; the log of each."""
    until(lambda: not running(folder.name))
    logs = [log_of(folder, rank) for rank in range(processes)]
    for rank, log in enumerate(logs):
        errors = (folder / f"{folder.name}_{rank}_log.err").read_text()
        assert "Exiting after successful completion" in log, log + errors
        assert errors == ""  # gloo's threads have not aborted anything
    return logs


def weights(logs: list[str]) -> str:
    """The checksum that all processes have logged, once each."""
    [[checksum], *others] = [re.findall(r"the weights are (\w{16})$", log, re.MULTILINE) for log in logs]
    assert all(other == [checksum] for other in others)
    return checksum


@pytest.fixture(scope="module")
def trained(lesson):
    """The same short run with 1, 2 and 4 processes: its folder, and the logs of its processes."""
    command = "python run.py --cluster local --tasks_per_node 2"
    assert command in lesson.commands
    folders = {
        processes: start(lesson, f"{command} {SHORT} --tasks_per_node {processes} --log_path logs/{processes}")
        for processes in (2, 4)
    }
    one = here(lesson, f"{SHORT} --log_path logs/1")
    return {1: one} | {processes: (folder, finish(folder, processes)) for processes, folder in folders.items()}


def test_every_command_of_the_readme_is_tested_here(lesson):
    assert lesson.commands == [
        "python run.py --nodes 2 --tasks_per_node 2 --cpus_per_task 1",
        "python run.py --cluster local --tasks_per_node 2",
        "python run.py --nodes 2 --gpus_per_node 4 --precision bf16-mixed --partition gpu --dry_run",
        "python ddp_steps.py",
        "python ddp_steps.py 5",
        "python scaling.py",
        "python ../check.py 08",
    ]


def test_one_two_and_four_processes_learn_the_same(trained):
    lines = {processes: epochs(logs[0]) for processes, (_, logs) in trained.items()}
    for processes, (_, logs) in trained.items():
        [(train_loss, train_accuracy, val_loss, val_accuracy)] = lines[processes]
        [expected] = lines[1]
        assert train_loss == pytest.approx(expected[0], abs=2e-4)
        assert val_loss == pytest.approx(expected[2], abs=3e-4)
        # Of images on the edge between two classes rounding may decide.
        assert train_accuracy == pytest.approx(expected[1], abs=2e-4)
        assert val_accuracy == pytest.approx(expected[3], abs=6e-4)
        assert all("epoch: 01/01" not in log and "test loss" not in log for log in logs[1:])
        assert weights(logs)


def test_pictures_and_summary_are_written_once(trained):
    for processes, (folder, _) in trained.items():
        assert len(list(folder.glob("events*"))) == 2  # Lightning makes one for the fit and one for the test
        assert len(list(folder.glob("fit-profiler*.txt"))) == 1
        assert len(list(folder.glob("checkpoints/*.ckpt"))) == 1
        assert f"tasks_per_node: {processes}\n" in (folder / "hparams.yaml").read_text()


# The weights that four processes have written, evaluated by 1 to 4 processes. These are forked: torch is imported once.
EVALUATE = """
import multiprocessing, os, sys
import lightning as L, torch
from pathlib import Path
from lightning.pytorch.plugins.environments import LightningEnvironment
from run import free_port
from src.datasets.mnist import MNIST
from src.models.classifier import Classifier


class Keep(L.Callback):
    def on_validation_epoch_end(self, trainer, module):
        self.confusion = module.val_confusion.compute()


def evaluate(rank, world_size, port):
    os.environ.update(LOCAL_RANK=str(rank), MASTER_PORT=str(port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    keep = Keep()
    data = MNIST(Path("../../data").resolve(), 1500 // world_size * world_size, 0, seed=1)
    trainer = L.Trainer(
        accelerator="cpu", devices=world_size, strategy="ddp" if world_size > 1 else "auto", logger=False,
        plugins=[LightningEnvironment()], use_distributed_sampler=False, enable_progress_bar=False, callbacks=[keep],
        enable_checkpointing=False,
    )
    model = Classifier.load_from_checkpoint(sys.argv[1])
    [val] = trainer.validate(model, data, verbose=False)
    [test] = trainer.test(model, data, verbose=False)
    data.setup("fit")
    loader = data.train_dataloader()
    batches = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        batches.append([list(batch) for batch in loader.batch_sampler])
    seen = {"val": val, "test": test, "confusion": keep.confusion, "batches": batches}
    torch.save(seen, f"seen-{world_size}-{rank}")
    os._exit(0)


context = multiprocessing.get_context("fork")
for world_size in (1, 2, 3, 4):
    port = free_port()
    children = [context.Process(target=evaluate, args=(rank, world_size, port)) for rank in range(world_size)]
    for child in children:
        child.start()
    for child in children:
        child.join()
"""


@pytest.fixture(scope="module")
def evaluated(lesson, trained):
    """What each of 1, 2, 3, 4 processes has seen. 5,000, 10,000 and 55,000 images cannot be divided by 3."""
    [checkpoint] = trained[4][0].glob("checkpoints/*.ckpt")
    (lesson.folder / "evaluate.py").write_text(EVALUATE)
    done = lesson.shell(f"python evaluate.py '{checkpoint}'")
    files = {n: [lesson.folder / f"seen-{n}-{rank}" for rank in range(n)] for n in (1, 2, 3, 4)}
    assert all(file.exists() for ranks in files.values() for file in ranks), done.stderr
    return {n: [torch.load(file, weights_only=True) for file in ranks] for n, ranks in files.items()}


def test_validation_and_test_are_exact_for_any_number_of_processes(evaluated, trained):
    one = evaluated[1][0]
    assert one["confusion"].sum() == 5_000
    for ranks in evaluated.values():
        for rank in ranks:
            assert torch.equal(rank["confusion"], one["confusion"])
            for stage in ("val", "test"):
                for name, value in one[stage].items():
                    loss = name.endswith("loss")
                    assert rank[stage][name] == (pytest.approx(value, rel=1e-5) if loss else value), name
    # And what four processes have logged when they wrote these weights is what one says about them.
    accuracy = float(re.search(r"test accuracy: (\S+)", trained[4][1][0])[1])
    assert round(one["test"]["test/accuracy"], 4) == accuracy
    assert round(one["val"]["val/accuracy"], 4) == epochs(trained[4][1][0])[0][3]


def test_a_step_of_all_processes_sees_the_images_of_one_process(evaluated):
    one = evaluated[1][0]["batches"]
    assert one[0] != one[1]
    assert sorted(sum(one[0], [])) == list(range(55_000))
    for processes in (2, 4):
        for epoch in (0, 1):
            shares = [rank["batches"][epoch] for rank in evaluated[processes]]
            for batch, *parts in zip(one[epoch], *shares, strict=True):
                assert sorted(batch) == sorted(sum(parts, []))
                assert len({len(part) for part in parts}) == 1
    # Three processes leave out the one image that is too many, and have the same number of batches.
    shares = [sum(rank["batches"][0], []) for rank in evaluated[3]]
    assert len({len(share) for share in shares}) == 1
    assert len(set(sum(shares, []))) == 54_999


SHARES = """
import torch
from src.datasets.augment import crop, random_crop, random_flip

images = torch.randint(256, (24, 3, 32, 32), dtype=torch.uint8)
for change in (lambda *share: random_crop(share[0], 4, *share[1:]), random_flip):
    torch.manual_seed(1)
    expected = change(images)
    assert not torch.equal(expected, images)
    for world_size in (2, 4):
        for rank in range(world_size):
            torch.manual_seed(1)
            assert torch.equal(change(images[rank::world_size], rank, world_size), expected[rank::world_size])
"""


def test_an_image_is_augmented_alike_whoever_trains_on_it(lesson):
    done = lesson.shell(f"python - <<'END'{SHARES}END")
    assert done.returncode == 0, done.stderr


@pytest.mark.campaign
def test_two_local_jobs_at_once_mixed_precision_sync_batchnorm_and_crops(lesson):
    crops = f"--dataset colour-mnist --arch cnn --lr 0.003 {SHORT} --batch_size 1000 --logger csv"
    first, second = [
        start(lesson, f"python run.py --cluster local {flags} --log_path logs/both")
        for flags in (
            f"{SHORT} --tasks_per_node 2 --precision bf16-mixed",
            f"{crops} --tasks_per_node 2 --sync_batchnorm",
        )
    ]
    _, alone = here(lesson, f"{crops} --log_path logs/alone")
    first, second = finish(first, 2), finish(second, 2)
    assert weights(first) != weights(second)
    assert "Using bfloat16" in first[0] and "Using bfloat16" not in second[0]
    assert epochs(first[0])[0][3] > 0.8
    # One process has made the same random crops as two. With other crops the accuracy is 0.005 away.
    assert epochs(second[0])[0][1] == pytest.approx(epochs(alone[0])[0][1], abs=1e-3)


ENDS = """
import atexit, os, pathlib, sys

def threads():
    if "torch" in sys.modules:
        names = [path.read_text().strip() for path in pathlib.Path("/proc/self/task").glob("*/comm")]
        pathlib.Path(os.environ["ENDS"], f"{os.getpid()}.txt").write_text(" ".join(names))

atexit.register(threads)
"""


def test_no_thread_of_gloo_is_left_when_python_shuts_down(lesson, tmp_path):
    """One that is left sometimes aborts it: 14 of 180 processes whose last thing was a backward pass."""
    (tmp_path / "sitecustomize.py").write_text(ENDS)
    command = f"ENDS={tmp_path} PYTHONPATH={tmp_path} python run.py --cluster local --tasks_per_node 2 {SHORT}"
    folder = start(lesson, f"{command} --log_path logs/ends")
    finish(folder, 2)
    ends = [path.read_text() for path in tmp_path.glob("*.txt")]
    assert len(ends) == 2 and all("python" in names and "gloo" not in names for names in ends), ends


def test_two_nodes_with_two_processes_each(lesson, cluster, trained):
    command = "python run.py --nodes 2 --tasks_per_node 2 --cpus_per_task 1"
    assert command in lesson.commands
    done = cluster.run(f"{command} {SHORT} --log_path logs/slurm", lesson.folder, check=True)
    [(job, folder)] = re.findall(r"^job (\S+) +(\S+)", done.stdout, re.MULTILINE)
    assert cluster.wait(job) == "COMPLETED"
    [row] = cluster.sacct(job, "State,NNodes,NodeList")
    assert row == {"State": "COMPLETED", "NNodes": "2", "NodeList": "node[1-2]"}
    assert cluster.sacct(f"{job}.0", "NTasks", "") == [{"NTasks": "4"}]

    folder = lesson.folder / folder
    logs = [log_of(folder, rank) for rank in range(4)]
    assert weights(logs) == weights(trained[4][1])  # the sums are the same, so are their last bits
    assert [f"GLOBAL_RANK: {rank}, MEMBER: {rank + 1}/4" in log for rank, log in enumerate(logs)] == [True] * 4
    assert epochs(logs[0]) == epochs(trained[4][1][0])
    assert len(list(folder.glob("fit-profiler*.txt"))) == 1


@pytest.mark.slow
def test_a_thread_that_waits_soon_sleeps(lesson):
    """torch's library for threads says itself what it goes by."""
    command = "OMP_DISPLAY_ENV=VERBOSE python run.py --cluster debug --fast_dev_run"
    assert "GOMP_SPINCOUNT = '10000'" in lesson.shell(command, real=True).stderr
    assert "GOMP_SPINCOUNT = '7'" in lesson.shell(command, real=True, GOMP_SPINCOUNT="7").stderr


@pytest.mark.slow
def test_threads_are_the_cpus_that_workers_leave_over(lesson, cluster):
    flags = "--nodes 2 --cpus_per_task 3 --num_workers 1 --fast_dev_run --log_path logs/threads"
    done = cluster.run(f"python run.py --cluster slurm {flags}", lesson.folder, check=True)
    [(job, folder)] = re.findall(r"^job (\S+) +(\S+)", done.stdout, re.MULTILINE)
    assert cluster.wait(job) == "COMPLETED"
    assert cluster.sacct(f"{job}.0", "NTasks,NCPUS", "") == [{"NTasks": "2", "NCPUS": "6"}]  # srun has been told
    for rank in range(2):
        assert "CPUs: 3    workers: 1    threads: 2\n" in log_of(lesson.folder / folder, rank)


CPUS = """
import os, sys
import run

os.cpu_count = lambda: 8
for line in sys.stdin:
    sys.argv[1:] = line.split()
    print({hparams["cpus_per_task"] for hparams in run.plan_runs(run.parse_args())})
"""


def test_without_slurm_processes_share_the_cpus_of_the_machine(lesson):
    shares = {
        "--cluster slurm --cpus_per_task 16 --tasks_per_node 4": 16,
        "--cluster debug --cpus_per_task 3": 3,
        "--cluster debug --cpus_per_task 16 --lr 0.1 0.2": 8,
        "--cluster local --cpus_per_task 16": 8,
        "--cluster local --cpus_per_task 2 --tasks_per_node 2": 2,
        "--cluster local --cpus_per_task 16 --tasks_per_node 2": 4,
        "--cluster local --cpus_per_task 16 --tasks_per_node 2 --lr 0.1 0.2": 2,
        "--cluster local --tasks_per_node 16": 1,
    }
    (lesson.folder / "cpus.py").write_text(CPUS)
    done = lesson.shell("python cpus.py <<'END'\n" + "\n".join(shares) + "\nEND")
    assert done.stdout.splitlines() == [f"{{{share}}}" for share in shares.values()], done.stderr


@pytest.mark.slow
def test_gpus_that_are_not_there_are_one_sentence_in_the_log(lesson, cluster):
    command = f"python run.py --gpus_per_node 2 --partition gpu {SHORT} --log_path logs/gpu"
    done = cluster.run(command, lesson.folder, check=True)
    [(job, folder)] = re.findall(r"^job (\S+) +(\S+)", done.stdout, re.MULTILINE)
    assert cluster.wait(job) == "FAILED"
    logs = [log_of(lesson.folder / folder, rank) for rank in range(2)]
    said = [log.count("--gpus_per_node 2, but torch sees 0 GPUs here") for log in logs]
    assert sum(said) >= 1 and max(said) == 1  # when one has ended, srun ends the other
    written = "".join(path.read_text() for path in (lesson.folder / folder).glob("*_log.*"))
    assert "Traceback" not in written


def test_sync_batchnorm_of_a_batchnorm_needs_gpus(lesson):
    done = lesson.shell("python run.py --arch resnet18 --cluster debug --sync_batchnorm --log_path logs/norm")
    assert done.returncode == 1
    assert "--sync_batchnorm needs GPUs" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--cluster local --batch_size 63", ["--batch_size 63", "2 processes", "62 or 64"]),
        ("--nodes 2 --tasks_per_node 3 --cluster slurm --batch_size 4", ["--batch_size 4", "6 processes", "are 6"]),
        ("--nodes 2 --batch_size 64 65 --dry_run", ["--batch_size 65", "4 processes", "64 or 68"]),
        ("--gpus_per_node 4 --dry_run", ["--tasks_per_node 2", "--gpus_per_node 4", "leave --tasks_per_node away"]),
        ("--cluster debug", ["--cluster debug", "one process, not 2", "--cluster local"]),
        ("--nodes 2 --cluster local", ["--nodes 2", "needs Slurm", "--cluster local"]),
        ("--precision 16-mixed --dry_run", ["16-mixed", "bf16-mixed"]),
        ("--precision 16", ["--precision", "'16'", "bf16-mixed"]),
        ("--num_workers 3", ["--num_workers 3", "--cpus_per_task 2"]),
        ("--tasks_per_node 0", ["--tasks_per_node", "'0'"]),
        ("--overfit_batches 4", ["--overfit_batches is for one process"]),
    ],
)
def test_nonsense_in_a_flag_is_one_sentence(lesson, flags, words):
    done = lesson.shell(f"python run.py --tasks_per_node 2 {flags} --log_path logs/none")
    assert_one_sentence(done, *words)
    assert not (lesson.folder / "logs/none").exists()


def test_the_script_for_gpus(lesson):
    command = "python run.py --nodes 2 --gpus_per_node 4 --precision bf16-mixed --partition gpu --dry_run"
    lines = lesson.run(command).stdout.splitlines()
    for line in ("#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=4", "#SBATCH --gpus-per-node=4"):
        assert line in lines
    assert "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in lines
    [srun] = [line for line in lines if line.startswith("srun")]
    assert "--kill-on-bad-exit=1" in srun


def test_ddp_steps_print_what_the_readme_shows(lesson):
    done = lesson.run("python ddp_steps.py")
    assert done.returncode == 0, done.stderr
    blocks = re.findall(r"```\n(1\. The processes.*?)```", (lesson.folder / "README.md").read_text(), re.DOTALL)
    assert blocks == [done.stdout]
    five = lesson.run("python ddp_steps.py 5").stdout
    assert five and five in done.stdout

    ranks = re.findall(r"rank (\d): (?:gradient|weights)[a-z ]* ([-+.\d ]+)$", done.stdout, re.MULTILINE)
    before, after, own, joint, last = [(ranks[n][1].split(), ranks[n + 1][1].split()) for n in range(0, len(ranks), 2)]
    assert before[0] != before[1] and after == (before[0], before[0])
    assert own[0] != own[1] and joint[0] == joint[1] and last[0] == last[1]
    mean = [(float(a) + float(b)) / 2 for a, b in zip(*own, strict=True)]
    assert [float(number) for number in joint[0]] == pytest.approx(mean, abs=1e-4)
    assert f"one process, all images: {' '.join(joint[0])}" in done.stdout


@pytest.mark.campaign
def test_scaling_prints_its_table(lesson):
    done = lesson.run("python scaling.py", "--rounds 1")
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(\w+) +(\d+) +([124]) +([12]) +(\d+) +(\d+)%$", done.stdout, re.MULTILINE)
    assert len(rows) == 12
    assert all(share == "0" for _, _, processes, _, _, share in rows if processes == "1")
    shown = re.findall(r"^(?:mlp|cnn)  .*%$", (lesson.folder / "README.md").read_text(), re.MULTILINE)
    assert [row.split()[:4] for row in shown] == [list(row[:4]) for row in rows]
