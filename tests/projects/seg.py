"""Segmentation of bright discs in noisy images of different sizes."""

import time
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from torchmetrics.functional.classification import binary_jaccard_index as iou


@dataclass
class Batch:
    images: Tensor
    masks: Tensor
    names: list[str]


def collate(samples):
    images, masks, names = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.stack(masks), list(names))


def draw_disc(channels: int, noise: float, generator: torch.Generator):
    """Return an image (channels, height, width) and the mask of its disc."""
    height, width = torch.randint(20, 41, (2,), generator=generator).tolist()
    row, column, size = torch.rand(3, generator=generator).tolist()
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    mask = (rows - row * height) ** 2 + (columns - column * width) ** 2 < (4 + 6 * size) ** 2
    colour = 0.5 + torch.rand(channels, 1, 1, generator=generator)
    return colour * mask + noise * torch.randn(channels, height, width, generator=generator), mask


class Discs(Dataset):
    """Images with one disc each; where crop is given, a random square of this size is cut out of them."""

    def __init__(self, name: str = "", n: int = 9, seed: int = 0, channels: int = 2, noise: float = 0.5, crop: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.samples = [(*draw_disc(channels, noise, generator), f"{name}-{i:03}") for i in range(n)]
        self.crop = crop

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        image, mask, name = self.samples[index]
        if self.crop:
            top, left = (int(torch.randint(size - self.crop + 1, ())) for size in mask.shape)
            window = slice(top, top + self.crop), slice(left, left + self.crop)
            image, mask = image[(..., *window)], mask[window]
        return image, mask, name


class DiscData(L.LightningDataModule):
    def __init__(self, batch_size: int = 8, channels: int = 2, num_workers: int = 0):
        super().__init__()
        self.batch_size, self.channels, self.num_workers = batch_size, channels, num_workers

    def setup(self, stage: str):
        self.train = Discs("train", 200, 0, self.channels, noise=0.8, crop=16)
        kinds = [("easy", 21, 0.5), ("hard", 13, 1.2)]
        self.val = [Discs(f"val-{kind}", n, 1, self.channels, noise) for kind, n, noise in kinds]
        self.test = [Discs(f"test-{kind}", n, 2, self.channels, noise) for kind, n, noise in kinds]

    def loader(self, dataset: Dataset, **kwargs):
        return DataLoader(dataset, num_workers=self.num_workers, collate_fn=collate, **kwargs)

    def train_dataloader(self):
        return self.loader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return [self.loader(dataset) for dataset in self.val]

    def test_dataloader(self):
        return [self.loader(dataset) for dataset in self.test]

    def predict_dataloader(self):
        return self.loader(ConcatDataset(self.test))


class DiscNet(L.LightningModule):
    def __init__(self, width: int = 12, slow: float = 0.0, slow_val: float = 0.0):
        super().__init__()
        self.width, self.slow, self.slow_val = width, slow, slow_val
        self.net = None

    def setup(self, stage: str):
        if self.net is None:
            conv = nn.Conv2d(self.trainer.datamodule.channels, self.width, 7, padding=3)
            self.net = nn.Sequential(conv, nn.GroupNorm(3, self.width), nn.ReLU(), nn.Conv2d(self.width, 1, 1))

    def forward(self, images):
        return self.net(images).squeeze(1)

    def training_step(self, batch: Batch, batch_idx):
        time.sleep(self.slow)
        loss = bce(self(batch.images), batch.masks.float())
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx, dataloader_idx=0):
        time.sleep(self.slow_val)
        logits = self(batch.images)
        logs = {"val_loss": bce(logits, batch.masks.float()), "val_iou": iou(logits > 0, batch.masks)}
        self.log_dict(logs, batch_size=len(batch.names))

    def test_step(self, batch: Batch, batch_idx, dataloader_idx=0):
        self.log("test_iou", iou(self(batch.images) > 0, batch.masks), batch_size=len(batch.names))

    def predict_step(self, batch: Batch, batch_idx):
        found = self(batch.images) > 0
        return [{"name": name, "mask": mask} for name, mask in zip(batch.names, found, strict=True)]

    def configure_callbacks(self):
        monitor = "val_loss/dataloader_idx_0"
        return [ModelCheckpoint(monitor=monitor), EarlyStopping(monitor, patience=50)]
