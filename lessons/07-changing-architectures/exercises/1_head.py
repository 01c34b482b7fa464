"""A new last layer for ten classes. It fits ResNet-18, and nothing else.

python exercises/1_head.py

Repair new_head() so that it works for all four. All other layers keep their weights, they may be pretrained.
"""

import torch
from torch import nn
from torchvision import models

ARCHS = ["resnet18", "resnet50", "densenet121", "mobilenet_v3_small"]


def new_head(network, num_classes):
    """Replace the last layer of the network, an nn.Linear, by one for so many classes. Returns the network."""
    network.fc = nn.Linear(512, num_classes)
    return network


if __name__ == "__main__":
    for arch in ARCHS:
        with torch.device("meta"):  # shapes without numbers: this takes no time
            network = new_head(models.get_model(arch), 10).eval()
            try:
                print(f"{arch:20} {tuple(network(torch.empty(2, 3, 64, 64)).shape)}")
            except RuntimeError as error:
                print(f"{arch:20} {error}")
