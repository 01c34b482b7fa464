"""Lesson 13: several outputs, weighted losses, regularizers bound by their signature, parameter groups, splits."""

import re
import signal
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from lesson import REPOSITORY, Root, assert_one_sentence
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from torchmetrics.classification import MulticlassAccuracy
from training import Training, epoch_lines, weights

sys.path.insert(0, str(REPOSITORY))
from src.config import instantiate, merge, read
from src.datasets.batches import Batches, make_loader
from src.datasets.datasets import Datasets, split
from src.losses import L2, CosineSimilarity, Tikhonov, TotalVariation
from src.models.multi_output import MultiOutput
from src.models.parameter_groups import make_optimizer, parameter_groups
from src.models.terms import Loss, Metric, Regularizer, bind

NAME = "13-several-outputs-and-losses"
CONFIG = f"lessons/{NAME}/two_heads.yaml"
TRAIN = f"python run.py --config {CONFIG}"
PREDICT = "python run.py predict RUN --ckpt best"
SHOW = f"python lessons/{NAME}/show.py RUN"
SECOND_DATASET = f"{TRAIN} --data.validation src.datasets.digits.Digits --data.validation.train false"
NO_IMAGE = f"{TRAIN} --model.losses.image_loss.weight 0"
FLAT = f'{TRAIN} --model.regularizers.flat "{{function: src.losses.Tikhonov, outputs: [image], weight: 0.01}}"'
HERE = "--cluster debug --threads 1"
SHORT = f"--config {CONFIG} --threads 1 --max_epochs 2 --limit_train_batches 60 --limit_val_batches 4"

Pair = namedtuple("Pair", ["digit", "image"])


class Net(nn.Module):
    """(N, 6) to a digit (N, 3) and an image (N, 1, 2, 3), in one of the ways that there are to return two things."""

    def __init__(self, kind="dict"):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(6, 4)
        self.digit, self.decoder = nn.Linear(4, 3), nn.Linear(4, 6)
        self.kind = kind

    def forward(self, x):
        code = self.encoder(x)
        digit, image = self.digit(code), self.decoder(code).view(-1, 1, 2, 3)
        return {
            "dict": {"image": image, "digit": digit, "code": code},
            "named": Pair(digit, image),
            "tuple": (digit, image),
        }[self.kind]


def batch(n=5):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, 6, generator=generator)
    return {"x": x, "label": torch.arange(n) % 3, "image": x.view(-1, 1, 2, 3)}


def model(kind="dict", **changes):
    parts = {
        "batch": ["x", "label", "image"],
        "outputs": ["digit", "image"],
        "losses": {
            "a": Loss(nn.CrossEntropyLoss(), "label", "digit", weight=2.0),
            "b": Loss(nn.functional.l1_loss, "image", "image", weight=0.25),
        },
    }
    return MultiOutput(Net(kind), **(parts | changes))


# Losses and regularizers against sums written by hand


def test_l2_is_the_sum_of_the_squares_of_the_weights():
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.5]]))
        net.bias.copy_(torch.tensor([10.0, 1.0]))
    assert L2()(net).item() == 1 + 4 + 9 + 0.25
    assert L2(biases=True)(net).item() == 1 + 4 + 9 + 0.25 + 101


def test_regularizers_of_an_image():
    image = torch.tensor([[[[0.0, 1.0, 3.0], [2.0, 2.0, 0.0]]]])  # differences: right 1 2 0 -2, down 2 1 -3
    assert TotalVariation()(image).item() == pytest.approx(5 / 4 + 6 / 3)
    assert Tikhonov()(image).item() == pytest.approx((1 + 9 + 4 + 4) / 6)
    assert Tikhonov(order=1)(image).item() == pytest.approx((1 + 4 + 0 + 4) / 4 + (4 + 1 + 9) / 3)
    assert Tikhonov(order=2, dims=1)(image).item() == pytest.approx((1 + 4) / 2)  # 2 - 1, -2 - 0
    assert TotalVariation(dims=1)(image).item() == pytest.approx(5 / 4)
    with pytest.raises(ValueError, match="dims 2 needs predictions of 3 dimensions or more, these are 2"):
        TotalVariation()(torch.zeros(5, 3))


