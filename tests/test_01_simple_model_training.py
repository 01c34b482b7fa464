"""Lesson 1: what its README says happens, happens."""

import pytest
from lesson import TEST_LINE, Lesson, assert_one_sentence, epochs

NAME = "01-simple-model-training"


@pytest.fixture
def lesson(tmp_path):
    return Lesson(NAME, tmp_path)


def test_every_command_of_the_readme_is_tested_here(lesson):
    assert lesson.commands == [
        "bash ./run.sh",
        "sbatch ./run.sh",
        "squeue --me",
        "squeue --me --start",
        "sacct",
        "sacct -X",
        "bash ./run.sh --max_epochs 2 --lr 3e-3",
        "python ../check.py 01",
    ]


def test_ten_epochs_reach_the_accuracy(lesson_1):
    assert lesson_1.returncode == 0, lesson_1.stderr
    lines = epochs(lesson_1.stdout)
    assert len(lines) == 10
    assert 0.15 < lines[0][0] < 0.40  # a mean over images; sums of batch means would be 64 times smaller
    assert lines[-1][0] < lines[0][0] / 5
    assert lines[-1][1] > 0.99
    assert lines[-1][3] > 0.97
    assert float(TEST_LINE.search(lesson_1.stdout)[2]) > 0.97
    assert "training:" not in lesson_1.stderr  # no progress bar in a log


def test_flags_change_the_training(lesson):
    done = lesson.run("bash ./run.sh --max_epochs 2 --lr 3e-3")
    assert done.returncode == 0, done.stderr
    changed = epochs(done.stdout)
    assert len(changed) == 2
    assert changed[1][3] > 0.95


def test_the_seed_decides_everything(lesson, lesson_1):
    """And on a terminal there is a progress bar."""
    screen = lesson.terminal("bash ./run.sh --max_epochs 1 --seed 1").replace("\r\n", "\n")
    assert "training:" in screen
    assert "epoch: 01/01" in screen
    assert "test loss:" in screen
    same, other = epochs(screen), epochs(lesson.run("bash ./run.sh", "--max_epochs 1 --seed 2").stdout)
    assert same == epochs(lesson_1.stdout)[:1]  # 1 is the default
    assert len(other) == 1
    assert other != same


def test_on_slurm(lesson, cluster):
    done = cluster.run("sbatch ./run.sh --max_epochs 1", lesson.folder, check=True)
    job = done.stdout.removeprefix("Submitted batch job ").strip()
    assert job.isdecimal(), done.stdout
    queue = cluster.run("squeue --me", lesson.folder, check=True).stdout
    assert job in queue
    cluster.run("squeue --me --start", lesson.folder, check=True)

    assert cluster.wait(job) == "COMPLETED"
    assert f"{job}.batch" in cluster.run("sacct", lesson.folder, check=True).stdout
    without_steps = cluster.run("sacct -X", lesson.folder, check=True).stdout
    assert job in without_steps and f"{job}.batch" not in without_steps
    assert cluster.sacct(job, "JobName,NCPUS,Timelimit") == [
        {"JobName": "lesson-1", "NCPUS": "1", "Timelimit": "00:10:00"}
    ]
    log = (lesson.folder / f"slurm.{job}.out").read_text()
    assert len(epochs(log)) == 1
    assert TEST_LINE.search(log)


def test_a_failed_training_is_failed_on_slurm(lesson, cluster):
    job = cluster.submit("./run.sh --lr oops", lesson.folder)
    assert cluster.wait(job) == "FAILED"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--max_epochs 0", ["--max_epochs", "positive_int", "'0'"]),
        ("--max_epochs 1.5", ["--max_epochs", "'1.5'"]),
        ("--batch_size -4", ["--batch_size", "'-4'"]),
        ("--lr nan", ["--lr", "positive_float", "'nan'"]),
        ("--lr -1", ["--lr", "'-1'"]),
        ("--seed one", ["--seed", "'one'"]),
        ("--epochs 3", ["--epochs 3"]),
        ("--data_dir /nowhere", ["/nowhere", "get_data.py mnist"]),
    ],
)
def test_nonsense_in_a_flag_is_one_sentence(lesson, flags, words):
    assert_one_sentence(lesson.run("bash ./run.sh", flags), *words)


def test_a_broken_archive_is_one_sentence_and_left_alone(lesson):
    archive = lesson.own_data() / "train-labels-idx1-ubyte.gz"
    broken = archive.read_bytes()[:-100]
    archive.write_bytes(broken)
    assert_one_sentence(lesson.run("bash ./run.sh"), archive.name)
    assert archive.read_bytes() == broken
    assert not archive.with_suffix("").exists()


def test_a_missing_archive_without_a_network_says_what_to_fetch(lesson):
    archive = lesson.own_data() / "t10k-images-idx3-ubyte.gz"
    archive.unlink()
    nowhere = "http://127.0.0.1:9"  # a proxy that is not there: no network on any machine
    assert_one_sentence(lesson.run("bash ./run.sh", http_proxy=nowhere, https_proxy=nowhere), archive.name)
