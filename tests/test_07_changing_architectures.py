"""Lesson 7: what its README says happens, happens."""

import csv
import importlib
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lesson import REPOSITORY, Lesson, assert_one_sentence, epochs, modules_of
from torch import nn
from torchvision import models

NAME = "07-changing-architectures"
CHECK = "python ../check.py 07"  # typed in test_exercises.py
ALL = models.list_models(module=models)
# These take more than two seconds or two gigabytes for a step: they are built without memory, on the device "meta".
SLOW = """
    alexnet convnext_base convnext_large efficientnet_v2_l efficientnet_v2_m maxvit_t regnet_y_32gf regnet_x_32gf
    resnext101_32x8d resnext101_64x4d swin_b swin_s swin_t swin_v2_b swin_v2_s swin_v2_t vgg11_bn vgg13 vgg13_bn vgg16
    efficientnet_b7 regnet_x_16gf regnet_y_16gf resnet152 wide_resnet101_2 convnext_small
    vgg16_bn vgg19 vgg19_bn vit_b_16 vit_h_14 vit_l_16 vit_l_32 regnet_y_128gf
""".split()  # noqa: SIM905
# One or two of a family, tested each time. The others are marked slow: python -m pytest -m slow
USUAL = """
    densenet121 efficientnet_b0 googlenet inception_v3 mnasnet0_5 mobilenet_v3_small regnet_x_400mf resnet18
    shufflenet_v2_x0_5 squeezenet1_0 alexnet convnext_base maxvit_t regnet_y_128gf swin_t vgg16_bn vit_h_14
""".split()  # noqa: SIM905
RESNET = "python run.py --dataset colour-mnist --arch resnet18 --max_epochs 2"
CIFAR_STEM = (
    "python run.py --dataset colour-mnist --arch resnet18 --stem cifar --max_epochs 1"
    " --limit_train_batches 100 --limit_val_batches 10"
)
EFFICIENTNET = "python run.py --dataset colour-mnist --arch efficientnet_b0 --fast_dev_run"
FETCH = "python src/utils/cache_models.py resnet18"
PRETRAINED = "python run.py --dataset colour-mnist --arch resnet18 --pretrained --max_epochs 1"
SLOW_EPOCH = "python mistakes/slow.py --limit_train_batches 100 --max_epochs 2"
EXERCISES = [
    "python mistakes/labels.py --overfit_batches 4 --max_epochs 30",
    "python mistakes/labels_solution.py --overfit_batches 4 --max_epochs 30",
    "python mistakes/crash.py --fast_dev_run",
    "python mistakes/crash_solution.py --fast_dev_run",
    "python mistakes/late.py --limit_train_batches 5 --limit_val_batches 1",
    "python mistakes/late_solution.py --limit_train_batches 5 --limit_val_batches 1",
    SLOW_EPOCH,
    f"{SLOW_EPOCH} --limit_val_batches 1",
    "python mistakes/slow_solution.py --limit_train_batches 100 --max_epochs 2",
]
NO_NETWORK = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def lesson(tmp_path_factory):
    return Lesson(NAME, tmp_path_factory.mktemp("lesson-7"))


@pytest.fixture(scope="module")
def networks():
    """The lesson's src/models/networks.py, imported into this process and forgotten again."""
    with modules_of(REPOSITORY / "lessons" / NAME):
        yield importlib.import_module("src.models.networks")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def exercises(lesson):
    """What all exercises print, by their command. Without TensorBoard's pages: thirty epochs would draw thirty."""
    return {command: lesson.run(command, "--logger csv") for command in EXERCISES}


@pytest.fixture(scope="module")
def torch_home(tmp_path_factory, networks):
    """A TORCH_HOME with a file of random weights under the name of ResNet-18's."""
    folder = tmp_path_factory.mktemp("torch-home")
    (folder / "hub/checkpoints").mkdir(parents=True)
    torch.save(models.resnet18().state_dict(), folder / "hub/checkpoints" / "resnet18-f37072fd.pth")
    return folder


