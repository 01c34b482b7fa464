"""A class receives the values that its user gave, and nothing that would be ignored is taken."""

import os
import sys

import pytest
import torch
import yaml
from lesson import REPOSITORY
from torch import nn
from torch.nn import functional as F
from training import Training

PROJECTS = REPOSITORY / "tests/projects"
sys.path[:0] = [str(REPOSITORY), str(PROJECTS)]
from arguments import Holders  # noqa: E402

from src.config import instantiate, merge, read  # noqa: E402

CLASSIC = {"data_dir": os.getcwd(), "batch_size": 32, "seed": 42, "num_workers": 4}


def made(*flags, processes=1):
    text = merge([word for flag in flags for word in flag.split()])
    return instantiate(read(text), processes)


@pytest.fixture
def config(tmp_path):
    """config(text): a config file with this text, as a flag."""

    def write(text):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(text)
        return f"--config {path}"

    return write


@pytest.mark.parametrize(
    ("content", "flags", "given"),
    [
        ("", "", {}),
        ("", "--batch_size 8 --seed 3", {"batch_size": 8, "seed": 3}),
        ("", "--data.batch_size 8 --data.seed 3", {"batch_size": 8, "seed": 3}),
        ("", "--data.init_args.data_dir there", {"data_dir": os.path.abspath("there")}),
        ("", "--data_dir there --num_workers 0", {"data_dir": os.path.abspath("there"), "num_workers": 0}),
        ("batch_size: 8", "", {"batch_size": 8}),
        ("batch_size: 8", "--batch_size 4", {"batch_size": 4}),
        ("batch_size: 8", "--data.batch_size 4", {"batch_size": 4}),
        ("batch_size: 8\ndata: {class_path: arguments.Classic, init_args: {batch_size: 6}}", "", {"batch_size": 6}),
        ("data: {class_path: arguments.Classic, init_args: {batch_size: 6}}", "--batch_size 4", {"batch_size": 4}),
        ("data: {class_path: arguments.Classic, init_args: {seed: 6}}", "", {"seed": 6}),
    ],
)
def test_data_receive_what_was_given(config, content, flags, given):
    """Flags win over config files, these over the class's defaults; the configuration shows what counts."""
    data = "" if "class_path" in content else "--data arguments.Classic"
    words = f"{config(content)} {data} --model arguments.Five {flags}".split()
    text = merge(words)
    assert instantiate(read(text)).data.given == CLASSIC | given
    shown = yaml.safe_load(text)
    assert shown["data"]["init_args"] == CLASSIC | given
    assert shown["batch_size"] == (CLASSIC | given)["batch_size"]
    assert instantiate(read(merge(config(text).split()))).data.given == CLASSIC | given


def test_the_later_file_wins(config):
    first = config("data: {class_path: arguments.Classic, init_args: {batch_size: 6, seed: 7}}")
    parts = made(first, config("batch_size: 9"), "--model arguments.Five")
    assert parts.data.given == CLASSIC | {"batch_size": 9, "seed": 7}


def test_defaults_of_data_that_are_no_settings():
    there = os.path.abspath("there")
    assert made("--data arguments.Unusual --model arguments.Five").data.given == (there, 0, -1)
    assert made("--data arguments.Unusual --batch_size 3 --model arguments.Five").data.given == (there, 3, -1)


def test_what_data_need_and_nobody_gave_comes_from_the_settings():
    assert made("--data arguments.Needing --model arguments.Five").data.given["batch_size"] == 64
    assert made("--data arguments.Needing --batch_size 3 --model arguments.Five").data.given["batch_size"] == 3


@pytest.mark.parametrize(
    ("flags", "given"),
    [
        ("--model arguments.Five --data arguments.Needing", (5, 3)),
        ("--model arguments.Five --model.num_classes 7 --data arguments.Needing", (7, 3)),
        ("--model arguments.Asking --data arguments.Needing", (3, [1, 2, 3])),
        ("--model arguments.Asking --model.shape [4] --data arguments.Needing", (3, [4])),
        ("--model arguments.Asking --model.shape [4] --data arguments.Bare", (None, [4])),
        ("--model arguments.Untyped --model.hidden 3 --data arguments.Bare", (3, None)),
        ("--model arguments.Untyped --model.hidden [1,2] --data arguments.Bare", ([1, 2], None)),
    ],
)
def test_models_receive_what_was_given(flags, given):
    assert made(flags).model.given == given


def test_what_a_model_needs_and_the_data_do_not_say():
    with pytest.raises(SystemExit, match="--model.shape is missing: Asking needs it, and Bare has no shape"):
        made("--model arguments.Asking --data arguments.Bare")


def test_defaults_that_are_objects():
    model = made("--model arguments.Objects --model.hidden 4 --data arguments.Bare").model
    act, where, dtype, function, init, norm, weights = model.given
    assert isinstance(act, nn.ReLU) and where == torch.device("cpu") and dtype == torch.float64
    assert function is F.relu and init(7) == 7 and norm is nn.LayerNorm and weights.tolist() == [1, 1]
    assert model.hidden == 4


