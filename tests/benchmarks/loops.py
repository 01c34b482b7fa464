"""Plain loops to compare with: what the network alone takes, and what a reader would write without lesson 3."""

import time

import torch
from measure import ROOT
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from src.models.networks import make_network

BATCH_SIZE = 64


def network_and_optimizer(arch, shape):
    network = make_network(arch, "imagenet", False, shape, 10)
    return network, torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)


def train(network, optimizer, batches):
    """Lesson 1's loop, but for its sums."""
    loss_function = nn.CrossEntropyLoss()
    network.train()
    for images, labels in batches:
        loss = loss_function(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def evaluate(network, batches):
    network.eval()
    for images, _ in batches:
        network(images)


def floor(arch, shape, steps, val_steps):
    """Seconds of an epoch in which one batch comes again and again: no data, no metrics, no Lightning."""
    network, optimizer = network_and_optimizer(arch, shape)
    batch = torch.randn(BATCH_SIZE, *shape), torch.randint(10, [BATCH_SIZE])
    train(network, optimizer, [batch] * min(steps, 10))  # to warm up
    start = time.perf_counter()
    train(network, optimizer, [batch] * steps)
    evaluate(network, [batch] * val_steps)
    return time.perf_counter() - start


def per_sample(num_workers, images):
    """Seconds of an epoch of MNIST, decoded and normalised sample by sample, as most examples of torchvision do it.

    Without the start of the workers.
    """
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    dataset = Subset(datasets.MNIST(ROOT / "data", train=True, transform=transform), range(images))
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0)
    network, optimizer = network_and_optimizer("mlp", [1, 28, 28])
    batches = iter(loader)
    train(network, optimizer, [next(batches)])
    start = time.perf_counter()
    train(network, optimizer, batches)
    return time.perf_counter() - start
