"""Regularizers: what the training is to keep small besides the losses.

A regularizer is a torch Module whose forward() takes predictions and returns one number. The names of its arguments say
what it is called with: see bind() in src/models/terms.py. All are means over what they look at, so that a weight that
is right for small images and batches is right for large ones; L2 alone is a sum, as in the books.
"""

import torch
from torch import nn


class L2(nn.Module):
    """The sum of the squares of the network's weights: ridge regression, Tikhonov's regularization of the weights.

    Its gradient is twice the weights. So with SGD, weight 0.5 * d is the same as the optimizer's weight_decay=d. With
    Adam it is not: Adam divides this gradient, too, by its size. AdamW has its weight_decay for that.
    """

    def __init__(self, biases: bool = False) -> None:
        """biases: also biases and the scales of norms, all parameters with one dimension; usually left alone"""
        super().__init__()
        self.biases = biases

    def forward(self, network):
        """network: the nn.Module that is trained"""
        squares = [values.square().sum() for values in network.parameters() if self.biases or values.dim() > 1]
        return torch.stack(squares).sum()


class Tikhonov(nn.Module):
    """The mean square of a prediction, or of the differences between its neighbours: small, or smooth."""

    def __init__(self, order: int = 0, dims: int = 2) -> None:
        """What is squared.

        Args:
            order: 0: the values; 1: the differences between neighbours; 2: the differences of those
            dims: how many of the last dimensions are space: 1 for signals, 2 for images, 3 for volumes
        """
        super().__init__()
        self.order = order
        self.dims = dims

    def forward(self, prediction):
        """prediction: (N, ..., H, W) with two dims"""
        if self.order == 0:
            return prediction.square().mean()
        return sum(change.square().mean() for change in changes(prediction, self.dims, self.order))


class TotalVariation(nn.Module):
    """The mean absolute difference between neighbours, added up over the dimensions. It leaves edges sharp."""

    def __init__(self, dims: int = 2) -> None:
        """dims: how many of the last dimensions are space: 1 for signals, 2 for images, 3 for volumes"""
        super().__init__()
        self.dims = dims

    def forward(self, prediction):
        """prediction: (N, ..., H, W) with two dims"""
        return sum(change.abs().mean() for change in changes(prediction, self.dims))


class CosineSimilarity(nn.Module):
    """How much two predictions point in the same direction: 1 the same, 0 at right angles. A mean over the batch."""

    def forward(self, first, second):
        """first, second: (N, ...), each with as many values as the other"""
        return nn.functional.cosine_similarity(first.flatten(1), second.flatten(1)).mean()


def changes(values, dims, order=1):
    """The differences between neighbours in each of the last `dims` dimensions of values (N, ...), a list of tensors.

    Raises:
        ValueError: values have fewer dimensions
    """
    if values.dim() <= dims:  # the differences would be those between the samples of the batch
        raise ValueError(f"dims {dims} needs predictions of {dims + 1} dimensions or more, these are {values.dim()}")
    return [values.diff(n=order, dim=-dim) for dim in range(1, dims + 1)]
