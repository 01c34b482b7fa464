"""Lesson 3: what its README says happens, happens."""

import re

import pytest
from lesson import TEST_LINE, Lesson, assert_one_sentence, epochs

NAME = "03-improved-data-loading"


@pytest.fixture
def lesson(tmp_path):
    return Lesson(NAME, tmp_path)


def test_every_command_of_the_readme_is_tested_here(lesson):
    assert lesson.commands == [
        "bash ./run.sh",
        "bash ./run.sh --fetch sample",
        "sbatch ./run.sh",
        "sbatch ./run.sh --fetch sample",
        "python benchmark.py",
        "python ../check.py 03",
    ]


def test_faster_data_are_the_same_data(lesson, lesson_1):
    done = lesson.run("bash ./run.sh", "--max_epochs 2", real=True)
    assert done.returncode == 0, done.stderr
    assert "fetch by the batch, 0 workers" in done.stdout
    assert "many workers" not in done.stderr  # the advice that the benchmark has refuted
    assert len(epochs(done.stdout)) == 2
    assert epochs(done.stdout) == epochs(lesson_1.stdout)[:2]
    assert TEST_LINE.search(done.stdout)


@pytest.mark.parametrize(("cpus", "workers"), [pytest.param("1", 0, marks=pytest.mark.slow), ("3", 2)])
def test_the_workers_follow_the_allocation(lesson, cpus, workers):
    done = lesson.run("bash ./run.sh --fetch sample", "--max_epochs 1", SLURM_CPUS_PER_TASK=cpus)
    assert done.returncode == 0, done.stderr
    assert f"fetch by the sample, {workers} workers, {cpus} CPUs" in done.stdout
    assert epochs(done.stdout)[0][3] > 0.94


@pytest.mark.slow
def test_on_slurm(lesson, cluster):
    batch = cluster.submit("./run.sh --max_epochs 1 --batch_size 1000", lesson.folder)
    sample = cluster.submit("./run.sh --fetch sample --max_epochs 1 --batch_size 1000", lesson.folder)
    assert cluster.wait(batch) == "COMPLETED"
    assert cluster.wait(sample) == "COMPLETED"
    log = (lesson.folder / f"slurm.{sample}.out").read_text()
    assert "fetch by the sample, 3 workers, 4 CPUs" in log  # run.sh asks for four CPUs
    assert len(epochs(log)) == 1
    assert len(epochs((lesson.folder / f"slurm.{batch}.out").read_text())) == 1


@pytest.mark.campaign
def test_the_benchmark_prints_its_table(lesson):
    done = lesson.run("python benchmark.py", "--rounds 1 --batch_size 512")
    assert done.returncode == 0, done.stderr
    title, workers, sample, batch, floor, advice = done.stdout.splitlines()
    assert title.startswith("seconds per epoch, the fastest of 1; batches of 512;")
    assert workers.split()[-4:] == ["0", "1", "2", "4"]
    seconds = {row[:40].strip(): [float(number) for number in row[40:].split()] for row in (sample, batch, floor)}
    assert [len(numbers) for numbers in seconds.values()] == [4, 4, 1]
    assert all(number > 0 for numbers in seconds.values() for number in numbers)

    # The last line names the fastest of the eight, and by how much it exceeds the floor.
    sample, batch, [floor] = seconds.values()
    fetch, num_workers, ratio = re.match(r"use --fetch (\w+) --num_workers (\d): (\d+\.\d\d) times", advice).groups()
    chosen = {"sample": sample, "batch": batch}[fetch][[0, 1, 2, 4].index(int(num_workers))]
    assert chosen == min(sample + batch)
    assert float(ratio) == pytest.approx(chosen / floor, rel=0.05)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--fetch all", ["--fetch", "'all'", "batch", "sample"]),
        ("--num_workers 4", ["--num_workers 4", "3 CPUs"]),
        ("--num_workers -1", ["--num_workers -1", "3 CPUs"]),
        ("--num_workers x", ["--num_workers", "'x'"]),
        ("--batch_size 0", ["--batch_size", "'0'"]),
        ("--data_dir /nowhere", ["/nowhere", "get_data.py mnist"]),
    ],
)
def test_nonsense_in_a_flag_is_one_sentence(lesson, flags, words):
    assert_one_sentence(lesson.run("bash ./run.sh", flags, SLURM_CPUS_PER_TASK="3"), *words)


def test_a_folder_that_cannot_be_written_is_one_sentence(lesson):
    # /proc is a folder where not even root may write.
    script = lesson.folder / "src/main.py"
    assert_one_sentence(lesson.shell(f"cd /proc && python {script} --max_epochs 1"), "lightning_logs", "/proc")
