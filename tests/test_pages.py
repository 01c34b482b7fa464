"""TensorBoard's pages: right for images and classes of all kinds, of bounded cost, and never the end of a run."""

import errno
import logging
import os
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from lesson import REPOSITORY
from PIL import Image
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from training import EVERYTHING, Training, curves, steps

sys.path.insert(0, str(REPOSITORY))
from src.callbacks import tensorboard
from src.callbacks.tensorboard import add_weights, thumbnail_pixels, thumbnails_of
from src.datasets.images import ImageDataModule, InMemoryImages
from src.models.classifier import Classifier
from src.utils import drawing
from src.utils.drawing import drawn, in_figure, readable


class Images(ImageDataModule):
    mean, std = [0.5], [0.5]

    def __init__(self, shape, classes, count=40):
        super().__init__()
        self.shape, self.classes = shape, classes
        self.mean, self.std = [0.5] * shape[0], [0.5] * shape[0]
        images = torch.randint(256, (count, *shape), dtype=torch.uint8)
        self.val_set = InMemoryImages(images, torch.arange(count) % len(classes))


def draw_all(folder, data, arch="cnn"):
    """All pages of a run that is a validation long: what TensorBoard shows, {tag: ...}."""
    module = Classifier(data.shape, len(data.classes), arch)
    [pages] = module.tensorboard_pages(data)
    with SummaryWriter(folder) as writer:
        batches = SimpleNamespace(is_last_batch=True)
        trainer = SimpleNamespace(
            is_global_zero=True,
            global_step=0,
            sanity_checking=False,
            state=SimpleNamespace(fn="fit"),
            logger=SimpleNamespace(experiment=writer),
            datamodule=data,
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=batches)),
        )
        pages.on_train_start(trainer, module)
        images, labels = data.val_set.__getitems__(range(20))
        module.eval()
        module.validation_step((data.normalise(images), labels))
        module.train()
        pages.on_validation_end(trainer, module)
        pages.on_train_end(trainer, module)
    assert all(part.training for part in module.modules())
    assert not module.val_probabilities._update_count
    events = EventAccumulator(str(folder), EVERYTHING).Reload()
    return set(events.Tags()["tensors"])


PAGES = {"val/examples", "val/predictions", "val/mistakes", "val/confusion_matrix", "weights/0.weight", "__run_graph__"}
NAMES = [
    ["a", "b"],
    ["$", "b$$", r"$\frac{1}{", r"a\$b$"],
    [os.fsdecode(b"M\xfcller"), os.fsdecode(b"M\xf6ller"), "\ud800", "new\nline", "tab\t", "\0", "汉字 🦩"],
    [3, 4.5],
    [f"a class with a very long name {number}" * 9 for number in range(40)],
]


@pytest.mark.parametrize(
    ("shape", "classes"),
    [*(([3, 32, 48], names) for names in NAMES)]
    + [(shape, ["a", "b"]) for shape in ([3, 48, 32], [1, 9, 5], [1, 4, 90], [2, 9, 8], [4, 8, 9], [3, 300, 200])],
)
def test_all_pages_are_drawn(tmp_path, caplog, monkeypatch, shape, classes):
    monkeypatch.setattr(drawing, "_said", set())
    caplog.set_level(logging.WARNING)
    tags = draw_all(tmp_path, Images(shape, classes))
    assert not caplog.messages
    assert tags >= PAGES | {f"pr/{readable(name)}" for name in classes[:30]}
    assert len([tag for tag in tags if tag.startswith("pr/")]) == min(30, len(classes))
    sprite = Image.open(next(tmp_path.rglob("sprite.png")))
    side = min(64, max(shape[1:]))
    assert sprite.size == (7 * side, 7 * side)  # 40 images
    [table] = tmp_path.rglob("metadata.tsv")
    assert len(table.read_text().split("\n")) == 41


