"""The solution of labels.py. The loss falls to 0: network and optimizer do their work, but what they learn is wrong.

python mistakes/labels_solution.py --overfit_batches 4 --max_epochs 30

The loss had counted the classes from 1, and class 0 became -1, which in Python is the last one: no error. Accuracy and
loss disagreed about what a label means, and only data learned by heart show that no accuracy below 1 is right.
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
        right[torch.arange(len(labels)), labels] = 1
        return -(right * logits.log_softmax(dim=1)).sum(dim=1).mean()


class OwnLoss(Classifier):
    def __init__(self, *args):
        super().__init__(*args)
        self.loss_function = CrossEntropy()


if __name__ == "__main__":
    src.main.Classifier = OwnLoss  # the class that main() makes its network of
    sys.argv += ["--cluster", "debug"]  # in this process: a job would not know of the line above
    run.main()
