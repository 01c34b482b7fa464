"""Solution: the position in the epoch belongs to what is resumed. Here the number of the step says it.

python lessons/09-surviving-preemption/exercises/solutions/1_twice.py

The order is drawn again from the number of the epoch, and the batches that were done are left out.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn

IMAGES, BATCH_SIZE = 32, 4


def train(checkpoint, steps):
    """Train up to this step, from the checkpoint on if there is one. Returns the indices of the images seen."""
    torch.manual_seed(0)
    images, network = torch.randn(IMAGES, 5), nn.Linear(5, 1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    epoch, step, seen = 0, 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        epoch, step = state["epoch"], state["step"]

    while step < steps:
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(epoch))  # of each epoch another
        done = step % (IMAGES // BATCH_SIZE)
        for indices in order.split(BATCH_SIZE)[done:]:
            if step == steps:
                break
            optimizer.zero_grad()
            network(images[indices]).square().mean().backward()
            optimizer.step()
            step += 1
            seen += indices.tolist()
        else:
            epoch += 1

    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch, "step": step}
    torch.save(state, checkpoint)
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder, "state.pt")
        seen = train(checkpoint, 5) + train(checkpoint, 8)  # an epoch has eight steps
    print(f"{len(set(seen))} of {IMAGES} images seen in the first epoch, {len(seen) - len(set(seen))} of them twice")
