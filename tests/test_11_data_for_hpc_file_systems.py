"""Lesson 11: packed files, staging and caches hold what they promise, also when processes are killed, disks full."""

import contextlib
import fcntl
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
import torch
from lesson import REPOSITORY, Lesson, epochs, until
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_convert
from torchvision import tv_tensors

sys.path.insert(0, str(REPOSITORY))

from src.datasets.cached import MEMORY, CachedDataset, FileCachedDataset
from src.datasets.datasets import Datasets
from src.datasets.folder import Folder
from src.datasets.hdf5_images import HDF5Images
from src.datasets.mnist import MNIST
from src.datasets.slots import CacheError
from src.hdf5 import pack, staging
from src.hdf5.index import PackError, index_path, read_index, verify, write_index
from src.hdf5.reader import HDF5Dataset, RawHDF5Dataset
from src.hdf5.staging import stage
from src.hdf5.writer import HDF5Writer
from src.utils import cache_models

NAME = "11-data-for-hpc-file-systems"
FORK, SPAWN = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")


class Writer(HDF5Writer):
    """Writes these items, each {group: values}; an exception in their place is raised."""

    def __init__(self, items, stacked=False):
        self.items, self.stacked = items, stacked
        self.about = {"classes": ["ä", "b"]}

    def prepare_globals(self):
        return range(len(self.items)), "context"

    def prepare_group(self, item, context):
        assert context == "context"
        if isinstance(self.items[item], Exception):
            raise self.items[item]
        return self.items[item]


def numbered(count, size=10):
    return [{f"part/{n:03d}": {"x": np.full(size, n), "n": n}} for n in range(count)]


def write(folder, items, name="data.h5", stacked=False):
    return Writer(items, stacked).write(folder / name)


def blocks(count=10, rows=7):
    """Stacked groups: item i has the image i, the label -i and a name."""
    numbers = np.arange(count * rows).reshape(count, rows)
    return [
        {f"{'train' if block < count - 2 else 'test'}/{block}": {
            "image": np.broadcast_to(row[:, None, None], (rows, 4, 4)).astype(np.int32),
            "label": -row,
            "name": [f"nömer {number}" for number in row],
        }}
        for block, row in enumerate(numbers)
    ]  # fmt: skip


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@contextlib.contextmanager
def small_disk(folder, megabytes):
    """A disk of this size."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a small disk")
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]).returncode:
        pytest.skip("root may not mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


# ------------------------------------------------------------------------------------------------ the README


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    """The lesson's folder, with the programs of the repository two folders above it."""
    lesson = Lesson(NAME, tmp_path_factory.mktemp("lesson-11"))
    for name in ("src", "run.py"):
        (lesson.folder.parents[1] / name).symlink_to(REPOSITORY / name)
    return lesson


@pytest.fixture(scope="module")
def measured(lesson):
    """What the benchmark printed; its files are in work/."""
    done = lesson.run("python benchmark.py", "--images 1000 --seconds 0.3 --no_cold", PYTHONWARNINGS="ignore")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_command_of_the_readme_is_tested_here(lesson):
    assert lesson.commands == [
        "python benchmark.py",
        "python ../../run.py --data Folder --data_dir work/files --max_epochs 2",
        "python ../../run.py --data HDF5Images --data.path work/digits.h5 --max_epochs 2",
        "python ../../src/hdf5/pack.py folder work/files work/mine.h5",
        "python ../../src/hdf5/pack.py torchvision MNIST work/mnist.h5",
        "python ../../src/hdf5/pack.py check work/mnist.h5",
        "srun --ntasks 4 --kill-on-bad-exit=1 python ../../src/hdf5/pack.py folder work/files work/parallel.h5",
        "python waves.py",
        "python ../check.py 11",
    ]


def test_the_benchmark(measured):
    lines = measured.splitlines()
    assert lines[0] == "1,000 images of 28 x 28 pixels in batches of 64, one process"
    rates = {line[:28].strip(): float(line.split()[-1].replace(",", "")) for line in lines if re.search(r"\d$", line)}
    names = [line[:28].strip() for line in lines if re.search(r"\d$", line)]
    assert names[:6] == [
        "folder of files",
        "packed, a group an image",
        "packed, in blocks",
        "staged",
        "cached in memory",
        "cached in a file",
    ]
    assert len(names) == 13
    assert rates["packed, in blocks"] < rates["file, decoded"]  # microseconds
    assert rates["cached in memory"] < rates["file, decoded"]


@pytest.mark.campaign
def test_a_folder_of_4_000_files_against_one_file(lesson):
    """As root with empty memory: it slows down what else runs on the machine."""
    done = lesson.run("python benchmark.py", "--work work/all --images 4000")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {line[:28].strip(): line[28:].replace(",", "").split() for line in done.stdout.splitlines()[4:10]}
    assert int(rows["folder of files"][0]) == 4_000
    for other in ("folder of files", "packed, a group an image"):  # images/s, warm
        assert float(rows["packed, in blocks"][-1]) > 1.5 * float(rows[other][-1]), done.stdout
    assert rows["packed, in blocks"][0] == "2" and (os.geteuid() or float(rows["packed, in blocks"][3]) > 0)


def test_the_packed_file_trains_like_the_folder(lesson, measured):
    more = "--config laptop --cluster debug --logger csv --log_path work/logs --cpus_per_task 1"
    lines = []
    for command in lesson.commands[1:3]:
        done = lesson.run(command, more)
        assert done.returncode == 0, done.stdout + done.stderr
        lines.append(epochs(done.stdout))
    assert lines[0] == lines[1]
    assert len(lines[0]) == 2


def test_the_datamodule_says_what_is_wrong(lesson, measured, tmp_path):
    for path, words in (
        ("nothing.h5", "no packed file nothing.h5"),
        (write(tmp_path, numbered(3)), "src/hdf5/pack.py"),
    ):
        with pytest.raises(SystemExit, match=words):
            HDF5Images(path)
    work = lesson.folder / "work"
    staged = HDF5Images(work / "digits.h5", stage=str(tmp_path / "local"))
    staged.setup("fit")
    assert staged.shape == [3, 28, 28] and staged.classes == list("0123456789") and len(staged.val_set) == 100
    images, labels = staged.train_set.__getitems__([5, 2])
    assert images.shape == (2, 3, 28, 28) and labels.tolist() == [staged.train_set[5][1], staged.train_set[2][1]]
    assert staged.train_set.items.path.is_relative_to(tmp_path / "local")
    with pytest.raises(SystemExit, match="cannot stage digits.h5"):
        HDF5Images(work / "digits.h5", stage="/dev/null").setup("fit")
    with pytest.raises(SystemExit, match="nothing below test"):
        one_part = pack.ImageWriter(*pack.find_folder(work / "files/train")).write(tmp_path / "one.h5")
        HDF5Images(one_part).setup("test")


@pytest.mark.parametrize(
    ("about", "values", "words"),
    [
        ({}, {}, "was not written by src/hdf5/pack.py"),
        ({"shape": [3, 4]}, {}, "was not written by src/hdf5/pack.py"),
        ({"shape": [0, 4, 4]}, {}, "was not written by src/hdf5/pack.py"),
        ({"shape": "3x4"}, {}, "was not written by src/hdf5/pack.py"),
        ({"classes": ["a"]}, {}, "1 class only"),
        ({"classes": [1, 2]}, {}, "was not written by src/hdf5/pack.py"),
        ({"shape": [3, 5, 4]}, {}, "not as it says"),
        ({}, {"image": np.zeros((12, 3, 4, 4))}, "not as it says"),
        ({}, {"label": np.zeros(12)}, "not as it says"),
        ({}, {"label": None}, "not as it says"),
    ],
)
def test_a_packed_file_of_other_things_is_refused(tmp_path, about, values, words):
    good = {"image": np.zeros((12, 3, 4, 4), np.uint8), "label": np.arange(12) % 2} | values
    writer = Writer([{"train/0": {key: value for key, value in good.items() if value is not None}}], stacked=True)
    writer.about = {"shape": [3, 4, 4], "classes": ["a", "b"]} | about if about or values else {}
    with pytest.raises(SystemExit, match=words):
        HDF5Images(writer.write(tmp_path / "data.h5")).setup("fit")


