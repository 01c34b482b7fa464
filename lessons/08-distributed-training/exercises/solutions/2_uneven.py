"""Solution: each process gets as many images as the others, so it makes as many steps.

torchrun --nproc_per_node 2 exercises/solutions/2_uneven.py

Here the last image is left out. DistributedSampler does the other thing: it takes the first one twice.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn


def share(length):
    """The indices of the images that are for this process."""
    even = length - length % dist.get_world_size()
    return torch.arange(even)[dist.get_rank() :: dist.get_world_size()]


def train(length, batch_size):
    """One epoch with so many images. Returns the weight at its end and the indices of the images it has seen."""
    torch.manual_seed(0)
    images, network = torch.randn(length, 5), nn.Linear(5, 1, bias=False)
    seen = []
    for indices in share(length).split(batch_size):
        network.zero_grad()
        network(images[indices]).square().mean().backward()
        dist.all_reduce(network.weight.grad)  # what DistributedDataParallel does
        with torch.no_grad():
            network.weight -= 0.1 * network.weight.grad / dist.get_world_size()
        seen += indices.tolist()
    dist.barrier()
    return network.weight.tolist(), seen


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=10))  # waits no longer than that
    for length in (8, 9):
        print(f"rank {dist.get_rank()}, {length} images: {train(length, batch_size=4)}", flush=True)
    dist.destroy_process_group()
