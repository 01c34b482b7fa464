"""The networks that can be chosen by name."""

import contextlib
import difflib
import math
import sys

from torch import nn
from torchvision import models

from src.utils.cache_models import check_weights

LOADING = [True]  # whether torchvision's weights are read: see without_weights()


@contextlib.contextmanager
def without_weights():
    """Inside, pretrained networks are made without torchvision's weights: those of a checkpoint will replace them."""
    LOADING.append(False)
    try:
        yield
    finally:
        LOADING.pop()


def make_network(arch, stem, pretrained, shape, num_classes):
    """The network of that name: images (N, *shape) to logits (N, num_classes). shape: [channels, height, width]"""
    channels, height, width = shape
    if pretrained and arch in ("mlp", "mlp_wide", "cnn"):
        sys.exit(f"pretrained is for torchvision's networks: there are no weights of {arch}")
    if arch == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, 128),
            nn.ReLU(),
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, num_classes),
        )
    if arch == "mlp_wide":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )
    if arch == "cnn":
        quarter = math.ceil(height / 4) * math.ceil(width / 4)  # pixels that two strides of 2 leave
        return nn.Sequential(
            nn.Conv2d(channels, 8, kernel_size=3, stride=2, padding=1),  # (N, 8, H/2, W/2)
            nn.ReLU(),
            nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),  # (N, 16, H/4, W/4)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * quarter, 64),
            nn.ReLU(),
            nn.Linear(64, num_classes),
        )
    known = models.list_models(module=models)
    if arch not in known:
        near = difflib.get_close_matches(arch, ["mlp", "mlp_wide", "cnn", *known], cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else "it is mlp, mlp_wide, cnn or one of torchvision's"
        sys.exit(f"there is no network {arch[:40]!r}{'...' if len(arch) > 40 else ''}: {hint}")
    if stem == "cifar" and "resnet" not in arch and "resnext" not in arch:
        sys.exit(f"stem cifar is for ResNets, such as resnet18, not for {arch}")
    if stem == "cifar" and pretrained:
        sys.exit("stem cifar and pretrained do not go together: the weights come with the imagenet stem")
    return make_torchvision_network(arch, stem, pretrained, shape, num_classes)


def add_dropout(network, share):
    """Leave out that share of what goes into the last layer, in training."""
    name, head = layers(network)[-1]
    network.set_submodule(name, nn.Sequential(nn.Dropout(share), head))


def make_torchvision_network(arch, stem, pretrained, shape, num_classes):
    """A classifier of torchvision with another last layer, and another first one where the images need it.

    stem: "cifar" has a ResNet begin with a 3x3 convolution; "imagenet" with a 7x7 one, stride 2, and a max-pool
    """
    weights = None
    if pretrained and LOADING[-1]:
        check_weights(arch)
        weights = "DEFAULT"
    # These two warn that their initial weights will be others one day, unless they are told which to take.
    options = {"init_weights": not pretrained} if arch in ("googlenet", "inception_v3") else {}
    if pretrained and not weights:
        options |= chosen_by_weights(arch)
    network = models.get_model(arch, weights=weights, **options)

    if arch in ("googlenet", "inception_v3"):  # leave out the outputs that they have half-way, only in the training
        network.aux_logits = False
        network.aux1 = network.aux2 = network.AuxLogits = None

    head_name, head = layers(network)[-1]
    if isinstance(head, nn.Linear):
        network.set_submodule(head_name, nn.Linear(head.in_features, num_classes))
    else:  # SqueezeNet ends in a convolution
        network.set_submodule(head_name, nn.Conv2d(head.in_channels, num_classes, kernel_size=1))

    channels, height, width = shape
    first_name, first = layers(network)[0]
    if stem == "cifar":
        network.conv1 = nn.Conv2d(channels, first.out_channels, kernel_size=3, padding=1, bias=False)
        network.maxpool = nn.Identity()
    elif channels != first.in_channels:
        options = {name: getattr(first, name) for name in ("kernel_size", "stride", "padding")}
        first = nn.Conv2d(channels, first.out_channels, **options, bias=first.bias is not None)
        network.set_submodule(first_name, first)

    size = input_size(arch, network, height, width)
    if size == (height, width):
        return network
    return nn.Sequential(nn.Upsample(size, mode="bilinear"), network)


def chosen_by_weights(arch):
    """The arguments that torchvision itself sets for a network with its weights."""
    if arch in ("googlenet", "inception_v3"):
        return {"transform_input": True}
    size = models.get_model_weights(arch).DEFAULT.meta.get("min_size")
    if arch.startswith("vit"):
        return {"image_size": size[0]}
    return {"input_size": size} if arch == "maxvit_t" else {}


def layers(network):
    """Names and layers of all convolutions and linear layers, from the first to the last."""
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]


def input_size(arch, network, height, width):
    """The size (height, width) that the network takes and that is nearest to the images'."""
    smallest, _ = models.get_model_weights(arch).DEFAULT.meta["min_size"]
    if arch.startswith("vit"):  # takes images of one size only, and it is not always the smallest of its weights
        return network.image_size, network.image_size
    if arch == "maxvit_t" or smallest > min(height, width):  # maxvit_t, too, takes one size
        return smallest, smallest
    return height, width


def normalisation(arch):
    """Mean and deviation, three numbers each, of the images with which torchvision's weights were trained."""
    transforms = models.get_model_weights(arch).DEFAULT.transforms()
    return transforms.mean, transforms.std