def test_packing(lesson, measured):
    for number in (3, 4, 5):
        done = lesson.run(lesson.commands[number])
        assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr  # no progress bar in a log
    assert done.stdout == "work/mnist.h5: 70000 items, all as they were written\n"
    work = lesson.folder / "work"
    mnist = HDF5Dataset(work / "mnist.h5", "test")
    assert len(mnist) == 10_000 and mnist[0]["image"].shape == (1, 28, 28) and mnist[0]["label"] == 7
    mine, train = HDF5Dataset(work / "mine.h5"), HDF5Dataset(work / "mine.h5", "train")
    assert len(mine) == 2000 and len(train) == 1000 and mine.about["shape"] == [3, 28, 28]
    first = sorted((work / "files/train/0").glob("*.png"))[0]
    assert (train[0]["image"][0].numpy() == np.asarray(Image.open(first))).all()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("folder nowhere out.h5", "nowhere"),
        ("folder images nowhere/out.h5", "no folder"),
        ("folder images out.txt", "has to end"),
        ("folder images out.h5", "images/b/9.png has the shape (3, 8, 9), the first image (3, 8, 8): give --size"),
        ("folder broken out.h5", "broken/a/8.png cannot be packed"),
        ("torchvision NIST out.h5", "torchvision has no data set NIST"),
        ("torchvision CIFAR10 out.h5 --data_dir .", "CIFAR10 in .: Dataset not found"),
        ("torchvision CocoDetection out.h5", "CocoDetection is not of the kind"),
        ("check out.h5", "there is no packed file"),
        ("check images/a/8.png", "images/a/8.png is not a packed file: give the path of an .h5 file"),
        ("check images", "images is not a packed file"),
        ("check fifo", "fifo is not a packed file"),
        ("folder fifo out.h5", "fifo: Not a directory"),
        ("folder ~nouser/x out.h5", "~nouser/x: there is no such user"),
        ("folder images /proc/out.h5", "cannot write into /proc"),
        ("torchvision SVHN out.h5 --data_dir .", "SVHN in .:"),
        ("folder images out.h5 --size 0", "2"),  # argparse has said why
        ("folder images out.h5 --size -3", "2"),
    ],
)
def test_packing_says_what_is_wrong(tmp_path, monkeypatch, argv, words):
    picture(tmp_path / "images/a/8.png", 8)
    picture(tmp_path / "images/b/9.png", 9)
    picture(tmp_path / "broken/a/8.png", 8).write_text("no picture")
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["pack.py", *argv.split()])
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # what export_ranks() sets is taken back in the end
        monkeypatch.delenv(name)
    with pytest.raises(SystemExit) as ended:
        pack.main()
    assert words in str(ended.value)
    assert not list(tmp_path.glob("*out*"))


def test_packing_where_names_are_not_utf_8(tmp_path, monkeypatch, capfdbinary):
    folder = tmp_path / os.fsdecode(b"M\xfcller")
    picture(folder / "a/8.png", 8)
    picture(folder / os.fsdecode(b"b/\xfc.png"), 8)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for argv in (["folder", str(folder), str(folder / "out.h5")], ["check", str(folder / "out.h5")]):
        monkeypatch.setattr(sys, "argv", ["pack.py", *argv])
        pack.main()
    assert capfdbinary.readouterr().out.count(b"M\xfcller/out.h5: 2 i") == 2
    assert len(HDF5Dataset(stage(folder / "out.h5", tmp_path / "local"))) == 2


def picture(path, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, 8)).save(path)
    return path


def test_packing_on_a_terminal_shows_a_bar(lesson, tmp_path):
    picture(tmp_path / "a/8.png", 8)
    picture(tmp_path / "b/9.png", 9)
    done = lesson.terminal(f"python ../../src/hdf5/pack.py folder {tmp_path} {tmp_path}/out.h5 --size 6")
    assert "packing: 100%" in done
    assert HDF5Dataset(tmp_path / "out.h5")[1]["image"].shape == (3, 6, 6)


def test_the_waves(lesson):
    done = lesson.run("python waves.py")
    assert done.returncode == 0, done.stderr
    assert "wave 2: 4.0" in done.stdout


# ------------------------------------------------------------------------------------------------ the writer


def test_what_is_written_is_read(tmp_path):
    values = {
        "int": 3,
        "float": 0.5,
        "true": True,
        "complex": 1 + 2j,
        "text": "grün 学 \U0001f41f",
        "empty text": "",
        "texts": ["a", "", "ß"],
        "table of texts": np.array([["a", "b"], ["c", "d"]]),
        "uint8": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "float16": np.float16(2.5),
        "big endian": np.arange(3, dtype=">f4"),
        "nothing": np.empty((0, 3), np.float32),
        "tensor": torch.arange(3.0, requires_grad=True),
        "list": [1, 2, 3],
    }
    path = write(tmp_path, [{"größe/1": values}, {}, {"b": {}, "c": {"x": 1}}])
    assert files_in(tmp_path) == ["data.h5", "data.json"]
    raw = RawHDF5Dataset(path)
    assert [len(HDF5Dataset(path)), len(raw)] == [3, 2]  # without the index nobody can tell that b is an item
    for key, value in values.items():
        read = raw[1][key]
        if isinstance(value, str):
            assert read == value and type(read) is str
        else:
            expected = np.asarray(value.detach() if isinstance(value, torch.Tensor) else value)
            assert np.shape(read) == expected.shape and (read == expected).all()
            assert np.asarray(read).dtype.kind == {"U": "O"}.get(expected.dtype.kind, expected.dtype.kind)
    dataset = HDF5Dataset(path)
    item = dataset[0]
    assert torch.equal(item["uint8"], torch.arange(12, dtype=torch.uint8).reshape(3, 4))
    assert item["text"] == values["text"] and item["texts"] == values["texts"] and item["true"].dtype == torch.bool
    assert item["nothing"].shape == (0, 3) and item["big endian"].tolist() == [0, 1, 2]
    assert dataset[1] == {} and dataset[-1]["x"] == 1 and dataset.about == {"classes": ["ä", "b"]}
    with pytest.raises(IndexError):
        dataset[3]


def test_no_items(tmp_path):
    path = write(tmp_path, [])
    assert len(HDF5Dataset(path)) == len(RawHDF5Dataset(path)) == 0
    with pytest.raises(PackError, match="nothing below train"):
        HDF5Dataset(path, "train")


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([{"a": {"x": object()}}], r"item 0: TypeError: 'x' is a object"),
        ([{"a": {}}, {"b": {"x": b"bytes"}}], r"item 1: TypeError: 'x' is a bytes"),
        ([{"a": {"x": [[1], [1, 2]]}}], "item 0"),
        ([{"a": {"x": None}}], "item 0: TypeError"),
        ([{"a": {"x": np.array(["2026"], "datetime64[s]")}}], "item 0: TypeError"),
        ([{"a": {"x": "a\0b"}}], "item 0: ValueError"),
        ([{"a": {"x": "\udc80"}}], "item 0: Unicode"),
        ([{"a": {"x": 1}}, {"a": {"x": 2}}], "item 1: ValueError"),
        ([{"../a": {"x": 1}}], "cannot be the name of a group"),
        ([{"a": {"x/y": 1}}], "cannot be the name of a dataset"),
        ([{"a": {}}, KeyError("no such thing")], "item 1: KeyError: 'no such thing'"),
    ],
)
def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path, items, words):
    with pytest.raises(PackError, match=words):
        write(tmp_path, items)
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("about", [{"mean": np.zeros(3)}, {"x": {1, 2}}, {(1, 2): 3}, ["a"], None])
def test_an_about_that_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, about):
    writer = Writer([KeyError("this is not reached")])
    writer.about = about
    with pytest.raises(PackError, match="about has to be a dictionary for JSON"):
        writer.write(tmp_path / "data.h5")
    assert files_in(tmp_path) == []