def marked(archs):
    """The cases of a test: those that are not usual are marked slow."""
    return [pytest.param(arch, marks=[] if arch in USUAL else [pytest.mark.slow]) for arch in archs]


def seconds(output):
    return float(re.search(r"seconds per epoch: (\S+)", output)[1])


def test_every_command_of_the_readme_is_tested_here(lesson):
    assert lesson.commands == [RESNET, CIFAR_STEM, EFFICIENTNET, FETCH, PRETRAINED, *EXERCISES, CHECK]


# --- networks


def test_run_py_knows_all_names_of_torchvision(lesson):
    program = "import run; print(run.TORCHVISION_ARCHS, run.ARCHS)"
    done = lesson.shell(f"python -c '{program}'")
    assert done.stdout.strip() == f"{ALL} {['mlp', 'mlp_wide', 'cnn']}"


@pytest.mark.parametrize("arch", marked(arch for arch in ALL if arch not in SLOW))
def test_a_step_of_two_images(networks, arch, recwarn):
    channels = 1 if ALL.index(arch) % 2 else 3
    network = networks.make_network(arch, "imagenet", False, [channels, 32, 32], 7)
    logits = network(torch.randn(2, channels, 32, 32))
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 6])).backward()
    assert all(parameter.grad is not None for parameter in network.parameters()), "a layer takes no part"
    torch.optim.SGD(network.parameters(), lr=0.1).step()
    assert not [warning for warning in recwarn if "initialization" in str(warning.message)]


@pytest.mark.parametrize("arch", marked(SLOW))
def test_the_heads_of_slow_networks(networks, arch, monkeypatch):
    # RegNet computes its widths with tensors while it is built, which the device "meta" cannot.
    if arch.startswith("regnet"):
        for name in ("kaiming_normal_", "normal_"):
            monkeypatch.setattr(nn.init, name, lambda *args, **kwargs: None)
        blocks = models.regnet.BlockParams.from_init_params

        def on_cpu(*args, **kwargs):
            with torch.device("cpu"):
                return blocks(*args, **kwargs)

        monkeypatch.setattr(models.regnet.BlockParams, "from_init_params", on_cpu)
    with torch.device("meta"):
        network = networks.make_network(arch, "imagenet", False, [1, 32, 32], 7)
        first, head = (networks.layers(network)[position][1] for position in (0, -1))
        assert first.in_channels == 1
        assert head.out_features == 7
        if not arch.startswith(("swin", "maxvit")):  # these compute with numbers that are not there
            assert network.eval()(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_every_network_is_tested_one_way_or_the_other():
    assert set(SLOW) < set(ALL) and set(USUAL) < set(ALL)


def test_stems(networks):
    images = torch.zeros(2, 3, 32, 32)
    for arch, stem, size in (("resnet18", "imagenet", 8), ("resnet18", "cifar", 32), ("wide_resnet50_2", "cifar", 32)):
        with torch.device("meta"):
            network = networks.make_network(arch, stem, False, [3, 32, 32], 10)
            sizes = []
            network.layer1.register_forward_pre_hook(lambda layer, args, sizes=sizes: sizes.append(args[0].shape))
            assert network(images.to("meta")).shape == (2, 10)
        assert sizes == [(2, 64, size, size)]
        kernel, stride = ((7, 7), (2, 2)) if stem == "imagenet" else ((3, 3), (1, 1))
        assert (network.conv1.kernel_size, network.conv1.stride) == (kernel, stride)
        assert isinstance(network.maxpool, nn.MaxPool2d if stem == "imagenet" else nn.Identity)
    with torch.device("meta"):
        assert networks.make_network("resnet18", "cifar", False, [1, 28, 28], 10).conv1.in_channels == 1


@pytest.mark.parametrize(
    "arch, given, taken",
    [
        ("resnet18", (28, 28), None),
        ("densenet121", (28, 28), (29, 29)),
        ("inception_v3", (32, 32), (75, 75)),
        ("inception_v3", (100, 90), None),
        ("vit_b_32", (300, 300), (224, 224)),
        ("vit_b_32", (224, 224), None),
        ("vit_h_14", (32, 32), (224, 224)),
        ("maxvit_t", (300, 300), (224, 224)),
    ],
)
def test_images_are_enlarged_where_the_network_demands_it(networks, arch, given, taken):
    with torch.device("meta"):
        network = networks.make_network(arch, "imagenet", False, [3, *given], 10)
    assert isinstance(network, nn.Sequential) == (taken is not None)
    if taken:
        assert network[0].size == taken


# --- what a user can get wrong


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--arch resnet-18", ["'resnet-18'", "did you mean resnet18"]),
        ("--arch efficientnet", ["'efficientnet'", "efficientnet_b"]),
        ("--arch ResNet18", ["'ResNet18'", "resnet18"]),
        ("--arch qqqq", ["'qqqq'", "run.py"]),
        ("--arch mlp --stem cifar", ["--stem cifar", "--arch mlp"]),
        ("--arch vgg11 --stem cifar", ["--stem cifar", "--arch vgg11"]),
        ("--stem tiny", ["--stem", "'tiny'"]),
        ("--stem cifar --pretrained", ["--stem cifar", "--pretrained"]),
        ("--arch cnn --pretrained", ["--pretrained", "--arch cnn"]),
        ("--limit_train_batches 0", ["--limit_train_batches", "'0'"]),
        ("--limit_val_batches 0.5", ["--limit_val_batches", "'0.5'"]),
        ("--overfit_batches -1", ["--overfit_batches"]),
        ("--overfit_batches 2 --limit_val_batches 3", ["--overfit_batches", "--limit_val_batches"]),
        ("--fast_dev_run 3", ["3"]),
    ],
)
def test_nonsense_in_a_flag_is_one_sentence(lesson, flags, words):
    assert_one_sentence(lesson.run(RESNET, f"--dry_run {flags}"), *words)


