"""Are the exercises of this lesson right? See lessons/check.py."""

import copy

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def mean_loss(exercise):
    torch.manual_seed(0)
    network, loss_function = nn.Linear(20, 10), nn.CrossEntropyLoss()
    images, labels = 3 * torch.randn(100, 20), torch.randint(10, (100,))
    true = loss_function(network(images), labels).item()
    dataset = TensorDataset(images, labels)
    found = [exercise.mean_loss(network, loss_function, DataLoader(dataset, size)) for size in (1, 64, 100)]
    wrong = [abs(value - true) > 1e-4 for value in found]
    if wrong[2]:
        return (
            f"one batch of all 100 images gives {found[2]:.4f}, and it is {true:.4f}. What is added up: means or sums?"
        )
    if wrong[1]:
        return "the second of two batches has 36 images, the first 64. Does each image count the same?"
    if wrong[0]:
        return f"batches of one image give {found[0]:.4f}, and it is {true:.4f}"


def gradients(exercise):
    torch.manual_seed(0)
    network, loss_function = nn.Linear(20, 2), nn.CrossEntropyLoss()
    reference = copy.deepcopy(network)
    batches = [(torch.randn(8, 20), torch.randint(2, (8,))) for _ in range(3)]
    for images, labels in batches:
        gradients = torch.autograd.grad(loss_function(reference(images), labels), list(reference.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(reference.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    losses = exercise.train(network, loss_function, torch.optim.SGD(network.parameters(), lr=0.1), batches)
    if len(losses) != 3:
        return f"three batches, {len(losses)} losses"
    if not torch.allclose(network.weight, reference.weight, atol=1e-5):
        return "print network.weight.grad after each backward(), with the same batch each time. Should it grow?"


def shuffle(exercise):
    dataset = TensorDataset(torch.arange(100))
    train_loader, val_loader = exercise.make_loaders(dataset, dataset, 8)
    first, second = (torch.cat([batch for (batch,) in train_loader]).tolist() for _ in range(2))
    if sorted(first) != list(range(100)) or sorted(second) != list(range(100)):
        return "an epoch has to hold each training image once"
    if first == sorted(first):
        return "in which order do the training images come? The DataLoader has an argument for that"
    if first == second:
        return "the order is mixed, and it is the same in each epoch"
    if sorted(torch.cat([batch for (batch,) in val_loader]).tolist()) != list(range(100)):
        return "a validation has to hold each image once"