def test_cosine_similarity():
    first, second = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[0.0, 2.0], [6.0, 8.0]])
    assert CosineSimilarity()(first, second).item() == pytest.approx((0 + 1) / 2)


def test_the_loss_is_the_weighted_sum_and_each_part_is_counted_by_name():
    net = Net()
    terms = {"l2": Regularizer(L2(), weight=0.125), "tv": Regularizer(TotalVariation(), ["image"], weight=0.5)}
    accuracy = {"accuracy": Metric(MulticlassAccuracy(3, average="micro"), "label", "digit")}
    mine = model(regularizers=terms, metrics=accuracy)
    sums, right, count = dict.fromkeys(["a", "b", "l2", "tv"], 0.0), 0, 0
    for size in (5, 2):  # the last batch is smaller and counts for less
        data = batch(size)
        out = net(data["x"])
        probabilities = out["digit"].exp() / out["digit"].exp().sum(dim=1, keepdim=True)
        image = out["image"]
        right_left, up_down = image[..., 1:] - image[..., :-1], image[..., 1:, :] - image[..., :-1, :]
        by_hand = {
            "a": -torch.stack([probabilities[i, data["label"][i]].log() for i in range(size)]).sum() / size,
            "b": (image - data["image"]).abs().sum() / image.numel(),
            "l2": sum((weight**2).sum() for name, weight in net.named_parameters() if "weight" in name),
            "tv": right_left.abs().mean() + up_down.abs().mean(),
        }
        expected = 2.0 * by_hand["a"] + 0.25 * by_hand["b"] + 0.125 * by_hand["l2"] + 0.5 * by_hand["tv"]
        assert mine.step(data, "train").item() == pytest.approx(expected.item(), rel=1e-5)
        sums = {name: sums[name] + size * value.item() for name, value in by_hand.items()}
        right += (out["digit"].argmax(1) == data["label"]).sum().item()
        count += size
    for name, total in sums.items():  # without the weight
        assert mine.means[f"train/{name}"].compute().item() == pytest.approx(total / count, rel=1e-5)
    total = 2 * sums["a"] + 0.25 * sums["b"] + 0.125 * sums["l2"] + 0.5 * sums["tv"]
    assert mine.means["train/loss"].compute().item() == pytest.approx(total / count, rel=1e-5)
    assert mine.metrics["train/accuracy"].compute().item() == pytest.approx(right / count)


def test_outputs_may_be_a_dict_a_named_tuple_or_a_tuple_and_batches_too():
    losses = {model(kind).step(batch(), "train").item() for kind in ("dict", "named", "tuple")}
    losses |= {model().step(tuple(batch().values()), "train").item()}
    assert len(losses) == 1


def test_one_loss_for_a_network_with_one_output():
    mine = MultiOutput(nn.Linear(6, 3), ["x", "label"], ["logits"], {"ce": Loss(nn.CrossEntropyLoss(), "label")})
    x, labels = batch()["x"], batch()["label"]
    expected = nn.functional.cross_entropy(mine.network(x), labels)
    assert mine.step((x, labels), "train").item() == pytest.approx(expected.item())


def test_tensors_of_a_loss_are_part_of_the_model():
    mine = model(losses={"a": Loss(nn.CrossEntropyLoss(torch.tensor([1.0, 2.0, 3.0])), "label", "digit")})
    assert mine.to(torch.float64).functions["a"].weight.dtype == torch.float64


# How regularizers are called


@pytest.mark.parametrize(
    "function, chosen, expected",
    [
        (lambda image, digit: 0, None, ([], {"image": "image", "digit": "digit"})),  # by name, in any order
        (lambda image, power=2: 0, None, ([], {"image": "image"})),
        (lambda network: 0, None, ([], {"network": "network"})),
        (lambda image, network: 0, None, ([], {"image": "image", "network": "network"})),
        (lambda **outputs: 0, None, ([], {"digit": "digit", "image": "image"})),
        (lambda first, second: 0, None, (["digit", "image"], {})),  # by position, in the order of the outputs
        (lambda first, second, power=2: 0, None, (["digit", "image"], {})),
        (lambda *all: 0, None, (["digit", "image"], {})),
        (lambda x: 0, ["image"], (["image"], {})),
        (lambda digit, image: 0, ["image", "digit"], (["image", "digit"], {})),  # what is said wins over names
        (TotalVariation(), ["image"], (["image"], {})),  # of a Module: its forward()
        (nn.CosineSimilarity(), None, (["digit", "image"], {})),
    ],
)
def test_binding(function, chosen, expected):
    assert bind("r", function, chosen, ["digit", "image"]) == expected


