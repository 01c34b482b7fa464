"""The pretrained layers are frozen, only the head is trained. After an epoch the frozen layers answer something else.

python exercises/3_frozen.py

Repair Finetuned. Who trains it calls train() first, as below.
"""

import torch
from torch import nn


class Finetuned(nn.Module):
    def __init__(self, body, num_features, num_classes):
        """body: pretrained layers, which have to stay as they are. Its output has num_features columns."""
        super().__init__()
        self.body = body
        self.head = nn.Linear(num_features, num_classes)
        self.body.requires_grad_(False)

    def forward(self, images):
        return self.head(self.body(images))


def make_body():
    """A stand-in for a pretrained network."""
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


if __name__ == "__main__":
    torch.manual_seed(0)
    network = Finetuned(make_body(), 8, 10)
    images = 3 + torch.randn(64, 1, 28, 28)
    before = network.eval().body(images)
    network.train()
    network(images)
    after = network.eval().body(images)
    print(f"the frozen layers' answers have changed by up to {(after - before).abs().max().item():.4f}")