def test_run_py_does_not_import_torch(lesson):
    done = lesson.shell("python -X importtime run.py --dry_run --arch vit_b_16 --pretrained --no_pretrained")
    assert done.returncode == 0, done.stderr
    assert not re.search(r"\| +(torch|torchvision|lightning)$", done.stderr, re.MULTILINE)


# --- pretrained weights


def test_missing_weights_are_one_sentence_and_nothing_is_submitted(lesson, tmp_path, cluster):
    log_path = lesson.folder / "logs/missing"
    flags = f"--log_path {log_path} --cluster"
    done = lesson.run(PRETRAINED, f"{flags} debug", TORCH_HOME=str(tmp_path))
    words = ("the weights of resnet18", str(tmp_path / "hub/checkpoints"), "login node", FETCH)
    assert_one_sentence(done, *words)
    done = cluster.run(f"TORCH_HOME={tmp_path} {PRETRAINED} {flags} slurm", lesson.folder)
    assert done.returncode != 0 and all(word in done.stderr for word in words)
    assert "job" not in done.stdout
    assert not log_path.exists()

    # A job that finds none says the same: they were there when it was submitted.
    program = (
        "from src.models.networks import make_network\nmake_network('resnet18', 'imagenet', True, [3, 32, 32], 10)"
    )
    done = lesson.shell(f'python -c "{program}"', TORCH_HOME=str(tmp_path))
    assert_one_sentence(done, *words)


