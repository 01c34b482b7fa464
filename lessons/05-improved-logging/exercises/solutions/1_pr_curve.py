"""Solution: the score of an image is its probability of the class. The number of the predicted class is no score.

python exercises/solutions/1_pr_curve.py

A curve has a point for each threshold: all images with a score above it count as "this class". With class numbers as
scores, a threshold that lets the threes in lets in the fours to nines as well, each of them a false positive.
"""

import torch
from torchmetrics.functional.classification import binary_average_precision

CLASS = 3  # the class whose curve this is, against all others


def perfect_network():
    """What a network without mistakes answers to 1,000 images. Returns probabilities (1000, 10), labels (1000)."""
    labels = torch.randint(10, (1000,), generator=torch.Generator().manual_seed(0))
    logits = 5.0 * torch.nn.functional.one_hot(labels, 10)
    return logits.softmax(dim=1), labels


def average_precision(probabilities, labels):
    """The area below the curve of CLASS: 1 for a network that gives no other image a higher probability of CLASS."""
    scores = probabilities[:, CLASS]
    return binary_average_precision(scores, (labels == CLASS).long()).item()


if __name__ == "__main__":
    probabilities, labels = perfect_network()
    print(f"accuracy:          {(probabilities.argmax(dim=1) == labels).float().mean():.4f}")
    print(f"average precision: {average_precision(probabilities, labels):.4f}")
