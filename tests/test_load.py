"""A trained network is loaded where neither its training data nor torchvision's weights are."""

import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from lesson import REPOSITORY
from PIL import Image
from torchvision import models
from training import Training

sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests/projects")]
from src.load import load_run  # noqa: E402
from src.models.multi_output import MultiOutput  # noqa: E402
from src.models.networks import make_network, without_weights  # noqa: E402

FLAGS = "--accelerator cpu --threads 1 --max_epochs 1 --logger csv --batch_size 10"

# A process of its own, as on another machine: it has none of the classes, weights or data of this one.
LOAD = """
import sys, torch
from src.load import load_run
from src.models.classifier import Classifier

run, images, outputs = sys.argv[1:]
model = load_run(run, "last")
again = Classifier.load_from_checkpoint(sorted(__import__("pathlib").Path(run).glob("checkpoints/step=*"))[-1]).eval()
with torch.no_grad():
    torch.save([network(torch.load(images)) for network in (model, again)], outputs)
"""


@pytest.fixture
def images(tmp_path):
    """A folder of 20 images in two classes for each part."""
    for part in ("train", "test"):
        for number in range(20):
            path = tmp_path / f"images/{part}/{'ab'[number % 2]}/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number * 10, 255 * (number % 2), 7)).save(path)
    return tmp_path / "images"


def test_a_run_is_loaded_without_its_data_and_without_torchvisions_weights(images, tmp_path, monkeypatch):
    weights = tmp_path / "torch/hub/checkpoints/resnet18-f37072fd.pth"
    weights.parent.mkdir(parents=True)
    torch.save(models.resnet18().state_dict(), weights)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    flags = f"{FLAGS} --data Folder --data_dir {images} --model.arch resnet18 --model.pretrained true"
    run = Training(tmp_path / "run", flags, launcher=sys.executable).ends_well()
    saved = torch.load(next(run.folder.glob("checkpoints/step=*.ckpt")), weights_only=True)
    assert saved["filled_in"] == {"shape": [3, 32, 32], "num_classes": 2}
    network = make_network("resnet18", "imagenet", True, [3, 32, 32], 2)
    network.load_state_dict({key[8:]: value for key, value in saved["state_dict"].items() if key[:8] == "network."})
    batch = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network.eval()(batch)

    moved = tmp_path / "elsewhere"
    shutil.move(run.folder, moved)
    shutil.rmtree(images)
    shutil.rmtree(tmp_path / "torch")
    torch.save(batch, tmp_path / "batch.pt")
    command = [sys.executable, "-c", LOAD, str(moved), str(tmp_path / "batch.pt"), str(tmp_path / "outputs.pt")]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for outputs in torch.load(tmp_path / "outputs.pt"):
        assert torch.equal(outputs, expected)


MULTI = """
data: {class_path: src.datasets.folder.Folder, init_args: {augment: false}}
model:
  class_path: src.models.multi_output.MultiOutput
  init_args:
    network: {class_path: src.models.two_heads.TwoHeads, init_args: {shape: [3, 32, 32], num_classes: 2, hidden: 8}}
    batch: [image, label]
    outputs: [digit, image]
    losses:
      digit: {function: {class_path: torch.nn.CrossEntropyLoss}, target: label, output: digit}
      image: {function: {class_path: torch.nn.MSELoss}, target: image, output: image, weight: 0.5}
"""


def test_multi_output_is_loaded_without_its_data(images, tmp_path):
    (tmp_path / "multi.yaml").write_text(MULTI)
    run = Training(tmp_path / "run", f"--config {tmp_path}/multi.yaml {FLAGS} --data_dir {images}").ends_well()
    shutil.rmtree(images)
    path = next(run.folder.glob("checkpoints/step=*.ckpt"))
    state = torch.load(path, weights_only=True)["state_dict"]
    for model in (load_run(run.folder, "last"), MultiOutput.load_from_checkpoint(path)):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert model.weights == {"digit": 1.0, "image": 0.5}


def test_a_users_model_is_loaded_without_its_data(tmp_path):
    """A model that saves no hyperparameters: its checkpoint has those of the configuration."""
    flags = f"--model small.Net --model.logs first --data small.Lines {FLAGS}".replace("--batch_size 10", "")
    run = Training(tmp_path / "run", flags, path=REPOSITORY / "tests/projects").ends_well()
    from small import Net

    path = next(run.folder.glob("checkpoints/step=*.ckpt"))
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    config["data"]["class_path"] = "nowhere.Lines"
    (run.folder / "config.yaml").write_text(yaml.safe_dump(config))
    state = torch.load(path, weights_only=True)["state_dict"]
    for model in (load_run(run.folder, "last"), Net.load_from_checkpoint(path)):
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert model.logs == "first"


def test_a_checkpoint_of_an_older_program(images, tmp_path):
    """It does not say what the data have given: then the data do."""
    run = Training(tmp_path / "run", f"{FLAGS} --data Folder --data_dir {images} --model.arch cnn").ends_well()
    path = next(run.folder.glob("checkpoints/step=*.ckpt"))
    saved = torch.load(path, weights_only=True)
    del saved["filled_in"], saved["hyper_parameters"]
    torch.save(saved, path)
    assert load_run(run.folder, "last").network[-1].out_features == 2
    shutil.rmtree(images)
    with pytest.raises(SystemExit, match="train"):
        load_run(run.folder, "last")


@pytest.mark.parametrize("arch", ["resnet18", "googlenet", "inception_v3", "maxvit_t", "vit_h_14"])
def test_networks_without_weights_are_those_with_weights(arch, monkeypatch):
    """torchvision changes some networks when it gives them their weights."""
    monkeypatch.setattr("src.models.networks.check_weights", lambda arch: None)
    monkeypatch.setattr(torch.nn.Module, "load_state_dict", lambda self, *args, **kwargs: None)
    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", lambda self, **kwargs: {})
    with torch.device("meta"):
        with_them = make_network(arch, "imagenet", True, [3, 64, 64], 7)
        with without_weights():
            without = make_network(arch, "imagenet", True, [3, 64, 64], 7)
    assert str(with_them) == str(without)
    shapes = [{name: value.shape for name, value in network.state_dict().items()} for network in (with_them, without)]
    assert shapes[0] == shapes[1]
    takes = [[getattr(part, "transform_input", None) for part in network.modules()] for network in (with_them, without)]
    assert takes[0] == takes[1]
