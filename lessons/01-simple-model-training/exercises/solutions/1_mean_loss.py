"""Solution: a batch counts as often as it has images, also the last one, which is smaller.

python exercises/solutions/1_mean_loss.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@torch.no_grad()
def mean_loss(network, loss_function, loader):
    """The mean loss of all images. loss_function: nn.CrossEntropyLoss(), which returns the mean over a batch."""
    network.eval()
    total = 0.0
    for images, labels in loader:
        total += loss_function(network(images), labels).item() * len(labels)
    return total / len(loader.dataset)


if __name__ == "__main__":
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    dataset = TensorDataset(torch.randn(100, 1, 28, 28), torch.randint(10, (100,)))
    for batch_size in (1, 64, 100):
        loss = mean_loss(network, nn.CrossEntropyLoss(), DataLoader(dataset, batch_size))
        print(f"batches of {batch_size:3}: {loss:.4f}")
    print("a network that knows nothing has about 2.5, whatever the batch size is")