def test_portrait_images_have_margins_in_the_projector():
    images = torch.full((3, 1, 8, 4), 255, dtype=torch.uint8)
    for pixels, side in ((64, 8), (4, 4)):
        squares = thumbnails_of(images, pixels)
        assert squares.shape == (3, 1, side, side)
        assert squares[:, :, :, side // 4 : -side // 4].eq(1).all() and squares.sum() == 3 * side * side / 2
    assert thumbnails_of(images.transpose(2, 3), 64).sum() == 3 * 32


def test_the_cost_is_bounded():
    for count, channels in ((500, 3), (500, 1), (1, 3), (100_000, 3)):
        pixels = thumbnail_pixels(count, channels)
        assert pixels <= 64 and count * channels * pixels**2 * 4 <= 32 * 2**20
        assert -(-(count**0.5) // 1) * pixels <= 8192


@pytest.mark.slow
def test_many_classes_and_large_images_take_no_longer(tmp_path):
    begin = time.process_time()
    tags = draw_all(tmp_path / "many", Images([3, 32, 32], [f"class {number}" for number in range(1000)]))
    assert time.process_time() - begin < 15  # a text in each cell would take a quarter of an hour
    assert len([tag for tag in tags if tag.startswith("pr/")]) == 30
    draw_all(tmp_path / "large", Images([3, 400, 400], ["a", "b"], count=500))
    assert Image.open(next((tmp_path / "large").rglob("sprite.png"))).size == (23 * 64, 23 * 64)


def test_points_with_many_features_are_fewer(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "VALUES", 64 * 5)  # the network has 64 features
    draw_all(tmp_path, Images([1, 8, 8], ["a", "b"]))
    assert len(next(tmp_path.rglob("tensors.tsv")).read_text().splitlines()) == 5


def test_a_page_that_fails_is_one_warning(caplog, monkeypatch):
    monkeypatch.setattr(drawing, "_said", set())

    def fail(reason):
        raise ValueError(reason)

    for reason in ("one\nline", "one\nline", "other"):
        drawn("val/page", fail, reason)
    drawn("val/second", fail, "other")
    assert caplog.messages == [
        "TensorBoard lacks the page val/page, and the training continues: ValueError: one line",
        "TensorBoard lacks the page val/page, and the training continues: ValueError: other",
        "TensorBoard lacks the page val/second, and the training continues: ValueError: other",
    ]

    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError):  # the whole run cannot be written
        drawn("val/page", lambda: (_ for _ in ()).throw(full))


def test_weights_of_all_kinds_have_histograms(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(drawing, "_said", set())
    network = torch.nn.ParameterDict(
        {
            "short": torch.nn.Parameter(torch.randn(3).bfloat16()),
            "nan": torch.nn.Parameter(torch.tensor([float("nan"), 1.0])),
            "large": torch.nn.Parameter(torch.randn(2**21 + 3)),
            "none": torch.nn.Parameter(torch.empty(0)),
            "scalar": torch.nn.Parameter(torch.tensor(1.0)),
            "far": torch.nn.Parameter(torch.tensor([1e38, 1e38])),
        }
    )
    with SummaryWriter(tmp_path) as writer:
        add_weights(writer, network, 0)
    tags = set(EventAccumulator(str(tmp_path), EVERYTHING).Reload().Tags()["tensors"])
    assert {"weights/short", "weights/large", "weights/scalar"} <= tags
    assert "weights/nan" not in tags and "weights/none" not in tags
    assert all("weights/far" in message for message in caplog.messages)


BROKEN = """
from src.callbacks import tensorboard
from src.models.classifier import Classifier


def fail(*arguments):
    raise ValueError("cannot be drawn")


for name in [name for name in dir(tensorboard) if name.startswith("add_")] + ["first", "thumbnails_of"]:
    setattr(tensorboard, name, fail)


class Broken(Classifier):
    pass
"""


def test_a_training_whose_pages_all_fail_completes(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    flags = "--model broken.Broken --threads 1 --limit_train_batches 5 --limit_val_batches 2 --max_epochs 1"
    run = Training(tmp_path / "run", flags, path=tmp_path).ends_well()
    assert "TensorBoard lacks the page val/confusion_matrix" in run.output()
    assert steps(run.folder) == [5] and "test/accuracy" in curves(run.folder)


def test_checkpoints_do_not_hold_the_probabilities_of_the_validation(tmp_path):
    flags = "--threads 1 --limit_train_batches 8 --validate_every 4 --checkpoint_every 3 --max_epochs 1 --keep all"
    run = Training(tmp_path / "run", flags).ends_well()
    for path in (run.folder / "checkpoints").glob("*.ckpt"):
        for metrics in torch.load(path, weights_only=True)["exact_resume"]["metrics"]:
            assert not {"val_probabilities", "val_labels", "val_confusion"} & set(metrics), path
    assert "pr/3" in curves(run.folder)


def test_names():
    assert readable("a") == "a" and readable(3) == "3"
    assert readable(os.fsdecode(b"M\xfcller")) == r"M\udcfcller"
    assert readable("a\nb") == r"a\nb" and readable("x" * 50, 5) == "xxxx…"
    assert in_figure("$a$") == r"\$a\$"