def test_defaults_that_hold_objects():
    """They are the class's own, also when the configuration is read again, and what was given beside them counts."""
    given = made("--model arguments.Holders --model.kind BIG --data arguments.Bare").model.given
    own = Holders().given
    assert [repr(value) for value in given[:3]] == [repr(value) for value in own[:3]]
    assert list(given[3]) == ["act", "width"] and isinstance(given[3]["act"], nn.ReLU)
    assert given[4] == [torch.device("cpu")] and given[5].value == "big" and given[6] == float("inf")


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ("--model arguments.Own --optimizer SGD", "--optimizer has no effect: Own makes its optimizer in configure_"),
        ("--model arguments.Own --lr_scheduler.class_path StepLR", "--lr_scheduler"),
        ("--model arguments.Own --scale_lr 64", "--scale_lr has no effect"),
        ("--model arguments.Five --data arguments.Bare --batch_size 3", "--batch_size has no effect: Bare has no arg"),
        ("--model arguments.Five --trainer.devices 2", "--trainer.devices is not accepted: use --gpus_per"),
        ("--model arguments.Five --trainer.strategy ddp", "--trainer.strategy is not accepted: use --stra"),
        ("--model arguments.Five --trainer.plugins x", "--trainer.plugins cannot be set"),
        ("--model arguments.Five --trainer.benchmrk true", "has no argument benchmrk: did you mean --trainer.benchmar"),
    ],
)
def test_what_would_be_ignored_is_refused(flags, sentence):
    with pytest.raises(ValueError) as raised:
        merge(f"--data arguments.Classic {flags}".split())
    assert sentence in str(raised.value)


def test_classes_of_pytorch_lightning(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text("import pytorch_lightning as pl\nclass Net(pl.LightningModule): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"theirs.Net derives from the package pytorch_lightning.*lightning.pytorch"):
        merge(["--model", "theirs.Net"])


def test_hyperparameters_of_all_kinds_are_read_again(tmp_path):
    flags = "--model arguments.Saving --data arguments.SavingData --accelerator cpu --threads 1 --max_epochs 1"
    flags += " --model.sizes.dim 4 --data.size 3 --data.options.a 1 --monitor val_loss"
    run = Training(tmp_path / "run", flags, path=PROJECTS).ends_well()
    checkpoint = torch.load(run.folder / "checkpoints/best.ckpt", weights_only=True)
    saved = checkpoint["hyper_parameters"]
    path = os.path.abspath("x")
    assert saved == {"path": path, "kind": "big", "sizes": {"dim": 4}, "array": [0, 1, 2], "scalar": 0.5}
    Training(tmp_path / "run", f"{flags} --max_epochs 2", path=PROJECTS).ends_well()
    evaluated = f"--config {run.folder}/config.yaml --run {run.folder}"
    Training(tmp_path / "validate", evaluated, "validate", path=PROJECTS).ends_well()


def test_what_cannot_be_read_again_ends_the_training_before_its_first_step(tmp_path):
    flags = "--model arguments.Unreadable --data small.Lines --accelerator cpu --threads 1 --model.slow 60"
    run = Training(tmp_path / "run", flags, path=PROJECTS)
    assert run.wait(60) == 1
    assert (
        "checkpoint['mine'][1]['net'] is a torch.nn.modules.linear.Linear, which torch.load(weights_only=True)"
        in run.output()
    )
    assert not (run.folder / "checkpoints").exists()


def test_a_wrong_monitor_ends_the_training_before_its_first_step(tmp_path):
    flags = "--model small.Net --data small.Lines --accelerator cpu --threads 1 --model.slow 60 --monitor val_los"
    run = Training(tmp_path / "run", flags, path=PROJECTS)
    assert run.wait(60) == 1
    assert "--monitor val_los is not among what the validation reports: val_loss" in run.output()


def test_begin_with_a_plain_state_dict(tmp_path):
    """torch.save(model.state_dict(), path), as many people keep their weights."""
    flags = "--model small.Net --data small.Lines --accelerator cpu --threads 1 --max_epochs 1"
    first = Training(tmp_path / "first", flags, path=PROJECTS).ends_well()
    state = torch.load(next(first.folder.glob("checkpoints/step=*.ckpt")), weights_only=True)["state_dict"]
    torch.save(state, tmp_path / "weights.pt")
    ends = []
    for source in (tmp_path / "weights.pt", first.folder):
        begun = Training(tmp_path / f"{source.name}.begun", f"{flags} --init_from {source}", path=PROJECTS).ends_well()
        ends.append(torch.load(next(begun.folder.glob("checkpoints/step=*.ckpt")), weights_only=True)["state_dict"])
        assert "beginning with the weights of" in begun.output()
    from_file, from_run = ends
    assert all(torch.equal(from_file[name], from_run[name]) for name in from_run)
    torch.save({"other": torch.ones(1)}, tmp_path / "other.pt")
    wrong = Training(tmp_path / "wrong", f"{flags} --init_from {tmp_path}/other.pt", path=PROJECTS)
    assert wrong.wait() == 1 and "Traceback" not in wrong.output()
    assert f"--init_from {tmp_path}/other.pt: " in wrong.output(), wrong.output()
