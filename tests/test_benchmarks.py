"""The benchmark runs; the fast way to change images is torchvision's, bit for bit; no step waits for a GPU."""

import sys
import traceback
from collections import Counter

import pytest
import torch
from lesson import REPOSITORY
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import ToTensor
from torchvision.transforms.v2 import functional as torchvision

sys.path.insert(0, str(REPOSITORY))

from src.datasets.augment import crop, flip, normalise

PADDING = 4


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 17, 31), (1, 1, 5), (4, 9, 2)], ids=str)
def test_crop_flip_and_normalise_are_torchvisions(shape):
    """Given the same random numbers, bit for bit."""
    images = torch.randint(256, (50, *shape), dtype=torch.uint8)
    top, left = torch.randint(2 * PADDING + 1, (2, 50))
    top[:2], left[:2] = torch.tensor([0, 2 * PADDING]), torch.tensor([2 * PADDING, 0])  # the corners too
    chosen = torch.rand(50) < 0.5
    mean, std = torch.rand(2, shape[0]).add(0.1).tolist()
    ours = normalise(flip(crop(images, PADDING, top, left), chosen), mean, std)
    assert ours.dtype == torch.float32
    for number, image in enumerate(images):
        padded = torchvision.pad(image, [PADDING])
        theirs = torchvision.crop(padded, int(top[number]), int(left[number]), *shape[1:])
        theirs = torchvision.horizontal_flip(theirs) if chosen[number] else theirs
        theirs = ToTensor()(theirs.permute(1, 2, 0).numpy())  # from 0 to 1, by a division
        assert torch.equal(ours[number], torchvision.normalize(theirs, mean, std))


def test_grey_images_become_colour_when_there_are_three_means():
    images = torch.randint(256, (2, 1, 5, 7), dtype=torch.uint8)
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    expected = torchvision.normalize((images / 255).expand(-1, 3, -1, -1), mean, std)
    assert torch.equal(normalise(images, mean, std), expected)
