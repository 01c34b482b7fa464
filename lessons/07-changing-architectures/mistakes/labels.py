"""The loss falls as it should, and the accuracy is nothing. Is it the network, the optimizer or the data?

python mistakes/labels.py --overfit_batches 4 --max_epochs 30

Whatever is right learns four batches by heart. Find out what is wrong and repair it. Solution: labels_solution.py.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run
import src.main
from src.models.classifier import Classifier


class CrossEntropy(nn.Module):
    """The mean of -log(probability of the right class)."""

    def forward(self, logits, labels):
        right = torch.zeros_like(logits)
        right[torch.arange(len(labels)), labels - 1] = 1
        return -(right * logits.log_softmax(dim=1)).sum(dim=1).mean()


class OwnLoss(Classifier):
    def __init__(self, *args):
        super().__init__(*args)
        self.loss_function = CrossEntropy()


if __name__ == "__main__":
    src.main.Classifier = OwnLoss  # the class that main() makes its network of
    sys.argv += ["--cluster", "debug"]  # in this process: a job would not know of the line above
    run.main()