def test_by_name_and_by_position_give_what_they_should():
    def by_name(image, digit):
        return image.sum() - 2 * digit.sum()

    def by_position(first, second):
        return second.sum() - 2 * first.sum()

    out = Net()(batch()["x"])
    expected = (out["image"].sum() - 2 * out["digit"].sum()).item()
    for function in (by_name, by_position):
        mine = model(losses={}, regularizers={"r": Regularizer(function, weight=3.0)})
        assert mine.step(batch(), "train").item() == pytest.approx(3 * expected)


def test_a_type_error_inside_a_loss_is_not_swallowed():
    def broken(image):
        return len(3)

    with pytest.raises(TypeError, match="has no len"):
        model(regularizers={"r": Regularizer(broken)}).step(batch(), "train")


L1 = nn.L1Loss()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"regularizers": {"r": Regularizer(lambda image, mask: 0)}}, "regularizers.r: .* missing .*'mask'"),
        ({"regularizers": {"r": Regularizer(TotalVariation())}}, r"called with \(digit, image\): too many positional"),
        ({"regularizers": {"r": Regularizer(lambda a, b, c: 0)}}, "missing a required argument: 'c'"),
        ({"regularizers": {"r": Regularizer(L1, ["imag"])}}, "no output 'imag', but digit, image, network: image?"),
        ({"regularizers": {"r": Regularizer(3)}}, "regularizers.r: the arguments of 3 cannot be read"),
        ({"losses": {"a": Loss(L1, "labels", "digit")}}, "losses.a: there is no target 'labels', but x, label, image"),
        ({"losses": {"a": Loss(L1, "label", "digits")}}, "losses.a: there is no output 'digits', but digit, image"),
        ({"losses": {"a": Loss(L1, "label")}}, "losses.a: say with output: which of digit, image it compares"),
        ({"losses": {"a": Loss(nn.Sigmoid(), "label", "digit")}}, "Sigmoid.forward: too many positional arguments"),
        ({"losses": {"loss": Loss(L1, "label", "digit")}}, "loss and lr are taken"),
        ({"losses": {"a.b": Loss(L1, "label", "digit")}}, "a name has letters, digits and _"),
        ({"losses": {}}, "there is nothing to train with"),
        ({"regularizers": {"a": Regularizer(L2())}}, "'a' stands twice"),
        ({"inputs": ["y"]}, "inputs: there is no part of the batch 'y', but x, label, image"),
        ({"outputs": ["network"]}, "outputs: network is taken"),
    ],
)
def test_what_does_not_fit_is_one_sentence_when_the_model_is_built(changes, words):
    with pytest.raises(SystemExit) as error:
        model(**changes)
    assert re.search(words, str(error.value)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kind, changes, words",
    [
        ("dict", {"outputs": ["digit", "image", "mask"]}, "the network returns image, digit, code, but not mask"),
        ("tuple", {"outputs": ["digit", "image", "mask"]}, "the network returns 2 without names, but 3 are named"),
        (
            "dict",
            {"regularizers": {"r": Regularizer(lambda image: image)}},
            r"r returns a tensor of shape \(5, 1, 2, 3\)",
        ),
    ],
)
def test_what_only_the_first_batch_can_tell_is_one_sentence_then(kind, changes, words):
    with pytest.raises(SystemExit, match=words):
        model(kind, **changes).step(batch(), "train")


# Parameter groups


