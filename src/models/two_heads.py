"""A network with two outputs: which digit it is, and the image again."""

import math

from torch import nn


class TwoHeads(nn.Module):
    """Images go through an encoder to a few numbers, the code; one head reads the digit from it, one the image."""

    def __init__(self, shape: list[int] = (1, 28, 28), num_classes: int = 10, hidden: int = 128, code: int = 32):
        """The sizes.

        Args:
            shape: of an image: channels, height, width
            num_classes: what the images may be
            hidden: width of the layers between
            code: how many numbers an image is squeezed into
        """
        super().__init__()
        pixels = math.prod(shape)
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU(), nn.Linear(hidden, code), nn.ReLU()
        )
        self.classifier = nn.Linear(code, num_classes)
        self.decoder = nn.Sequential(
            nn.Linear(code, hidden), nn.ReLU(), nn.Linear(hidden, pixels), nn.Sigmoid(), nn.Unflatten(1, tuple(shape))
        )

    def forward(self, images):
        """images: (N, *shape), from 0 to 1. Returns digit: logits (N, num_classes), and image: (N, *shape)."""
        code = self.encoder(images)
        return {"digit": self.classifier(code), "image": self.decoder(code)}
