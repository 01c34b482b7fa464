"""The networks that can be chosen by name."""

import math

from torch import nn


def make_network(arch, shape, num_classes):
    """The network of that name: images (N, *shape) to logits (N, num_classes). shape: [channels, height, width]"""
    channels, height, width = shape
    if arch == "mlp":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, 128),
            nn.ReLU(),
            nn.Linear(128, 256),
            nn.ReLU(),
            nn.Linear(256, num_classes),
        )
    if arch == "mlp_wide":
        return nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, 512),
            nn.ReLU(),
            nn.Linear(512, num_classes),
        )
    if arch == "cnn":
        quarter = math.ceil(height / 4) * math.ceil(width / 4)  # pixels that two strides of 2 leave
        return nn.Sequential(
            nn.Conv2d(channels, 8, kernel_size=3, stride=2, padding=1),  # (N, 8, H/2, W/2)
            nn.ReLU(),
            nn.Conv2d(8, 16, kernel_size=3, stride=2, padding=1),  # (N, 16, H/4, W/4)
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * quarter, 64),
            nn.ReLU(),
            nn.Linear(64, num_classes),
        )
    raise ValueError(f"there is no network {arch!r}")
