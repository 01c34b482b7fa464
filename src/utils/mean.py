"""The mean of an epoch, counted in every step."""

import torch
from torchmetrics import Metric


class Mean(Metric):
    """A mean over images; when it is logged, over those of all processes. With a NaN in it, it is NaN.

    torchmetrics has MeanMetric. It looks for NaN in each step, twice, and a GPU's answer takes until all that was
    asked of it before is done.
    """

    full_state_update = False

    def __init__(self):
        super().__init__()
        # In float32 a count would stop at 2 ** 24 images, because 2 ** 24 + 1 is rounded to 2 ** 24.
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, total, count):
        """total: the sum over a batch, a tensor of one number. count: how many images, an int."""
        self.total += total
        self.count += count

    def compute(self):
        return (self.total / self.count).float()