def test_an_about_that_json_changes_is_still_that_of_the_file(tmp_path):
    writer = Writer(numbered(1))
    writer.about = {10: (1, 2), 2: "x"}  # after JSON the keys are texts, and in another order
    assert HDF5Dataset(writer.write(tmp_path / "data.h5")).about == {"10": [1, 2], "2": "x"}


def test_nothing_is_overwritten(tmp_path):
    path = write(tmp_path, numbered(2))
    with pytest.raises(PackError, match="is there already"):
        write(tmp_path, numbered(3))
    (tmp_path / "other.json").write_text('{"mine": 1}')
    with pytest.raises(PackError, match="is another file"):
        write(tmp_path, numbered(3), "other.h5")
    with pytest.raises(PackError, match="has to end"):
        write(tmp_path, numbered(3), "data.txt")
    path.unlink()  # as a writer leaves it that was killed when it had written the index
    assert len(HDF5Dataset(write(tmp_path, numbered(3)))) == 3


def test_two_writers_of_one_file(tmp_path):
    class Slow(Writer):
        def prepare_group(self, item, context):
            (tmp_path / "begun").touch()
            time.sleep(0.2)
            return super().prepare_group(item, context)

    process = FORK.Process(target=lambda: Slow(numbered(5)).write(tmp_path / "data.h5"))
    process.start()
    while not (tmp_path / "begun").exists():
        time.sleep(0.01)
    with pytest.raises(PackError, match="is just being written"):
        write(tmp_path, numbered(2))
    process.join()
    assert len(HDF5Dataset(tmp_path / "data.h5")) == 5


def test_a_writer_killed_at_20_moments_leaves_no_wrong_file(tmp_path):
    items = numbered(300, size=3_000)
    path = tmp_path / "data.h5"

    def start():
        process = FORK.Process(target=write, args=(tmp_path, items))
        process.start()
        return process

    seconds = 99
    for _ in range(3):
        began = time.monotonic()
        start().join()
        seconds = min(seconds, time.monotonic() - began)
        verify(path)
        path.unlink()

    rng, killed, complete = random.Random(1), 0, 0
    while killed < 20:
        process = start()
        time.sleep(rng.uniform(0, seconds))
        process.kill()
        process.join()
        killed += process.exitcode == -signal.SIGKILL
        if path.exists():
            complete += process.exitcode == -signal.SIGKILL
            verify(path)
            assert len(HDF5Dataset(path)) == 300 and HDF5Dataset(path)[299]["x"][0] == 299
            path.unlink()
        else:
            with pytest.raises(PackError, match="there is no"):
                HDF5Dataset(path)
    assert complete < 15, "the kills came too late"
    print(f"{killed} killed, the file of {complete} was complete")
    assert len(HDF5Dataset(write(tmp_path, items))) == 300
    assert files_in(tmp_path) == ["data.h5", "data.json"]


FULL = """
import os, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from src.hdf5.index import PackError
from src.hdf5.staging import stage
from src.hdf5.writer import HDF5Writer

class Random(HDF5Writer):
    def __init__(self, count, size):
        self.count, self.size = count, size
    def prepare_globals(self):
        return range(self.count), None
    def prepare_group(self, item, context):
        return {f"{item}": {"x": np.random.rand(self.size)}}

disk = sys.argv[2]
big = Random(1, 500_000).write(disk + "-big.h5")
for job in (lambda: Random(100, 10_000).write(disk + "/a.h5"), lambda: Random(20_000, 10).write(disk + "/a.h5"),
            lambda: stage(big, disk)):
    try:
        print("done", job())
    except PackError as error:
        print(error)
"""


def test_a_full_disk_is_one_sentence(tmp_path):
    with small_disk(tmp_path / "disk", 3) as disk:
        done = subprocess.run([sys.executable, "-c", FULL, REPOSITORY, disk], capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
        large, many, staged = done.stdout.splitlines()
        assert large == many == f"no room left in {disk}: free some space, or write to another place"
        assert re.fullmatch(r"disk-big.h5 has 4.0 MB, but \S+ has room for 3.1 MB: .*", staged)
        assert [name for name in files_in(disk) if not name.endswith(".lock")] == []

        log = tmp_path / "log"
        with pytest.raises(CacheError, match=r"the cache needs 40.0 MB, but \S+ has room for 3.1 MB"):
            FileCachedDataset(Numbered(log, 1000), disk / "cache")
        cache = FileCachedDataset(Numbered(log, 70), disk / "cache")  # there is room now, but not later
        (disk / "other").write_bytes(b"x" * 2_000_000)
        with pytest.raises(CacheError, match="no room left for the cache"):
            read_all(cache, 0)


# ------------------------------------------------------------------------------------------------ many tasks


# Imports no torch, so that it starts at once. WHAT is well, unequal, kill-join, or raise-ITEM, kill-ITEM or hang-ITEM.
PARALLEL = """
import os, signal, sys, time
repository, path, what = sys.argv[1:]
sys.path.insert(0, repository)
import numpy as np
from src.hdf5 import parallel
from src.hdf5.index import PackError
from src.hdf5.writer import HDF5Writer
parallel.PATIENCE, parallel.STUCK = 4, 3
if what == "kill-join":  # task 0, when all the others wait for it
    parallel.join = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

class Numbers(HDF5Writer):
    def prepare_globals(self):
        self.about = {"what": what}
        return range(int(os.environ["RANK"]) + 5 if what == "unequal" else 50), "context"

    def prepare_group(self, item, context):
        if what == f"kill-{item}":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == f"hang-{item}":
            time.sleep(120)
        if what == f"raise-{item}":
            raise RuntimeError("this one is broken")
        time.sleep(0.01)
        if item % 7 == 0:
            return {f"two/{item}-{part}": {"x": np.arange(item), "empty": np.empty(0)} for part in "ab"}
        return {f"{item}": {"text": f"nömer {item}", "n": item}} if item % 11 else {}

try:
    print(Numbers().write(path, parallel=True))
except PackError as error:
    sys.exit(f"stopped: {error}")
"""


def write_parallel(path, what, tasks=4):
    """Write a file with so many tasks. Returns of each: exit code, output, errors."""
    common = {"WORLD_SIZE": f"{tasks}", "LOCAL_WORLD_SIZE": f"{tasks}", "MASTER_PORT": "20001"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PARALLEL, REPOSITORY, path, what],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(tasks)
    ]
    if what.startswith("hang"):  # whoever started them ends a task that hangs, as srun does
        until(lambda: sum(task.poll() is not None for task in started) == tasks - 1, 60)
        for task in started:
            task.kill()
    outputs = [task.communicate(timeout=300) for task in started]
    return [(task.returncode, *output) for task, output in zip(started, outputs, strict=True)]


def same_content(one, other):
    assert read_index(one).groups == read_index(other).groups
    one, other = RawHDF5Dataset(one), RawHDF5Dataset(other)
    assert one.names == other.names
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert all(np.array_equal(left[key], right[key]) for key in left)


