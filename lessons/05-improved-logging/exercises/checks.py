"""Are the exercises of this lesson right? See lessons/check.py."""

import csv
from pathlib import Path

import torch


def true_average_precision(scores, positive):
    """Step by step down the scores: precision at each positive image, weighed by the recall it adds."""
    order = scores.argsort(descending=True)
    found, total = 0, 0.0
    for rank, index in enumerate(order, start=1):
        if positive[index]:
            found += 1
            total += found / rank
    return total / found


def pr_curve(exercise):
    perfect = exercise.average_precision(*exercise.perfect_network())
    if abs(perfect - 1) > 1e-4:
        return (
            f"a network without mistakes gets {perfect:.4f}. A curve needs a score of one class: which number is one?"
        )
    torch.manual_seed(0)
    labels = torch.randint(10, (500,))
    logits = torch.randn(500, 10) + torch.nn.functional.one_hot(labels, 10)
    probabilities = logits.softmax(dim=1)
    true = true_average_precision(probabilities[:, exercise.CLASS], labels == exercise.CLASS)
    found = exercise.average_precision(probabilities, labels)
    if abs(found - true) > 1e-3:
        return f"a network with mistakes gets {found:.4f}, and it is {true:.4f}. Is the score more than yes or no?"


def dashboards(exercise):
    exercise.main("tensorboard")
    if not list(Path("logs").glob("**/events*")):
        return "tensorboard does not write into logs/ any more"
    try:
        exercise.main("csv")
    except SystemExit:
        return "csv: which class of lightning.pytorch.loggers has the name of the format?"
    files = list(Path("logs").glob("**/metrics.csv"))
    if not files:
        return "csv writes no metrics.csv below logs/"
    with open(files[0]) as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file)]
    if len(losses) != 100 or abs(losses[10] - 0.9**10) > 1e-6:
        return f"{files[0]} holds {len(losses)} of 100 rows with val/loss"


def accuracy(exercise):
    labels = torch.tensor([0] * 95 + [1] * 5)
    always_0, perfect = torch.tensor([[1.0, 0.0]]).repeat(100, 1), torch.nn.functional.one_hot(labels, 2).float()
    model = exercise.Watched()
    first, second = (exercise.validate(model, logits, labels) for logits in (always_0, perfect))
    if abs(first - 0.95) > 1e-4:
        return f"95 of 100 images are right in the first epoch, and it logs {first:.3f}. A mean of what is that?"
    if abs(second - 1) > 1e-4:
        return f"all are right in the second epoch, and it logs {second:.3f}. Which images are counted?"
    if abs(exercise.validate(model, always_0, labels) - 0.95) > 1e-4:
        return "in the third epoch 95 of 100 are right again, and it logs something else"