def test_every_parameter_is_in_exactly_one_group():
    named = dict(Net().named_parameters())
    patterns = {"encoder.*": {"lr": 0.1, "weight_decay": 0.5}, "*.bias": {"weight_decay": 0.0}}
    groups = {group["name"]: group for group in parameter_groups(named.items(), patterns)}
    names = {
        group: sorted(name for name, values in named.items() if any(values is one for one in groups[group]["params"]))
        for group in groups
    }
    assert names == {
        "encoder.*": ["encoder.weight"],
        "encoder.* and *.bias": ["encoder.bias"],  # both count, and the later wins
        "rest": ["decoder.weight", "digit.weight"],
        "*.bias": ["decoder.bias", "digit.bias"],
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(named)
    settings = {name: (group.get("lr"), group.get("weight_decay")) for name, group in groups.items()}
    assert settings == {
        "encoder.*": (0.1, 0.5),
        "encoder.* and *.bias": (0.1, 0.0),
        "rest": (None, None),
        "*.bias": (None, 0.0),
    }


def test_groups_train_with_their_own_settings_and_mistakes_are_one_sentence():
    mine = model(parameter_groups={"decoder.*": {"lr": 0.0}})
    before = {name: values.clone() for name, values in mine.network.named_parameters()}
    optimizer = mine.make_optimizer(lambda groups: torch.optim.SGD(groups, lr=0.1))
    mine.step(batch(), "train").backward()
    optimizer.step()
    still = {name for name, values in mine.network.named_parameters() if torch.equal(values, before[name])}
    assert still == {"decoder.weight", "decoder.bias"}
    for patterns, words in (
        ({"encodr.*": {"lr": 1}}, "no parameter is called like 'encodr.*'"),
        ({"encoder.*": {"lrate": 1}}, "SGD has no lrate, but lr, momentum"),
    ):
        with pytest.raises(SystemExit, match=re.escape(words)):
            make_optimizer(lambda groups: torch.optim.SGD(groups, lr=0.1), mine.network.named_parameters(), patterns)


def test_the_configuration_keeps_order_and_weights():
    patterns = '{"encoder.*": {"lr": 0.1}, "*.bias": {"lr": 0.2}}'  # not in the order of the alphabet
    flags = [f"--config={REPOSITORY / CONFIG}", f"--model.parameter_groups={patterns}"]
    flags += ["--model.losses.image_loss.weight=7", "--model.losses.image_loss.function=torch.nn.functional.l1_loss"]
    made = instantiate(read(merge(flags))).model
    assert made.weights == {"digit_loss": 1.0, "image_loss": 7.0, "l2": 1.0e-5, "tv": 0.01}
    assert made.functions["image_loss"] is nn.functional.l1_loss
    groups = made.make_optimizer(lambda groups: torch.optim.SGD(groups, lr=1.0)).param_groups
    assert {group["name"]: group["lr"] for group in groups} == {
        "encoder.*": 0.1,
        "encoder.* and *.bias": 0.2,
        "rest": 1.0,
        "*.bias": 0.2,
    }


# Validation data


class Plain(Dataset):
    """Without __getitems__, as most are."""

    def __len__(self):
        return 50

    def __getitem__(self, index):
        return torch.full((2,), float(index)), index


def test_the_split_depends_on_nothing_but_its_seed():
    torch.manual_seed(1)
    train, val = split(Plain(), 0.3, 0)
    torch.manual_seed(2)
    again = split(Plain(), 0.3, 0)[1]
    assert val.indices == again.indices != split(Plain(), 0.3, 1)[1].indices
    assert len(val) == 15 and sorted(train.indices + val.indices) == list(range(50))


@pytest.mark.parametrize("dataset", [Plain(), TensorDataset(torch.arange(50.0).repeat(2, 1).T, torch.arange(50))])
def test_batches_of_a_part_are_put_together(dataset):
    _, val = split(dataset, 0.3, 0)
    values, numbers = zip(*make_loader(val, Batches(15, 4), num_workers=0, pin_memory=False), strict=True)
    assert [len(part) for part in values] == [4, 4, 4, 3]  # the last one, too
    assert torch.cat(numbers).tolist() == val.indices
    assert torch.equal(torch.cat(values), torch.tensor(val.indices)[:, None].expand(-1, 2).float())


def test_a_second_dataset_for_the_validation():
    data = Datasets(train=Plain, test=Plain, validation=lambda: TensorDataset(torch.zeros(7, 2), torch.zeros(7)))
    data.setup("fit")
    assert (len(data.train_set), len(data.val_set)) == (50, 7)


@pytest.mark.parametrize("validation", [0.0, 1.0, 1.5, 0.001])
def test_a_share_that_leaves_nothing_is_one_sentence(validation):
    with pytest.raises(SystemExit, match=f"validation {validation} "):
        Datasets(train=Plain, test=Plain, validation=validation).setup("fit")


# Trained by the root


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return Training(tmp_path_factory.mktemp("13") / "alone", SHORT).ends_well()


@pytest.mark.slow
def test_killed_and_gone_on_with_the_weights_are_those_of_the_unbroken_run(alone, tmp_path):
    first = Training(tmp_path / "killed", f"{SHORT} --checkpoint_every 7")
    first.until_step(70)  # in the second epoch
    first.kill(signal.SIGKILL)
    assert "the weights are" not in first.output()
    second = Training(tmp_path / "killed", f"{SHORT} --checkpoint_every 7").ends_well()
    assert "going on from" in second.output()
    assert weights(second) == weights(alone)
    assert epoch_lines(first, second) == epoch_lines(alone)  # the means of all terms, too


@pytest.mark.slow
def test_two_processes_validate_and_predict_the_same(alone, tmp_path):
    two = Training(tmp_path / "two", SHORT, processes=2).ends_well()
    weights(two)  # equal in both
    lines, numbers = [], {}
    for processes in (1, 2):
        flags = f"--config {alone.folder}/config.yaml --run {alone.folder} --threads 1"
        done = Training(tmp_path / f"v{processes}", flags, "validate", processes).ends_well()
        lines.append(re.search(r"val loss: .*accuracy: \d\.\d{4}", done.output())[0])
        folder = Training(tmp_path / f"p{processes}", flags, "predict", processes).ends_well().folder
        numbers[processes] = dict(np.load(folder / "predictions.npz"))
    assert lines[0] == lines[1]  # the same 6,000 images, each once
    assert {name: array.shape for name, array in numbers[1].items()} == {
        "digit": (10_000, 10),
        "image": (10_000, 1, 28, 28),
    }
    for name, array in numbers[1].items():
        np.testing.assert_allclose(array, numbers[2][name], atol=1e-5)


def test_a_mistake_is_one_sentence_before_anything_is_trained(tmp_path):
    done = Root(NAME, tmp_path).shell(f"{TRAIN} {HERE} --model.losses.digit_loss.target labels")
    assert_one_sentence(done, "losses.digit_loss: there is no target 'labels', but image, label")


def run_of(done):
    assert done.returncode == 0, done.stdout + done.stderr
    return re.search(r"^run (\S+) ", done.stdout, re.MULTILINE)[1]


def test_the_readmes_commands_and_the_accuracy(tmp_path):
    root = Root(NAME, tmp_path)
    trained = root.run(TRAIN, f"{HERE} --max_epochs 2")
    name = run_of(trained)
    accuracy = re.search(r"test digit_loss: .* test image_loss: (\S+) .* test accuracy: (\S+)", trained.stdout)
    assert float(accuracy[2]) > 0.925  # 0.944
    assert float(accuracy[1]) < 0.032  # 0.026
    assert PREDICT in root.commands and SHOW in root.commands
    predicted = root.shell(f"{PREDICT.replace('RUN', name)} {HERE}")
    shown = root.shell(SHOW.replace("RUN", run_of(predicted)))
    assert f"right digits: {accuracy[2]}    mean square difference of the images: {accuracy[1]}" in shown.stdout


@pytest.mark.parametrize("command", [SECOND_DATASET, NO_IMAGE, FLAT])
def test_the_other_commands_run(tmp_path, command):
    done = Root(NAME, tmp_path).run(command, f"{HERE} --smoke --limit_val_batches 2")
    assert run_of(done) and "the weights are" in done.stdout


@pytest.mark.slow
def test_the_accuracy_that_the_readme_states(tmp_path):
    done = Root(NAME, tmp_path).run(TRAIN, HERE)
    assert float(re.search(r"test accuracy: (\S+)", done.stdout)[1]) > 0.955
