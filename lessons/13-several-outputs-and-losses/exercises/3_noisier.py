"""The larger the weight of this regularizer, the noisier the image. It should become smooth.

python lessons/13-several-outputs-and-losses/exercises/3_noisier.py

Repair objective().
"""

import torch


def total_variation(image):
    """The mean absolute difference between neighbours, along both axes. image (H, W)"""
    return image.diff(dim=0).abs().mean() + image.diff(dim=1).abs().mean()


def objective(image, noisy, weight):
    """What is made small: the distance from the noisy image, and the variation with this weight."""
    return (image - noisy).square().mean() - weight * total_variation(image)


def denoise(noisy, weight, steps=200):
    """The image with the smallest objective."""
    image = noisy.clone().requires_grad_()
    optimizer = torch.optim.Adam([image], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(image, noisy, weight).backward()
        optimizer.step()
    return image.detach()


if __name__ == "__main__":
    torch.manual_seed(0)
    noisy = torch.zeros(28, 28)
    noisy[8:20, 8:20] = 1
    noisy += 0.2 * torch.randn(28, 28)
    for weight in (0.0, 0.05, 0.2):
        print(f"weight {weight:4}: total variation {total_variation(denoise(noisy, weight)):.3f}")
