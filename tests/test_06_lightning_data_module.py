"""Lesson 6: what its README says happens, happens."""

import importlib
import os
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lesson import TEST_LINE, Lesson, assert_one_sentence, epochs, modules_of
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import random_split
from torchvision.transforms import functional as TF

NAME = "06-lightning-data-module"
COLOUR = "python run.py --dataset colour-mnist --max_epochs 5"
FOLDER = "python run.py --dataset folder --data_dir ~/pictures"
PAGES = ["examples", "confusion_matrix", "predictions", "mistakes"]


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    lesson = Lesson(NAME, tmp_path_factory.mktemp("lesson-6"))
    lesson.own_data()  # colour-mnist is made there, and nothing is written into yours
    return lesson


@pytest.fixture(scope="module")
def code(lesson):
    """The lesson's modules, imported into this process: that saves the seconds a process needs to import torch."""
    names = ["datasets.augment", "datasets.images", "datasets.folder", "models.classifier", "models.networks", "main"]
    threads = torch.get_num_threads()
    with modules_of(lesson.folder):
        modules = {name.split(".")[-1]: importlib.import_module(f"src.{name}") for name in names}
        assert Path(modules["main"].__file__).is_relative_to(lesson.folder)
        yield SimpleNamespace(**modules)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def colour(lesson):
    """Two epochs on colour-mnist, which the command makes. Returns what was printed, and the run folder."""
    done = lesson.run(COLOUR, "--cluster debug --max_epochs 2 --log_path logs/colour")
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (lesson.folder / "logs/colour").iterdir()
    return done, folder


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance=dict.fromkeys(["scalars", "images", "tensors"], 0))
    accumulator.Reload()
    return accumulator


