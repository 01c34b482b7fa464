"""CIFAR-10: photographs of animals and vehicles."""

import torch
from torchvision import datasets

from src.datasets.images import ImageDataModule


class CIFAR10(ImageDataModule):
    name = "cifar10"
    shape = [3, 32, 32]
    classes = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    crop = True
    flip = True  # a frog in the mirror is a frog

    def load(self, train):
        cifar = datasets.CIFAR10(self.data_dir, train=train)  # does not download; prepare_data() has
        images = torch.from_numpy(cifar.data)  # (N, H, W, C)
        return images.permute(0, 3, 1, 2).contiguous(), torch.tensor(cifar.targets)
