"""Solution: dropout is for training only, and the training that goes on afterwards needs it again.

python exercises/solutions/2_dropout.py

Lightning does both around its validation. What you evaluate yourself, you switch yourself. no_grad() is something else:
it does not keep what backward() would need, and leaves dropout as it is.
"""

import torch
from torch import nn


def make_network():
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))


def accuracy(network, images, labels):
    """The share of the images whose class the network gets right."""
    training = network.training
    network.eval()
    with torch.no_grad():
        right = (network(images).argmax(dim=1) == labels).float().mean().item()
    network.train(training)
    return right


if __name__ == "__main__":
    torch.manual_seed(0)
    network = make_network()
    images = torch.randn(1000, 20)
    labels = network.eval()(images).argmax(dim=1)  # so the network knows the answers
    network.train()
    for time in ("first", "second"):
        print(f"the {time} time: {accuracy(network, images, labels):.3f}")
    print("the training goes on with dropout:", network.training)