def test_cache_models(lesson, tmp_path, torch_home):
    without_network = lesson.run(FETCH, TORCH_HOME=str(tmp_path), **NO_NETWORK)
    assert "Traceback" not in without_network.stderr and "resnet18 could not be fetched" in without_network.stderr
    assert re.search(r"copy https://\S+/(resnet18\S+\.pth) to \S+/checkpoints/\1$", without_network.stderr)
    assert without_network.returncode != 0
    assert not list((tmp_path / "hub/checkpoints").iterdir())

    there = lesson.run(FETCH, TORCH_HOME=str(torch_home), **NO_NETWORK)
    assert there.stdout == f"resnet18: {torch_home}/hub/checkpoints/resnet18-f37072fd.pth\n"
    assert_one_sentence(lesson.run(FETCH, "resnet19"), "'resnet19'")

    # Not what the name promises: a program, and a file that broke off.
    broken = tmp_path / "hub/checkpoints/resnet18-f37072fd.pth"
    torch.save({"conv1.weight": subprocess.Popen}, broken)
    assert_one_sentence(lesson.run(FETCH, TORCH_HOME=str(tmp_path)), str(broken), "delete it")


def test_pretrained_weights_are_loaded(networks, torch_home, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(torch_home))
    [file] = (torch_home / "hub/checkpoints").iterdir()
    weights = torch.load(file, weights_only=True)
    network = networks.make_network("resnet18", "imagenet", True, [3, 32, 32], 10)
    for name, value in network.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, weights[name]), name
    assert network.fc.out_features == 10
    mean, std = networks.normalisation("resnet18")
    assert (mean, std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.slow
def test_training_begins_with_pretrained_weights(lesson, torch_home):
    """With a tiny learning rate the first layer stays what it was in the file. On grey images, too."""
    [file] = (torch_home / "hub/checkpoints").iterdir()
    first = torch.load(file, weights_only=True)["conv1.weight"]

    def train(dataset):
        flags = f"--cluster debug --limit_train_batches 2 --limit_val_batches 1 --lr 1e-12 --log_path logs/{dataset}"
        few = {"PL_TRAINER_LIMIT_TEST_BATCHES": "2"}
        return lesson.run(PRETRAINED, f"{flags} --dataset {dataset} --logger csv", TORCH_HOME=str(torch_home), **few)

    names = ("colour-mnist", "mnist")
    with ThreadPoolExecutor() as pool:
        runs = pool.map(train, names)
    for dataset, done in zip(names, runs, strict=True):
        assert done.returncode == 0, done.stdout + done.stderr
        [checkpoint] = (lesson.folder / f"logs/{dataset}").glob("*/checkpoints/*.ckpt")
        trained = torch.load(checkpoint, weights_only=True)["state_dict"]["network.conv1.weight"]
        assert torch.allclose(trained, first, atol=1e-9)


# --- runs


def test_the_small_network_prints_the_digits_of_lesson_6(lesson, tmp_path):
    command = "python run.py --cluster debug --dataset mnist --arch mlp --max_epochs 1 --log_path logs/mlp"
    with ThreadPoolExecutor() as pool:
        before, after = pool.map(lambda one: one.shell(command), [Lesson("06-lightning-data-module", tmp_path), lesson])
    assert after.returncode == 0, after.stdout + after.stderr
    assert len(epochs(after.stdout)) == 1 and epochs(after.stdout) == epochs(before.stdout)


@pytest.mark.campaign
def test_limits_and_pages_of_a_resnet(lesson):
    flags = "--cluster debug --limit_train_batches 3 --limit_val_batches 2 --log_path logs/resnet"
    done = lesson.run(RESNET, flags, real=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "epoch: 02/02" in done.stdout and "test accuracy: " in done.stdout
    [folder] = (lesson.folder / "logs/resnet").iterdir()
    [checkpoint] = folder.glob("checkpoints/*.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 6
    # Batch norm counts the batches that it has seen in training mode: the pages have added none.
    assert saved["state_dict"]["network.bn1.num_batches_tracked"] == 6
    assert "arch: resnet18" in (folder / "hparams.yaml").read_text()


def test_limit_val_batches_counts_the_images(lesson):
    flags = "--limit_train_batches 3 --limit_val_batches 2 --max_epochs 1 --logger csv --log_path logs/limits"
    done = lesson.shell(f"python run.py --cluster debug {flags}")
    assert done.returncode == 0, done.stdout + done.stderr
    [folder] = (lesson.folder / "logs/limits").iterdir()
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    metrics = {name: float(value) for row in rows for name, value in row.items() if value}
    for name, images in (("train/accuracy", 3 * 64), ("val/accuracy", 2 * 64), ("test/accuracy", 10_000)):
        assert metrics[name] * images == pytest.approx(round(metrics[name] * images), abs=1e-2), name


def test_cifar_stem_and_any_other_architecture_run(lesson):
    with ThreadPoolExecutor() as pool:
        stem = pool.submit(lesson.run, CIFAR_STEM, "--cluster debug --fast_dev_run --log_path logs/fast/stem")
        other = pool.submit(lesson.run, EFFICIENTNET, "--cluster debug --log_path logs/fast/other")
    for done in (stem.result(), other.result()):
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("epoch: 01/01") == 1 and "test accuracy: " in done.stdout
    files = [path.name for path in (lesson.folder / "logs/fast").rglob("*") if path.is_file()]
    assert not [name for name in files if name.endswith(".ckpt") or name.startswith("events")]


def test_pages_do_not_change_a_network_with_batch_norm(lesson):
    program = """
import torch
from src.models.networks import make_network
from src.utils.tensorboard import look

network = make_network("resnet18", "imagenet", False, [3, 32, 32], 10).eval()
before = {name: value.clone() for name, value in network.state_dict().items()}
images = torch.randn(120, 3, 32, 32)
features, probabilities = look(network, images)
assert features.shape == (120, 512) and probabilities.shape == (120, 10)
assert torch.allclose(network.fc(features).softmax(dim=1), probabilities, atol=1e-6)
assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
"""
    done = lesson.shell(f"python - <<'END'{program}END")
    assert done.returncode == 0, done.stderr


@pytest.mark.campaign
def test_on_slurm(lesson, cluster):
    flags = "--cluster slurm --dataset mnist --limit_train_batches 20 --limit_val_batches 5 --max_epochs 1"
    command = f"python run.py --arch resnet18 {flags} --log_path logs/slurm"
    submitted = cluster.run(command, lesson.folder, check=True).stdout
    job, folder = re.search(r"^job (\S+)    (\S+)", submitted, re.MULTILINE).groups()
    assert cluster.wait(job) == "COMPLETED"
    log = (lesson.folder / folder / f"{job}_0_log.out").read_text()
    [line] = epochs(log)
    assert line[1] > 0.3, "20 batches teach a ResNet something"


# --- exercises


def test_exercise_labels(exercises):
    wrong, right = (epochs(exercises[command].stdout)[-1] for command in EXERCISES[:2])
    assert wrong[0] < 0.05 and wrong[1] < 0.01
    assert right[0] < 0.05 and right[1] == 1


def test_exercise_crash(exercises):
    wrong, right = (exercises[command] for command in EXERCISES[2:4])
    assert wrong.returncode != 0 and wrong.stderr.endswith("KeyError: 'accuracy'\n")
    assert right.returncode == 0 and "of the test images" in right.stdout


def test_exercise_late(exercises):
    wrong, right = (exercises[command] for command in EXERCISES[4:6])
    assert wrong.returncode != 0 and "has no attribute 'unfreeze'" in wrong.stderr
    assert "epoch: 05/10" in wrong.stdout and "epoch: 06/10" not in wrong.stdout
    assert right.returncode == 0 and len(epochs(right.stdout)) == 10


def test_exercise_slow(exercises):
    slow, limited, right = (exercises[command].stdout for command in EXERCISES[6:])
    assert seconds(slow) > 1.5 * seconds(limited)
    assert seconds(slow) > 1.5 * seconds(right)
    # Image by image or by the batch: another order of adding up, the same metrics.
    assert epochs(slow)[-1] == pytest.approx(epochs(right)[-1], abs=2e-4)