def numbered(number, *shape):
    """Random images, whose labels say which image it is."""
    images = torch.randint(256, (number, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    return images, torch.arange(number)


@pytest.fixture
def tiny(code):
    """A data set of 100 and 30 images that needs no files."""

    class Tiny(code.images.ImageDataModule):
        shape = [3, 12, 10]
        classes = list("0123456789")
        mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
        crop, flip = True, True

        def prepare_data(self):
            pass

        def load(self, train):
            return numbered(100 if train else 30, *self.shape)

    return Tiny


class Recorder(L.LightningModule):
    """Keeps the batches that it gets, by stage."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches = {stage: [] for stage in ("train", "val", "test", "predict")}

    def training_step(self, batch):
        self.batches["train"].append(batch)
        return self.weight.sum()

    def validation_step(self, batch):
        self.batches["val"].append(batch)

    def test_step(self, batch):
        self.batches["test"].append(batch)

    def predict_step(self, batch):
        self.batches["predict"].append(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def images(self, stage):
        return torch.cat([images for images, _ in self.batches[stage]])

    def labels(self, stage):
        return torch.cat([labels for _, labels in self.batches[stage]]).tolist()


def quiet_trainer(**options):
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def test_every_command_of_the_readme_is_tested_here(lesson):
    assert lesson.commands == [
        "python run.py",
        COLOUR,
        f"{COLOUR} --no_augment",
        f"{COLOUR} --arch cnn",
        "python run.py --dataset cifar10",
        FOLDER,
        "python ../check.py 06",
    ]


# ------------------------------------------------------------------------------------------------ data sets


def test_mnist_still_has_the_digits_of_lesson_1(lesson, lesson_1):
    done = lesson.run("python run.py", "--cluster debug --max_epochs 2 --log_path logs/mnist", real=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert epochs(done.stdout) == epochs(lesson_1.stdout)[:2]
    assert TEST_LINE.search(done.stdout)
    [folder] = (lesson.folder / "logs/mnist").iterdir()
    assert folder.name.endswith("_mnist")
    assert {f"pr/{number}" for number in range(10)} < set(events(folder).Tags()["tensors"])


@pytest.mark.parametrize(("name", "sizes"), [("mnist", (55_000, 5_000)), ("colour-mnist", (45_000, 5_000))])
def test_every_stage_has_its_images(code, lesson, colour, name, sizes):
    data = code.main.DATASETS[name](lesson.data, 500, 0)
    data.prepare_data()
    for stage in ("fit", "validate", "test", "predict"):
        data.setup(stage)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    for loader, size, training in zip(loaders, (*sizes, 10_000, 10_000), (True, False, False, False), strict=True):
        data.trainer = SimpleNamespace(training=training)
        assert len(loader.dataset) == size
        assert len(loader) == size // 500
        images, labels = next(iter(loader))
        assert images.dtype == torch.uint8 and images.shape == (500, *data.shape) and images.is_contiguous()
        assert labels.dtype == torch.int64 and labels.shape == (500,)
        assert set(labels.tolist()) == set(range(len(data.classes)))
        images, labels = data.on_after_batch_transfer((images, labels), 0)
        assert images.dtype == torch.float32 and images.shape == (500, *data.shape)
    images = data.normalise(data.train_set.images[:10_000])
    assert images.mean(dim=(0, 2, 3)) == pytest.approx(torch.zeros(data.shape[0]), abs=0.02)
    assert images.std(dim=(0, 2, 3)) == pytest.approx(torch.ones(data.shape[0]), abs=0.02)

    # The split: that of random_split in the lessons before, whatever the seed, every image in one of the two.
    images, labels = data.load(train=True)
    train, val = random_split(range(len(labels)), sizes, torch.Generator().manual_seed(0))
    assert sorted([*train.indices, *val.indices]) == list(range(len(labels)))
    assert torch.equal(data.train_set.images, images[train.indices])
    assert torch.equal(data.val_set.images, images[val.indices])
    assert torch.equal(data.train_set.labels, labels[train.indices])
    assert torch.equal(data.val_set.labels, labels[val.indices])


def test_the_split_is_the_same_in_another_process(code, lesson, colour):
    data = code.main.DATASETS["mnist"](lesson.data, 64, 0)
    torch.manual_seed(5)
    data.setup("validate")
    done = lesson.shell("""python - <<'END'
from src.main import DATASETS
data = DATASETS["mnist"]("../../data", 64, 0)
data.setup("fit")
print(*data.val_set.labels.tolist())
END""")
    assert done.stdout.split() == [str(label) for label in data.val_set.labels.tolist()]


@pytest.mark.parametrize("augment", [True, False])
def test_only_training_images_are_augmented_and_shuffled(tiny, augment):
    data = tiny(Path("nowhere"), 8, 0, augment)
    recorder, trainer = Recorder(), quiet_trainer(max_epochs=2)
    L.seed_everything(1, verbose=False)
    trainer.fit(recorder, data)
    trainer.test(recorder, data, verbose=False)
    trainer.predict(recorder, data, return_predictions=False)

    order = torch.randperm(100, generator=torch.Generator().manual_seed(0)).tolist()
    assert recorder.labels("val") == order[90:] * 3  # the two batches before the training, and two epochs
    assert recorder.labels("test") == recorder.labels("predict") == list(range(30))
    first, second = recorder.labels("train")[:90], recorder.labels("train")[90:]
    assert sorted(first) == sorted(second) == sorted(order[:90])
    assert first != second and first != order[:90]

    mean, std = torch.tensor(data.mean)[:, None, None], torch.tensor(data.std)[:, None, None]
    for stage in ("train", "val", "test", "predict"):
        originals = (data.load(stage in ("train", "val"))[0] / 255 - mean) / std
        same = (recorder.images(stage) == originals[recorder.labels(stage)]).all(dim=(1, 2, 3))
        if stage == "train" and augment:
            assert same.sum() < 20  # one of 162 stays as it was
        else:
            assert same.all()


def test_eight_jobs_that_start_at_once_on_an_empty_folder(code, tmp_path):
    """Eight threads, because all that prepare_data() does is to start a process."""
    data = [code.main.DATASETS["mnist"](tmp_path / "data", 64, 0) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda each: each.prepare_data(), data))  # a failure would be a SystemExit here
    data[0].setup("fit")
    assert len(data[0].train_set) == 55_000
    assert sorted(path.name for path in (tmp_path / "data/MNIST/raw").iterdir()) == [
        f"{part}-{what}-ubyte" for part in ("t10k", "train") for what in ("images-idx3", "labels-idx1")
    ]


def test_colour_mnist(colour):
    done, folder = colour
    lines = epochs(done.stdout)
    assert len(lines) == 2 and lines[1][3] > 0.15
    assert float(TEST_LINE.search(done.stdout)[2]) > 0.15  # 0.1 would be chance
    assert done.stderr == ""
    assert folder.name.endswith("_colour-mnist")
    written = events(folder)
    assert [round(event.value, 4) for event in written.Scalars("val/accuracy")] == [line[3] for line in lines]
    assert set(written.Tags()["images"]) == {f"val/{page}" for page in PAGES}
    hparams = (folder / "hparams.yaml").read_text().splitlines()
    for line in ("dataset: colour-mnist", "augment: true", "arch: mlp", "batch_size: 64", "num_classes: 10"):
        assert line in hparams
    summary = (folder / "model_summary.txt").read_text()
    assert "[1, 3072]" in summary
    [checkpoint] = folder.glob("checkpoints/*.ckpt")
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert [weights[f"network.{layer}.weight"].shape for layer in (1, 3, 5)] == [(128, 3072), (256, 128), (10, 256)]


@pytest.mark.slow
def test_the_other_colour_mnist_commands(lesson, colour):
    commands = [f"{COLOUR} {more}" for more in ("--no_augment", "--arch cnn")]
    assert set(commands) <= set(lesson.commands)
    flags = "--cluster debug --max_epochs 1 --logger csv"
    both = " & ".join(f"{command} {flags} --log_path logs/{number}" for number, command in enumerate(commands))
    done = lesson.shell(f"{both} & wait")
    assert done.stdout.count("epoch: 01/01") == 2, done.stdout + done.stderr
    accuracies = [float(accuracy) for _, accuracy in TEST_LINE.findall(done.stdout)]
    assert len(accuracies) == 2 and min(accuracies) > 0.15
    [plain] = (lesson.folder / "logs/0").glob("*/hparams.yaml")
    assert "augment: false" in plain.read_text()


def test_cifar10_is_read_from_torchvisions_files(code, tmp_path, monkeypatch):
    """Made-up files in CIFAR-10's format. torchvision would see by their checksums that they are not the real ones, so
    this check, and only this, is switched off."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: os.path.exists(path))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    data = code.main.DATASETS["cifar10"](tmp_path, 16, 0)
    images, _ = numbered(120, 3, 32, 32)
    labels = [number % 10 for number in range(120)]
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for number, name in enumerate(names):
        part = slice(20 * number, 20 * number + 20)
        batch = {"data": images[part].flatten(start_dim=1).numpy(), "labels": labels[part]}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": data.classes}))
    data.setup("fit")
    data.setup("test")
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(data.train_set.images, images[:100][order[:90]])
    assert torch.equal(data.val_set.labels, torch.tensor(labels)[order[90:]])
    assert torch.equal(data.test_set.images, images[100:])
    assert data.test_set.labels.tolist() == labels[100:]
    assert data.crop and data.flip


def test_without_network_cifar10_submits_nothing(lesson):
    nowhere = dict.fromkeys(["http_proxy", "https_proxy"], "http://127.0.0.1:9")
    done = lesson.run("python run.py --dataset cifar10", "--log_path logs/cifar10", **nowhere, no_proxy="")
    assert_one_sentence(done, "cifar10: could not download it here", "https://www.cs.toronto.edu/", "run this again")
    assert not (lesson.folder / "logs/cifar10").exists()


def test_digits_are_not_mirrored(code):
    flags = {name: (data.crop, data.flip) for name, data in code.main.DATASETS.items()}
    assert flags == {
        "mnist": (False, False),
        "colour-mnist": (True, False),
        "cifar10": (True, True),
        "folder": (True, True),
    }


# ------------------------------------------------------------------------------------------------- a folder


def draw(folder: Path, size=(14, 11), train=34, test=10) -> Path:
    """Images of three classes, which differ in colour. Some PNGs are grey, some have transparency."""
    random = np.random.default_rng(0)
    for part, number in (("train", train), ("test", test)):
        for channel, name in enumerate(["cherry", "leaf", "sky"]):
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 100, (*size[::-1], 3), dtype=np.uint8)
                pixels[:, :, channel] += 120
                image = Image.fromarray(pixels)
                if index == 0:
                    image = image.convert("RGBA")
                image.save(folder / part / name / f"{index}.png")
    return folder


def test_a_folder_of_ones_own(lesson, tmp_path):
    draw(tmp_path / "pictures")
    # `~` is the folder of the test. matplotlib keeps its own, else it would look for all fonts again.
    home = {"HOME": str(tmp_path), "MPLCONFIGDIR": importlib.import_module("matplotlib").get_configdir()}
    done = lesson.run(FOLDER, "--cluster debug --max_epochs 6 --batch_size 16 --log_path logs/folder", **home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(TEST_LINE.search(done.stdout)[2]) == 1
    assert "decoding" not in done.stdout + done.stderr  # a progress bar only on a terminal
    [folder] = (lesson.folder / "logs/folder").iterdir()
    written = events(folder)
    assert {"pr/cherry", "pr/leaf", "pr/sky"} < set(written.Tags()["tensors"])
    [projector] = folder.glob("*/val%2ffeatures")
    names = (projector / "metadata.tsv").read_text().split()
    assert len(names) == 10 and set(names) <= {"cherry", "leaf", "sky"}  # a tenth of 102
    assert len(written.Images("val/confusion_matrix")) == 1
    assert "[1, 3, 11, 14]" in (folder / "model_summary.txt").read_text()


def test_a_folder_is_read_as_it_is(code, tmp_path):
    data = code.folder.Folder(draw(tmp_path), 8, 0)
    assert data.classes == ["cherry", "leaf", "sky"] and data.shape == [3, 11, 14]
    data.prepare_data()
    data.setup("test")
    assert len(data.test_set) == 30 and data.test_set.images.dtype == torch.uint8
    for index in (0, 7, 29):
        name, number = data.classes[index // 10], index % 10
        pixels = np.asarray(Image.open(tmp_path / f"test/{name}/{number}.png").convert("RGB"))
        assert (data.test_set.images[index].permute(1, 2, 0).numpy() == pixels).all()
        assert data.test_set.labels[index] == index // 10
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (92, 10)


MISTAKES = {
    "no test": ("mv test elsewhere", ["test"]),
    "no classes": ("mv train/cherry/* train; rm -r train/*/", ["train", "class folder"]),
    "empty class": ("rm train/leaf/*", ["train", "leaf"]),
    "too few": ("rm train/*/[1-9]*", ["train", "only 3 images", "10"]),
    "broken": ("head -c 60 train/sky/5.png > x; mv x train/sky/5.png", ["train/sky/5.png", "cannot be read"]),
    "text": ("echo hello > train/cherry/0.png", ["train/cherry/0.png", "cannot be read"]),
    "16 bits": (
        'python -c \'from PIL import Image; Image.new("I;16", (14, 11), 999).save("train/sky/5.png")\'',
        ["train/sky/5.png", "more than 8 bits"],
    ),
    "text in a number": ("printf 'P6 1 x 255 ' > train/sky/5.ppm", ["train/sky/5.ppm", "cannot be read"]),
    "other classes": ("mv test/sky test/sea", ["test", "names"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_folder_is_one_sentence(code, tmp_path, mistake):
    command, words = MISTAKES[mistake]
    os.system(f"cd {draw(tmp_path)} && {command}")
    with pytest.raises(SystemExit) as raised:
        data = code.folder.Folder(tmp_path, 8, 0)
        data.setup("fit")
        data.setup("test")
    message = raised.value.code
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message


def test_images_of_different_sizes_are_one_sentence_in_a_run_too(lesson, tmp_path):
    draw(tmp_path)
    Image.new("RGB", (14, 12)).save(tmp_path / "train/sky/5.png")
    command = f"python run.py --dataset folder --cluster debug --log_path logs/sizes --data_dir {tmp_path}"
    assert_one_sentence(lesson.shell(command), "train/sky/5.png has 14 x 12 pixels, the first image 14 x 11 pixels")


@pytest.mark.parametrize("missing", ["", "train"])
def test_no_such_folder_submits_nothing(lesson, tmp_path, missing):
    if missing:
        (tmp_path / "pictures/train").mkdir(parents=True)
    done = lesson.run(FOLDER, "--log_path logs/missing", HOME=str(tmp_path))
    assert_one_sentence(done, str(tmp_path / "pictures" / ("test" if missing else "train")), "--data_dir")
    assert not (lesson.folder / "logs/missing").exists()


def test_a_data_set_that_does_not_exist_is_one_sentence(lesson):
    assert_one_sentence(lesson.run("python run.py", "--dataset imagenet"), "--dataset", "'imagenet'", "choose from")


# ------------------------------------------------------------------------------------------------- augment


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 11, 14)])
def test_a_batch_is_augmented_as_torchvision_does_image_by_image(code, shape):
    images, _ = numbered(50, *shape)
    top, left = torch.randint(9, (2, 50), generator=torch.Generator().manual_seed(1))
    chosen = torch.rand(50, generator=torch.Generator().manual_seed(2)) < 0.5
    mean, std = [0.4, 0.5, 0.6][: shape[0]], [0.2, 0.25, 0.3][: shape[0]]
    ours = code.augment.normalise(code.augment.flip(code.augment.crop(images, 4, top, left), chosen), mean, std)
    for number, image in enumerate(images):
        image = TF.crop(TF.pad(image, 4), top[number].item(), left[number].item(), *shape[1:])
        image = TF.hflip(image) if chosen[number] else image
        image = TF.normalize(TF.convert_image_dtype(image), mean, std)
        assert torch.equal(ours[number], image)


def test_every_crop_is_as_likely_and_every_second_image_is_mirrored(code):
    """Each pixel holds its own row and column, so that one pixel shows what was cut out."""
    rows, columns = torch.meshgrid(torch.arange(10), torch.arange(10), indexing="ij")
    images = torch.stack([rows, columns]).to(torch.uint8).expand(81_000, 2, 10, 10)
    torch.manual_seed(0)
    top, left = code.augment.random_crop(images, 4)[:, :, 4, 4].long().T
    counts = torch.bincount(9 * top + left, minlength=81)
    assert (counts - 1000).abs().max() < 5 * 1000**0.5  # 5 standard deviations
    mirrored = code.augment.random_flip(images)[:, 1, 0, 0] == 9
    assert abs(mirrored.sum() - 40_500) < 5 * (81_000 / 4) ** 0.5
    follows = (mirrored[1:] == mirrored[:-1]).sum()  # an image is not mirrored because its neighbour is
    assert abs(follows - 40_500) < 5 * (81_000 / 4) ** 0.5


# --------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("shape", [[1, 28, 28], [3, 32, 32], [3, 11, 14], [2, 1, 5]])
@pytest.mark.parametrize("arch", ["mlp", "mlp_wide", "cnn"])
def test_every_network_takes_every_shape(code, arch, shape):
    assert code.networks.make_network(arch, shape, 7)(torch.zeros(3, *shape)).shape == (3, 7)


def test_predict_gives_probabilities_for_each_test_image(code, tiny):
    data = tiny(Path("nowhere"), 8, 0)
    model = code.classifier.Classifier("mlp", "Adam", "CrossEntropyLoss", 1e-3, data.shape, 10)
    probabilities = torch.cat(quiet_trainer().predict(model, data))
    assert probabilities.shape == (30, 10)
    assert probabilities.sum(dim=1) == pytest.approx(torch.ones(30), abs=1e-5)
    expected = model.network(data.normalise(data.load(train=False)[0])).softmax(dim=1)
    assert torch.allclose(probabilities, expected, atol=1e-6)


# ---------------------------------------------------------------------------------------------- on a cluster


def test_run_py_does_not_import_torch(lesson):
    done = lesson.shell("python -X importtime run.py --dry_run --dataset cifar10")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --job-name=cifar10" in done.stdout
    assert not re.search(r"\| +(torch|lightning|numpy)$", done.stderr, re.MULTILINE)


@pytest.mark.slow
def test_on_slurm(lesson, colour, cluster):
    command = f"{COLOUR} --cluster slurm --max_epochs 1 --batch_size 1000 --log_path logs/slurm"
    done = cluster.run(command, lesson.folder, check=True)
    [(job, folder)] = re.findall(r"^job (\S+)    (\S+)    ", done.stdout, re.MULTILINE)
    assert cluster.wait(job) == "COMPLETED"
    assert "#SBATCH --job-name=colour-mnist" in (lesson.folder / folder / f"{job}_submission.sh").read_text()
    assert len(epochs((lesson.folder / folder / f"{job}_0_log.out").read_text())) == 1
    assert "lightning" not in (lesson.folder / folder / f"{job}_0_log.err").read_text().lower()
