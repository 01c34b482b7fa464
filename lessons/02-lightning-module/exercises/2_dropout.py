"""Asked twice about the same images, this network has two accuracies.

python exercises/2_dropout.py

Repair accuracy(). It is called in the middle of a training, which has to go on as before.
"""

import torch
from torch import nn


def make_network():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))


def accuracy(network, images, labels):
    """The share of the images whose class the network gets right."""
    return (network(images).argmax(dim=1) == labels).float().mean().item()


if __name__ == "__main__":
    torch.manual_seed(0)
    network = make_network()
    images = torch.randn(1000, 20)
    labels = network.eval()(images).argmax(dim=1)  # so the network knows the answers
    network.train()
    for time in ("first", "second"):
        print(f"the {time} time: {accuracy(network, images, labels):.3f}")
    print("the training goes on with dropout:", network.training)
