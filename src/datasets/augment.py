"""What is done with a batch of images before the network sees it, for all of its images at once.

Images are uint8 (N, C, H, W), on any device. For each random change there are two functions: one that draws the random
numbers, and one that does what they say.

Every process draws the numbers for the images of all processes and uses its own: rank, rank + world_size, ... The
generator has the same seed in all, so an image is changed in the same way whatever the number of processes is.
"""

import functools

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
    count, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4)
    # Seen as one long line of pixels: each row of the result is a stretch of it that begins here.
    place = torch.arange(count * channels, device=images.device).view(count, channels, 1) * padded.shape[2]
    rows = place + torch.arange(height, device=images.device) + top[:, None, None]
    begin = rows * padded.shape[3] + left[:, None, None]
    # unfold: all stretches that there are, a view. index_select copies whole rows, three times as fast as [...].
    stretches = padded.flatten().unfold(0, width, 1)
    return stretches.index_select(0, begin.flatten()).view(images.shape)


def random_flip(images, generator, rank=0, world_size=1):
    """Every second image, on average, as in a mirror."""
    drawn = torch.rand(len(images) * world_size, generator=generator, device=images.device)
    return flip(images, drawn[rank::world_size] < 0.5)


def flip(images, chosen):
    """Left and right exchanged in the images that are `chosen` (N), a boolean for each."""
    both = torch.cat([images, images.flip(-1)])
    count = len(images)
    return both.index_select(0, torch.arange(count, device=images.device) + count * chosen)  # faster than where()


def normalise(images, mean, std):
    """uint8 to float32 with mean 0 and deviation 1. mean, std: those of the pixels / 255, a number for each channel."""
    mean, std = columns(tuple(mean), tuple(std), images.device)
    return (images / 255 - mean).div_(std)  # grey images become as many channels as there are means


@functools.cache
def columns(mean, std, device):
    """Made once, not in every step: to copy numbers to a GPU is to wait until it has done all that was asked before."""
    with torch.inference_mode(False):  # the first to need them may be a validation
        return torch.tensor([mean, std], device=device)[:, :, None, None]