def test_4_tasks_write_what_one_writes(tmp_path):
    (tmp_path / "four").mkdir()
    path = tmp_path / "four/data.h5"
    for code, out, errors in write_parallel(path, "well"):
        assert (code, out, errors) == (0, f"{path}\n", "")
    names = files_in(tmp_path / "four")
    assert len(names) == 6 and names[:2] == ["data.h5", "data.json"] and names[-1].endswith("/0003.h5")
    write_parallel(tmp_path / "one.h5", "well", tasks=1)
    same_content(path, tmp_path / "one.h5")
    assert verify(path).about == {"what": "well"}

    moved = (tmp_path / "four").rename(tmp_path / "moved") / "data.h5"  # it may be moved, and staged
    same_content(stage(moved, tmp_path / "local"), tmp_path / "one.h5")
    shard = moved.parent / names[-1]
    shard.unlink()
    with pytest.raises(PackError, match="0003.h5 is missing"):
        HDF5Dataset(moved)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("raise-6", "item 6: RuntimeError: this one is broken"),
        ("unequal", "the tasks had [5, 6, 7, 8] items"),
        ("kill-7", "task 3 has given no sign of life for 4 s"),
        ("kill-join", "task 0 has given no sign of life for 4 s"),
        pytest.param("hang-7", "task 3 has given no sign of life for 4 s: was it killed", marks=pytest.mark.slow),
    ],
)
def test_one_task_that_fails_stops_all(tmp_path, what, reason):
    ended = write_parallel(tmp_path / "data.h5", what)
    for code, _, errors in ended:
        assert code == -signal.SIGKILL or (code == 1 and "stopped: " in errors and reason in errors), ended
    assert [code for code, _, _ in ended].count(-signal.SIGKILL) == what.startswith(("kill", "hang"))
    assert not (tmp_path / "data.h5").exists() and not (tmp_path / "data.json").exists()


def test_a_second_start_leaves_the_shards_of_a_renamed_file_alone(tmp_path):
    path, old = tmp_path / "data.h5", tmp_path / "old.h5"
    write_parallel(path, "well", tasks=2)
    path.rename(old)
    index_path(path).rename(index_path(old))
    before = verify(old)
    for code, _, errors in write_parallel(path, "raise-49", tasks=2):
        assert code == 1 and "item 49" in errors
    shutil.rmtree(next(tmp_path.glob("data.tasks-*")))  # as the message of the next start says
    for code, _, errors in write_parallel(path, "well", tasks=2):
        assert code == 0, errors
    assert verify(old) == before and verify(path).id != before.id
    same_content(old, path)
    assert not list(tmp_path.glob("data.tasks-*"))


@pytest.mark.slow
def test_4_tasks_of_slurm(cluster, lesson, measured):
    """The README's srun, on two nodes; and an item that fails."""
    done = cluster.run(f"{lesson.commands[6]} && ls work/parallel.shards-*", lesson.folder)
    assert done.returncode == 0 and done.stdout.count(".h5\n") == 4, done.stdout + done.stderr
    work = lesson.folder / "work"
    shutil.rmtree(work / "one", ignore_errors=True)
    (work / "one").mkdir()
    pack.ImageWriter(*pack.find_folder(work / "files")).write(work / "one/parallel.h5")
    same_content(work / "parallel.h5", work / "one/parallel.h5")

    script = work / "parallel.py"
    script.write_text(PARALLEL)
    begin = f"srun --nodes 2 --ntasks 4 --label python {script} {REPOSITORY}"
    done = cluster.run(f"{begin} work/slurm.h5 well", lesson.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    write_parallel(work / "one/slurm.h5", "well", tasks=1)
    same_content(work / "slurm.h5", work / "one/slurm.h5")
    began = time.monotonic()
    done = cluster.run(f"{begin} work/fails.h5 raise-6", lesson.folder)
    assert done.returncode == 1 and time.monotonic() - began < 30
    stopped = set(re.findall(r"(\d): stopped: .*item 6: RuntimeError: this one is broken", done.stderr))
    assert stopped == set("0123"), done.stderr
    assert not (work / "fails.h5").exists()


# ------------------------------------------------------------------------------------------------ the readers


def test_blocks_of_items(tmp_path):
    path = write(tmp_path, blocks(), stacked=True)
    for dataset in (HDF5Dataset(path), RawHDF5Dataset(path, stacked=True)):
        assert len(dataset) == 70
        names = "test" if isinstance(dataset, RawHDF5Dataset) and type(dataset) is RawHDF5Dataset else "train"
        first = 56 if names == "test" else 0  # the file's own order is that of the alphabet
        assert dataset[0]["image"][3, 3] == first and dataset[0]["name"] == f"nömer {first}"
    dataset = HDF5Dataset(path, "train")
    assert len(dataset) == 56 and len(HDF5Dataset(path, "test")) == 14 and HDF5Dataset(path, "test")[0]["label"] == -56
    chosen = torch.tensor([50, 3, 3, 17])
    batch = dataset.__getitems__(chosen)
    assert torch.equal(batch["image"][:, 0, 0].long(), chosen) and torch.equal(batch["label"], -chosen)
    assert batch["name"] == [f"nömer {number}" for number in chosen] and batch["image"].shape == (4, 4, 4)
    dataset[3]["image"].zero_()  # whatever is done with an item, the next one is as it was
    assert dataset[3]["image"].sum() == 48
    with pytest.raises(PackError, match="nothing below tra"):
        HDF5Dataset(path, "tra")


def test_stacked_arrays_of_unequal_length(tmp_path):
    with pytest.raises(PackError, match="stacked arrays need one length"):
        write(tmp_path, [{"a": {"x": np.zeros(3), "y": np.zeros(4)}}], stacked=True)
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["images"], file["labels"] = np.zeros((5, 2, 2)), np.arange(5)
    assert len(RawHDF5Dataset(tmp_path / "foreign.h5")) == 1
    foreign = RawHDF5Dataset(tmp_path / "foreign.h5", stacked=True)
    assert len(foreign) == 5 and foreign[4]["labels"] == 4


@pytest.mark.parametrize("dtype", ["i8", ">i2", bool, "c8"])
@pytest.mark.parametrize("how", [{}, {"chunks": True}, {"compression": "gzip"}, {"external": "elsewhere"}])
def test_a_batch_is_what_hdf5_reads(tmp_path, dtype, how):
    """However the numbers lie in the file: those that lie as in memory are read without HDF5."""
    numbers = np.random.default_rng(0).integers(0, 2, (30, 3, 5))
    with h5py.File(tmp_path / "foreign.h5", "w", userblock_size=512) as file:
        for group, rows in (("a", slice(0, 20)), ("b", slice(20, 30))):
            if "external" in how:
                how = {"external": [(str(tmp_path / group), 0, h5py.h5f.UNLIMITED)]}
            file.create_dataset(f"{group}/x", data=numbers[rows].astype(dtype), **how)
    dataset = RawHDF5Dataset(tmp_path / "foreign.h5", stacked=True)
    chosen = [29, 0, 7, 7, -1, 20]
    batch = dataset.__getitems__(chosen)["x"]
    assert np.array_equal(batch, numbers[chosen]) and np.array_equal(dataset[7]["x"], numbers[7])
    assert batch.dtype.kind == np.dtype(dtype).kind
    with pytest.raises(IndexError, match="item -31 of 30"):
        dataset.__getitems__([0, -31])


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path):
    path = write(tmp_path, blocks(4, 5000), stacked=True)
    dataset = HDF5Dataset(path)
    dataset.__getitems__([0, len(dataset) - 1])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(PackError, match="the group .* cannot be read: the file is shorter than it was"):
        dataset.__getitems__([len(dataset) - 2])


def test_a_batch_of_a_damaged_file_names_its_group(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 255, (20, 30, 50)).astype("u1")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        data = file.create_dataset("a/x", data=numbers, compression="gzip", chunks=(1, 30, 50))
        place = data.id.get_chunk_info(3).byte_offset
    with open(tmp_path / "foreign.h5", "r+b") as file:
        file.seek(place)
        file.write(bytes(200))
    dataset = RawHDF5Dataset(tmp_path / "foreign.h5", stacked=True)
    assert np.array_equal(dataset.__getitems__([0, 9])["x"], numbers[[0, 9]])
    with pytest.raises(PackError, match="the group a cannot be read"):
        dataset.__getitems__([0, 3])


