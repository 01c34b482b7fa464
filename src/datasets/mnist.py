"""MNIST: handwritten digits."""

from torchvision import datasets

from src.datasets.images import ImageDataModule


class MNIST(ImageDataModule):
    name = "mnist"
    shape = [1, 28, 28]
    classes = list("0123456789")
    mean, std = [0.1307], [0.3081]

    def load(self, train):
        mnist = datasets.MNIST(self.data_dir, train=train)
        return mnist.data.unsqueeze(dim=1), mnist.targets
