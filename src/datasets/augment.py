"""What is done with a batch of images before the network sees it, for all of its images at once.

Images are uint8 (N, C, H, W), on any device. For each random change there are two functions: one that draws the random
numbers, and one that does what they say.

Every process draws the numbers for the images of all processes and uses its own: rank, rank + world_size, ... The
generator has the same seed in all, so an image is changed in the same way whatever the number of processes is.
"""

import torch
from torch.nn import functional as F


def random_crop(images, padding, generator, rank=0, world_size=1):
    """Each image moved by at most `padding` pixels, up or down and left or right; what comes in is black."""
    size = (2, len(images) * world_size)
    drawn = torch.randint(2 * padding + 1, size, generator=generator, device=images.device)
    top, left = drawn[:, rank::world_size]
    return crop(images, padding, top, left)


def crop(images, padding, top, left):
    """Put `padding` black pixels around each image and cut H x W out of that, from row `top` (N), column `left` (N)."""
    height, width = images.shape[2:]
    padded = F.pad(images, [padding] * 4)
    # All windows that there are: (N, C, 2 * padding + 1, 2 * padding + 1, H, W). A view, so nothing is copied yet.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def random_flip(images, generator, rank=0, world_size=1):
    """Every second image, on average, as in a mirror."""
    drawn = torch.rand(len(images) * world_size, generator=generator, device=images.device)
    return flip(images, drawn[rank::world_size] < 0.5)


def flip(images, chosen):
    """Left and right exchanged in the images that are `chosen` (N), a boolean for each."""
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


def normalise(images, mean, std):
    """uint8 to float32 with mean 0 and deviation 1. mean, std: those of the pixels / 255, a number for each channel."""
    mean, std = torch.tensor([mean, std], device=images.device)[:, :, None, None]
    return (images / 255 - mean) / std
