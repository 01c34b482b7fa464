"""Solution: DistributedSampler fills up with the first images until all processes have as many, and those count twice.

torchrun --nproc_per_node 2 exercises/solutions/3_counted_twice.py

That is right for a training, whose steps wait for each other. An evaluation has no steps in common, so nothing has to
be filled up.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, TensorDataset


def accuracy(predicted, labels):
    """The share of right predictions. Each process looks at a part of them."""
    dataset = TensorDataset(predicted, labels)
    mine = range(dist.get_rank(), len(dataset), dist.get_world_size())
    counts = torch.zeros(2)  # right, all
    for some_predicted, some_labels in DataLoader(dataset, 4, sampler=mine):
        counts += torch.tensor([(some_predicted == some_labels).sum(), len(some_labels)])
    dist.all_reduce(counts)
    return (counts[0] / counts[1]).item()


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=10))  # waits no longer than that
    labels = torch.arange(9)
    predicted = labels.clone()
    predicted[0] = 5
    print(f"rank {dist.get_rank()}: {accuracy(predicted, labels):.4f}, and it is {8 / 9:.4f}", flush=True)
    dist.destroy_process_group()