def test_a_batch_from_files_that_links_lead_to(tmp_path):
    """What is read without HDF5 comes from files that are still open, not from others that took their place."""
    numbers = np.random.default_rng(0).integers(0, 255, (4, 20, 30, 50)).astype("u1")
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for shard, values in enumerate(numbers):
            with h5py.File(tmp_path / f"{shard}.h5", "w") as other:
                other[f"{shard}/x"] = values
            file[f"{shard}"] = h5py.ExternalLink(f"{shard}.h5", f"{shard}")
    dataset = RawHDF5Dataset(tmp_path / "data.h5", stacked=True)
    chosen = list(range(79, -1, -1))
    for _ in range(2):
        assert np.array_equal(dataset.__getitems__(chosen)["x"], numbers.reshape(80, 30, 50)[chosen])


def test_transform(tmp_path):
    path = write(tmp_path, numbered(20))
    dataset = HDF5Dataset(path, transform=pair)
    assert dataset[3][1] == 3 and dataset[3][0].shape == (10,)
    x, n = dataset.__getitems__([5, 2])
    assert x.shape == (2, 10) and n.tolist() == [5, 2]
    path = write(tmp_path, [{f"{n}": {"x": np.zeros(n)}} for n in range(3)], "unequal.h5")
    with pytest.raises(PackError, match="do not have the same datasets and shapes"):
        HDF5Dataset(path).__getitems__([1, 2])


def pair(item):
    return item["x"], item["n"]


@pytest.mark.parametrize(("context", "read_before"), [("fork", False), ("fork", True), ("spawn", True)])
def test_workers(tmp_path, context, read_before):
    path = write(tmp_path, blocks(), stacked=True)
    dataset = HDF5Dataset(path)
    if read_before:
        dataset[0]
    again = pickle.loads(pickle.dumps(dataset))
    assert again[69]["label"] == -69
    loader = DataLoader(
        dataset,
        batch_size=8,
        shuffle=True,
        num_workers=2 if context == "fork" else 1,
        multiprocessing_context=context,
        collate_fn=default_convert,
    )
    seen = [label for batch in loader for label in batch["label"].tolist()]
    assert sorted(seen) == list(range(-69, 1))
    assert dataset[69]["label"] == -69


def test_many_forked_readers_do_not_disturb_each_other(tmp_path):
    path = write(tmp_path, blocks(40, 50), stacked=True)
    dataset = HDF5Dataset(path)
    dataset[0]

    def read(seed):
        rng = random.Random(seed)
        for _ in range(1000):
            number = rng.randrange(len(dataset))
            item = dataset[number]
            assert (item["image"] == number).all() and item["label"] == -number

    processes = [FORK.Process(target=read, args=(seed,)) for seed in range(8)]
    for process in processes:
        process.start()
    read(99)
    for process in processes:
        process.join()
        assert process.exitcode == 0


