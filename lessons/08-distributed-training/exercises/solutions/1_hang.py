"""Solution: all processes call all_reduce(), also if only one of them says the result.

torchrun --nproc_per_node 2 exercises/solutions/1_hang.py

The same holds for compute() of a metric, and for save_checkpoint() of Lightning: they wait for all.
"""

from datetime import timedelta

import torch
import torch.distributed as dist


def mean_over_processes(value):
    """The mean of the values of all processes."""
    total = torch.tensor(value)
    dist.all_reduce(total)
    return total.item() / dist.get_world_size()


def train_epochs(epochs):
    """A stand-in for a training: the losses of this process are made up. Rank 0 returns the mean losses of all."""
    reported = []
    for epoch in range(epochs):
        loss = 1.0 / (1 + epoch) + dist.get_rank()
        mean = mean_over_processes(loss)
        if dist.get_rank() == 0:
            reported.append(mean)
            print(f"epoch {epoch}: {reported[-1]:.3f}", flush=True)
        dist.barrier()  # the epoch ends together
    return reported


if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=timedelta(seconds=10))  # waits no longer than that
    train_epochs(3)
    dist.destroy_process_group()