def test_index_and_file_that_disagree(tmp_path):
    path, other = write(tmp_path, numbered(20)), write(tmp_path, numbered(20), "other.h5")
    index = index_path(path)
    text = index.read_text()

    def refuse(words, new_index):
        index.write_text(new_index)
        with pytest.raises(PackError, match=words):
            HDF5Dataset(path)
        index.write_text(text)

    refuse("is not the index of", index_path(other).read_text())
    for name, change in (("groups", [["part/000", 2]]), ("about", {}), ("stacked", True), ("id", "0")):
        refuse("is not the index of", json.dumps(json.loads(text) | {name: change}))
    refuse("another version", json.dumps(json.loads(text) | {"format": 2}))
    for broken in ("", "[]", "{}", "null", text[:-20], '{"format": 1}', text.replace('"bytes"', '"bites"')):
        refuse("cannot be read as the index", broken)
    index.unlink()
    with pytest.raises(PackError, match="has no index data.json"):
        HDF5Dataset(path)
    assert len(RawHDF5Dataset(path)) == 20
    index.write_text(text)

    dataset = HDF5Dataset(path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(PackError, match="says .* bytes"):
        HDF5Dataset(path)
    path.write_bytes(content[:2000] + bytes(len(content) - 2000))
    with pytest.raises(PackError):
        HDF5Dataset(path)[5]
    path.write_bytes(content.replace(np.full(10, 7).tobytes(), np.full(10, 8).tobytes()))
    with pytest.raises(PackError, match="is damaged"):
        verify(path)
    with pytest.raises(PackError, match="is damaged"):
        stage(path, tmp_path / "local")
    shutil.copy(other, path)
    with pytest.raises(PackError, match="was replaced"):
        dataset[0]
    path.write_text("no HDF5")
    with pytest.raises(PackError, match="cannot be read as HDF5"):
        RawHDF5Dataset(path)
    renamed = other.rename(tmp_path / "renamed.h5")
    index_path(other).rename(tmp_path / "renamed.json")
    assert len(HDF5Dataset(renamed)) == 20


# ------------------------------------------------------------------------------------------------ staging


def log_copies(folder, seconds=0.0):
    """Let staging note each copy in a file."""
    copy_file = staging.copy_file

    def noted(source, target):
        with open(folder / "copies", "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return copy_file(source, target)

    staging.copy_file = noted


def test_4_processes_copy_once(tmp_path):
    path = write(tmp_path, numbered(50))
    local = tmp_path / "local"

    def start(seconds=0.3):
        log_copies(tmp_path, seconds)
        assert HDF5Dataset(stage(path, local))[49]["n"] == 49

    def at_once():
        processes = [FORK.Process(target=start) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0

    killed = FORK.Process(target=start, args=(60,))  # it holds the lock, then it is killed
    killed.start()
    while not (tmp_path / "copies").exists():
        time.sleep(0.01)
    killed.kill()
    killed.join()
    at_once()
    assert len((tmp_path / "copies").read_text().split()) == 2
    assert len(files_in(local)) == 3  # data.h5, data.json, the lock
    at_once()  # the next job on this node
    assert len((tmp_path / "copies").read_text().split()) == 2
    [copy] = local.glob("*/data.h5")
    copy.write_bytes(b"broken")  # the copy is not what it was: again
    at_once()
    assert len((tmp_path / "copies").read_text().split()) == 3


def test_where_staging_goes(tmp_path, monkeypatch):
    path = write(tmp_path, numbered(5))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmpdir"))
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "slurm"))
    assert stage(path).is_relative_to(tmp_path / "slurm")
    monkeypatch.delenv("SLURM_TMPDIR")
    assert stage(path).is_relative_to(tmp_path / "tmpdir")
    monkeypatch.delenv("TMPDIR")
    with pytest.raises(PackError, match="name a folder there"):
        stage(path)
    with pytest.raises(PackError, match="cannot stage data.h5"):
        stage(path, "/dev/null")
    another = write(tmp_path, numbered(6), "another.h5")
    assert stage(path, tmp_path / "x").parent != stage(another, tmp_path / "x").parent


@pytest.mark.parametrize(
    "name", ["{outside}", "../outside", "x/../../outside", "link/outside", "x/\0", "x" * 300 + "/x"]
)
def test_an_index_that_names_files_elsewhere_is_refused(tmp_path, name):
    """Such a name once let staging write to any file of the user's."""
    (tmp_path / "in").mkdir()
    path, outside = write(tmp_path / "in", numbered(3)), tmp_path / "outside"
    outside.write_text("mine")
    (tmp_path / "in/link").symlink_to(tmp_path)
    index = json.loads(index_path(path).read_text())
    index["files"][name.format(outside=outside)] = {"bytes": 4, "sha256": "0" * 64}
    index_path(path).write_text(json.dumps(index))
    for use in (read_index, verify, HDF5Dataset, lambda path: stage(path, tmp_path / "local")):
        with pytest.raises(PackError, match="which is not in that folder: refused|File name too long"):
            use(path)
    assert outside.read_text() == "mine"


@pytest.mark.parametrize(
    "change",
    [
        {"groups": [["part/000", -1]]},
        {"groups": [["part/000", 1.5]]},
        {"groups": [[3, 1]]},
        {"files": {}},
        {"files": {"data.h5": {"bytes": -1, "sha256": ""}}},
        {"about": []},
        {"stacked": 1},
        {"id": None},
    ],
)
def test_an_index_with_impossible_values_is_refused(tmp_path, change):
    path = write(tmp_path, numbered(3))
    index_path(path).write_text(json.dumps(json.loads(index_path(path).read_text()) | change))
    with pytest.raises(PackError, match="cannot be read as the index"):
        HDF5Dataset(path)


def test_an_index_that_is_nested_too_deeply(tmp_path):
    path = write(tmp_path, numbered(3))
    index_path(path).write_text("[" * 100_000)
    with pytest.raises(PackError, match="cannot be read as the index"):
        HDF5Dataset(path)


@pytest.mark.parametrize("rows", [6, 8])
def test_an_index_with_another_number_of_rows(tmp_path, rows):
    path = write(tmp_path, blocks(), stacked=True)
    index = read_index(path)
    index.groups[0][1] = rows
    write_index(path, index)
    with h5py.File(path, "r+") as file:
        file.attrs["index_sha256"] = index.digest()
    index.files["data.h5"]["bytes"] = path.stat().st_size
    write_index(path, index)
    with pytest.raises(PackError, match=f"image in the group train/0 has 7 rows, but the index says {rows}"):
        HDF5Dataset(path)[0]


LINKS = {
    "external link": lambda file, secret: file.__setitem__("a", h5py.ExternalLink(secret, "g")),
    "external link, relative": lambda file, secret: file.__setitem__("a", h5py.ExternalLink("../secret.h5", "g")),
    "external link to a link": lambda file, secret: file.__setitem__("a", h5py.ExternalLink("link.h5", "g")),
    "external link, inside": lambda file, secret: file.__setitem__("a/x", h5py.ExternalLink(secret, "g/x")),
    "soft link to an external one": lambda file, secret: file.update(
        a=h5py.SoftLink("/b"), b=h5py.ExternalLink(secret, "g")
    ),
    "external storage": lambda file, secret: file.create_dataset("a/x", (8,), "u1", external=[(secret, 0, 8)]),
    "virtual": lambda file, secret: file.create_virtual_dataset("a/x", virtual(secret)),
    "circle": lambda file, secret: file.update(a=h5py.SoftLink("/a")),
}


def virtual(secret):
    layout = h5py.VirtualLayout((8,), "i8")
    layout[:] = h5py.VirtualSource(secret, "g/x", (8,))
    return layout


@pytest.mark.parametrize("link", LINKS)
def test_what_leads_out_of_the_folder_is_not_read(tmp_path, link):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["g/x"] = np.arange(8)
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in", [])
    (tmp_path / "in/link.h5").symlink_to(tmp_path / "secret.h5")
    index = read_index(path)
    index.groups = [["a", 1]]
    with h5py.File(path, "r+") as file:
        LINKS[link](file, str(tmp_path / "secret.h5"))
        file.attrs["index_sha256"] = index.digest()
    index.files["data.h5"]["bytes"] = path.stat().st_size
    write_index(path, index)
    for kind in (RawHDF5Dataset, HDF5Dataset):
        with pytest.raises(PackError, match="refused|virtual dataset|lead in a circle"):
            kind(path)[0]


def test_links_that_lead_back_are_left_out(tmp_path):
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["a/x"], file["b/c/x"] = 1, 2
        file["a/back"], file["b/c/back"], file["a/root"] = h5py.SoftLink("/a"), file["b"], file["/"]
        file["dead"], file["dead file"] = h5py.SoftLink("/nowhere"), h5py.ExternalLink("nowhere.h5", "/")
        file["again"] = h5py.SoftLink("/b/c")
    dataset = RawHDF5Dataset(path)
    assert [dataset[n]["x"] for n in range(len(dataset))] == [1, 2, 2]
    deep = tmp_path / "deep.h5"
    with h5py.File(deep, "w") as file:
        group = file
        for _ in range(2000):
            group = group.create_group("g")
        group["x"] = 1
    with pytest.raises(PackError, match="nested too deeply"):
        RawHDF5Dataset(deep)


def test_texts_of_other_programs(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["a/x"], file["b/x"] = np.array(["Müller".encode()], "S8"), np.array([b"M\xfcller"], "S8")
    dataset = RawHDF5Dataset(tmp_path / "foreign.h5")
    assert dataset[0]["x"] == ["Müller"]
    with pytest.raises(PackError, match="the group b cannot be read: a text in it is not UTF-8"):
        dataset[1]


@pytest.mark.parametrize(
    "path", ["", "/", "~nouser/x.h5", "a\0b.h5", "x" * 300 + ".h5", "/dev/zero", "/etc/passwd/x.h5", "."]
)
def test_paths_that_are_no_files(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    for use in (HDF5Dataset, RawHDF5Dataset, verify, stage, lambda path: Writer([]).write(path), pack.find_folder):
        with pytest.raises(PackError):
            use(path)
    with pytest.raises(SystemExit):
        Folder(data_dir=path or "nowhere")
    with pytest.raises(SystemExit):
        HDF5Images(path)
    if path not in ("", "/", "."):
        with pytest.raises(SystemExit):
            MNIST(data_dir=path).prepare_data()


@pytest.mark.parametrize("name", ["data.h5", "data.json"])
def test_a_fifo_is_no_file(tmp_path, name):
    path = write(tmp_path, numbered(3))
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    for use in (HDF5Dataset, verify, stage):
        with pytest.raises(PackError):
            use(path)
    with pytest.raises(PackError, match="there already|another file"):
        write(tmp_path, numbered(3), "data.h5" if name == "data.h5" else "data.hdf5")


def test_the_index_itself_is_no_packed_file(tmp_path):
    with pytest.raises(PackError, match="data.json is not a packed file: give the path of an .h5 file"):
        verify(index_path(write(tmp_path, numbered(3))))


def test_home_is_found(tmp_path, monkeypatch):
    """~ is the home folder for all, and a relative path is that of the folder in which the program was started."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(tmp_path, numbered(3))
    assert len(HDF5Dataset("~/data.h5")) == 3 and HDF5Dataset("data.h5").path == tmp_path / "data.h5"
    assert stage("~/data.h5", "~/local").is_relative_to(tmp_path / "local")
    assert Writer(numbered(1)).write("~/more.h5") == tmp_path / "more.h5"
    assert MNIST(data_dir="~/x").data_dir == MNIST(data_dir="x").data_dir == tmp_path / "x"
    FileCachedDataset(Items([1, 2]), "~/cache")
    assert (tmp_path / "cache").is_file() and not (tmp_path / "~").exists()
    data = MNIST(data_dir="~/x")
    data.prepare_data()
    assert len(data.load(train=False)[0]) == 10_000


# --- what others may have put where we stage


@pytest.mark.parametrize(
    "trap", ["lock is a link", "lock is a fifo", "copy is a link", "copy is open", "partial is a link"]
)
def test_traps_where_we_stage(tmp_path, trap):
    path, local = write(tmp_path, numbered(3)), tmp_path / "local"
    copy = stage(path, local).parent
    lock = copy.with_name(f"{copy.name}.lock")
    assert copy.stat().st_mode & 0o777 == local.stat().st_mode & 0o777 == 0o700
    assert lock.stat().st_mode & 0o777 == 0o600
    mine = tmp_path / "mine"
    mine.write_text("mine")
    words = "a symbolic link" if trap == "lock is a link" else "not a regular file"
    if trap.startswith("lock"):
        lock.unlink()
        lock.symlink_to(mine) if trap.endswith("link") else os.mkfifo(lock)
    elif trap == "copy is open":  # another user could have changed it: it is made anew
        copy.chmod(0o777)
        (copy / "data.h5").write_bytes((copy / "data.h5").read_bytes().replace(b"part", b"trap"))
        assert len(HDF5Dataset(stage(path, local))) == 3 and copy.stat().st_mode & 0o777 == 0o700
        return
    else:
        shutil.rmtree(copy)
        copy.with_name(copy.name + ".partial" * trap.startswith("partial")).symlink_to(tmp_path)
        words = "cannot be deleted: name another folder"
    with pytest.raises(PackError, match=words):
        stage(path, local)
    assert mine.read_text() == "mine" and path.exists()


def test_a_lock_with_content_is_not_emptied(tmp_path):
    path = write(tmp_path, numbered(3))
    copy = stage(path, tmp_path / "local").parent
    copy.with_name(f"{copy.name}.lock").write_text("content")
    stage(path, tmp_path / "local")
    assert copy.with_name(f"{copy.name}.lock").read_text() == "content"


def test_one_file_under_two_names_is_staged_twice(tmp_path):
    path = write(tmp_path, numbered(3))
    first = stage(path, tmp_path / "local")
    for suffix in (".h5", ".json"):
        shutil.copy(path.with_suffix(suffix), tmp_path / f"other{suffix}")
    assert stage(tmp_path / "other.h5", tmp_path / "local").name == "other.h5"
    assert len(HDF5Dataset(first)) == 3


def test_the_partial_file_is_no_way_to_another_file(tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / ".data.h5.partial").symlink_to(mine)
    with pytest.raises(PackError, match=r"\.data\.h5\.partial is a symbolic link.*: delete it"):
        write(tmp_path, numbered(3))
    (tmp_path / ".data.h5.partial").unlink()
    (tmp_path / ".data.json.partial").symlink_to(mine)
    write(tmp_path, numbered(3))
    assert mine.read_text() == "mine"


# ------------------------------------------------------------------------------------------------ the caches


class Numbered(Dataset):
    """Item i is full of i, so half an item is seen; each time one is made, that is noted in a file."""

    def __init__(self, log, length=60, size=20_000, seconds=0.0):
        self.log, self.length, self.size, self.seconds = log, length, size, seconds

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        with open(self.log, "a") as file:
            file.write(f"{index}\n")
        time.sleep(self.seconds)
        return torch.full((self.size,), index, dtype=torch.int16), index, {"half": index / 2}

    def made(self):
        return [int(line) for line in self.log.read_text().split()]


def read_all(dataset, seed):
    for index in random.Random(seed).sample(range(len(dataset)), len(dataset)):
        item = dataset[index]
        assert (item[0] == index).all() and item[1:] == (index, {"half": index / 2})


def read_with_workers(make, workers):
    """One of the processes of a node: opens the cache itself, and has forked workers."""
    dataset = make()
    processes = [FORK.Process(target=read_all, args=(dataset, seed)) for seed in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0


def crowd(tmp_path, kind, processes, workers):
    """So many processes with so many workers each; each item is made once, but for those that are compared."""
    dataset = Numbered(tmp_path / "log", seconds=0.001)

    def make():
        if kind == "memory":
            return CachedDataset(dataset, 10**9, fingerprint=str(tmp_path))
        return FileCachedDataset(dataset, tmp_path / "cache")

    before = set(MEMORY.glob("cached-dataset-*"))
    started = [FORK.Process(target=read_with_workers, args=(make, workers)) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
        assert process.exitcode == 0
    made = dataset.made()
    for index in range(len(dataset)):
        compared = processes * (3 if index == 0 else 2) if index in (0, 30, 59) else 0
        assert made.count(index) == compared + 1, (index, made.count(index))
    assert set(MEMORY.glob("cached-dataset-*")) <= before, "the memory is not given back"


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_48_readers_in_8_processes(tmp_path, kind):
    crowd(tmp_path, kind, 8, 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_8_times_48_readers(tmp_path, kind):
    crowd(tmp_path, kind, 8, 48)


def test_the_next_run_makes_nothing_again(tmp_path):
    dataset = Numbered(tmp_path / "log", 20, 10)
    read_all(FileCachedDataset(dataset, tmp_path / "cache"), 0)
    dataset.log.unlink()
    cache = FileCachedDataset(dataset, tmp_path / "cache")
    read_all(cache, 1)
    assert set(dataset.made()) == {0, 10, 19}  # those that are compared
    x, number, rest = cache.__getitems__(torch.tensor([3, 1]))
    assert x.tolist() == [[3] * 10, [1] * 10] and number.tolist() == [3, 1] and rest["half"].tolist() == [1.5, 0.5]
    with pytest.raises(IndexError):
        cache[20]


def test_a_reader_killed_while_it_writes_leaves_no_half_item(tmp_path):
    dataset = Numbered(tmp_path / "log", 40, 200_000)
    rng = random.Random(2)
    for _ in range(10):
        process = FORK.Process(target=lambda: read_all(FileCachedDataset(dataset, tmp_path / "cache"), rng.random()))
        process.start()
        time.sleep(rng.uniform(0.01, 0.1))
        process.kill()
        process.join()
    cache = FileCachedDataset(dataset, tmp_path / "cache")
    read_all(cache, 5)
    with open(tmp_path / "cache", "r+b") as file:  # what a power cut may do: the item is not what its checksum says
        file.seek(cache.slots.data + 7 * cache.slots.bytes + 1000)
        file.write(b"damaged")
    read_all(cache, 6)


def test_max_bytes(tmp_path):
    dataset = Numbered(tmp_path / "log", 20, 1000)
    size = 2 * 1000 + 8 + 8
    cache = CachedDataset(dataset, 5 * size + 100)
    read_all(cache, 0)
    dataset.log.unlink()
    read_all(cache, 0)
    assert sorted(dataset.made()) == list(range(5, 20))
    assert cache.slots.path.stat().st_size < 5 * size + 100 + 3 * 4096
    with pytest.raises(CacheError, match="has no room for one"):
        CachedDataset(dataset, 1000)


def test_the_memory_is_given_back(tmp_path):
    dataset = Numbered(tmp_path / "log", 20, 1000)
    cache = CachedDataset(dataset, 10**6)
    path = cache.slots.path
    again = CachedDataset(dataset, 10**6)
    unpickled = pickle.loads(pickle.dumps(cache))
    assert again.slots.path == path
    del cache, again
    assert path.exists() and unpickled[3][1] == 3
    del unpickled
    assert not path.exists()

    def end_by_force():
        cache = CachedDataset(dataset, 10**6)
        read_all(cache, 0)
        os.kill(os.getpid(), signal.SIGKILL)

    process = FORK.Process(target=end_by_force)
    process.start()
    process.join()
    assert path.exists()
    other = CachedDataset(Numbered(tmp_path / "log", 10, 10), 10**6)  # the next one finds what was left
    assert not path.exists() and other.slots.path.exists()


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_cache(tmp_path, context):
    dataset = Numbered(tmp_path / "log", 40, 10)
    caches = [CachedDataset(dataset, 10**6), FileCachedDataset(dataset, tmp_path / "cache")]
    for cache in caches if context == "fork" else caches[:1]:  # to spawn a worker takes seconds
        cache[3]
        dataset.log.unlink()
        loader = DataLoader(
            cache,
            batch_size=4,
            num_workers=2 if context == "fork" else 1,
            persistent_workers=True,
            multiprocessing_context=context,
            collate_fn=default_convert,
        )
        for _ in range(2):
            assert [number for _, numbers, _ in loader for number in numbers.tolist()] == list(range(40))
        assert sorted(dataset.made()) == [number for number in range(40) if number != 3]


def test_random_changes_come_after_the_cache(tmp_path):
    dataset = Numbered(tmp_path / "log", 10, 1000)
    cache = CachedDataset(dataset, 10**6, transform=add_noise)
    assert not torch.equal(cache[3], cache[3]) and (cache[3].round() == 3).all()
    assert cache.__getitems__([1, 2]).shape == (2, 1000)


def add_noise(item):
    return item[0] + torch.rand(1000) * 0.4


class Items(Dataset):
    """A list, in which a function stands for what it returns."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]() if callable(self.items[index]) else self.items[index]


class Pair(NamedTuple):
    image: torch.Tensor
    label: int


@dataclass
class Point:
    x: float


@pytest.mark.parametrize(
    ("items", "words"),
    [
        ([Image.new("RGB", (4, 4))] * 3, "of type Image, but a cache holds tensors"),
        ([(torch.zeros(1), "text")] * 3, r"the item\[1\] is of type str"),
        ([None] * 3, "of type NoneType"),
        ([{1: 2}] * 3, "keys that are no texts"),
        ([torch.zeros(2, dtype=torch.bfloat16)] * 3, "a tensor that a cache cannot hold"),
        ([np.array(["a"])] * 3, "of type ndarray"),
        ([torch.zeros(2)] * 2 + [torch.zeros(3)], r"item 2: .* this is Tensor float32 \[3\], the first .* \[2\]"),
        ([1, 2, 3.0], "item 2: .* this is float, the first int"),
        ([lambda: torch.rand(9)] * 3, "item 0 came out in two ways"),
        (
            [Pair(torch.zeros(1), 2)] * 3,
            "the item is a Pair, but a cache holds plain tuples.*give a tuple of its parts",
        ),
        ([(1, Point(1.0))] * 3, r"the item\[1\] is a Point.*give a tuple"),
        ([OrderedDict(a=1)] * 3, "is a OrderedDict.*give a dict"),
        ([2**70] * 3, "more than 64 bits"),
        ([np.ma.array([1, 2], mask=[0, 1])] * 3, "of type MaskedArray"),
        ([torch.zeros(2, dtype=torch.complex64).conj()] * 3, "a tensor that a cache cannot hold"),
        ([tv_tensors.Mask(torch.zeros(1, 2, 2))] * 3, "of type Mask"),
        ([], "the data set is empty"),
    ],
)
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_what_a_cache_cannot_hold_is_refused(tmp_path, items, words, kind):
    with pytest.raises(CacheError, match=words):
        if kind == "memory":
            CachedDataset(Items(items), 10**6)
        else:
            FileCachedDataset(Items(items), tmp_path / "cache")
    assert files_in(tmp_path) == []


def test_an_item_in_the_middle_that_does_not_fit(tmp_path):
    items = [torch.zeros(2) for _ in range(9)]
    items[1] = torch.zeros(3)
    cache = FileCachedDataset(Items(items), tmp_path / "cache")
    with pytest.raises(CacheError, match="item 1: a cache holds items of one type and shape"):
        cache[1]
    assert torch.equal(cache[2], torch.zeros(2))


def test_what_a_cache_holds_comes_out_as_it_was(tmp_path):
    items = [
        (np.float32(n), [n, True, 0.5], {"a": np.full((2, 0), n), "b": torch.tensor(n)}, torch.full((2, 3), n * 1j))
        for n in range(4)
    ]
    cache = FileCachedDataset(Items(items), tmp_path / "cache")
    for _ in range(2):
        for expected, item in zip(items, cache, strict=False):
            assert [type(part) for part in item] == [type(part) for part in expected]
            assert item[:2] == expected[:2] and type(item[1][1]) is bool
            assert item[2]["a"].shape == (2, 0) and torch.equal(item[2]["b"], expected[2]["b"])
            assert torch.equal(item[3], expected[3])


def test_another_data_set_is_refused(tmp_path):
    path = tmp_path / "cache"
    FileCachedDataset(Items(list(range(10))), path)
    for items, fingerprint in (([*range(9), 99], ""), (list(range(11)), ""), (list(range(10)), "version 2")):
        with pytest.raises(CacheError, match="is the cache of another data set: delete it"):
            FileCachedDataset(Items(items), path, fingerprint=fingerprint)
    with open(path, "r+b") as file:
        file.truncate(10_000)
    FileCachedDataset(Items(list(range(10))), tmp_path / "other")
    size = (tmp_path / "other").stat().st_size
    os.truncate(tmp_path / "other", size - 1)
    with pytest.raises(CacheError, match="was cut off"):
        FileCachedDataset(Items(list(range(10))), tmp_path / "other")
    (tmp_path / "text").write_text("my notes")
    with pytest.raises(CacheError, match="is no cache"):
        FileCachedDataset(Items(list(range(10))), tmp_path / "text")
    with pytest.raises(CacheError, match="No such file"):
        FileCachedDataset(Items(list(range(10))), tmp_path / "nowhere/cache")
    one, two = write(tmp_path, blocks(), "one.h5", stacked=True), write(tmp_path, blocks(), "two.h5", stacked=True)
    FileCachedDataset(HDF5Dataset(one, transform=only_image), tmp_path / "packed")
    with pytest.raises(CacheError, match="of another data set"):
        FileCachedDataset(HDF5Dataset(two, transform=only_image), tmp_path / "packed")


@pytest.mark.parametrize(
    ("trap", "words"),
    [
        ("fifo", "not a regular file"),
        ("link", "a symbolic link"),
        ("mode", "open to other users, with the mode 644, not 600"),
        ("owner", "another user's file"),
        ("folder", "not a regular file"),
    ],
)
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_cache_that_another_user_could_have_written_is_refused(tmp_path, monkeypatch, trap, words, kind):
    monkeypatch.setattr("src.datasets.cached.MEMORY", tmp_path)
    data = Items(list(range(100, 110)))

    def make():
        return CachedDataset(data, 10**6) if kind == "memory" else FileCachedDataset(data, tmp_path / "cache")

    cache = make()
    path = cache.slots.path
    assert path.stat().st_mode & 0o777 == 0o600 and cache[3] == 103
    content = path.read_bytes()
    cache = None
    path.unlink(missing_ok=True)
    elsewhere = tmp_path / "elsewhere"
    match trap:
        case "fifo":
            os.mkfifo(path)
        case "link":
            elsewhere.write_bytes(content)
            elsewhere.chmod(0o600)
            path.symlink_to(elsewhere)
        case "folder":
            path.mkdir()
        case _:
            path.write_bytes(content)
            path.chmod(0o644 if trap == "mode" else 0o600)
            if trap == "owner":
                if os.geteuid() != 0:
                    pytest.skip("only root can give a file to another user")
                os.chown(path, 65534, 65534)
    with contextlib.suppress(OSError):
        held = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # in use: else an own file would just be made anew
        fcntl.flock(held, fcntl.LOCK_SH)
    try:
        with pytest.raises(CacheError, match=words) as error:
            make()
        assert str(path) in str(error.value)
    finally:
        os.close(held)


def test_a_fifo_among_the_caches_does_not_hold_anything_up(tmp_path, monkeypatch):
    monkeypatch.setattr("src.datasets.cached.MEMORY", tmp_path)
    os.mkfifo(tmp_path / f"cached-dataset-{os.getuid()}-0")
    assert CachedDataset(Items(list(range(10))), float("inf"))[3] == 3
    with pytest.raises(CacheError, match="has no room for one"):
        CachedDataset(Items(list(range(10))), -1)


def only_image(item):
    return item["image"]


@pytest.mark.parametrize(
    ("home", "words"),
    [("~nouser", "TORCH_HOME .* cannot be read"), ("fifo", "is not a file: delete it"), ("nowhere", "are not in")],
)
def test_weights_that_cannot_be_read(tmp_path, monkeypatch, home, words):
    folder = tmp_path / "fifo/hub/checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", home)
    os.mkfifo(folder / Path(cache_models.models.get_model_weights("resnet18").DEFAULT.url).name)
    with pytest.raises(SystemExit, match=words):
        cache_models.check_weights("resnet18")


def test_a_seed_of_a_split_has_64_bits():
    for seed in (2**64, -(2**63) - 1):
        with pytest.raises(SystemExit, match="has more than 64 bits"):
            Datasets(Items, Items, split_seed=seed)
    Datasets(Items, Items, split_seed=2**64 - 1)
