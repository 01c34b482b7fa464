"""Regression on records that are read one after the other from a text file."""

import os
import time
from pathlib import Path
from uuid import uuid4

import lightning as L
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from src.datasets.stream import Stream

FEATURES = 8


def draw_records(n: int, seed: int):
    """Return inputs (n, FEATURES) and targets (n, 1)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    y = torch.sin(x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * x[:, 3:].sum(1)
    return x, y[:, None]


def parse(line: str, jitter: float):
    """Make a training sample of one line, with some noise on its inputs."""
    record = torch.tensor([float(field) for field in line.split()])
    x, y = record[:FEATURES], record[FEATURES:]
    return x + jitter * (torch.rand(FEATURES) - 0.5), y


class Records(Stream):
    """All records, in the order of the file."""

    def __init__(self, path: str, jitter: float = 0.1):
        self.path, self.jitter = path, jitter

    def lines(self):
        with open(self.path) as file:
            yield from file

    def __iter__(self):
        for line in self.share(self.lines()):
            yield parse(line, self.jitter)


class RecordData(L.LightningDataModule):
    def __init__(self, path: str, batch_size: int = 16, num_workers: int = 2):
        super().__init__()
        self.path, self.batch_size, self.num_workers = path, batch_size, num_workers

    def prepare_data(self):
        if Path(self.path).exists():
            return
        temporary = f"{self.path}.{uuid4().hex}"
        records = torch.cat(draw_records(410, seed=0), dim=1)
        with open(temporary, "w") as file:
            file.writelines(" ".join(f"{number:.5f}" for number in record) + "\n" for record in records.tolist())
        os.replace(temporary, self.path)

    def setup(self, stage: str):
        self.train_set = Records(self.path)
        self.val_set = TensorDataset(*draw_records(101, seed=1))
        self.test_set = Records(self.path, jitter=0)

    def train_dataloader(self):
        return DataLoader(self.train_set, batch_size=self.batch_size, num_workers=self.num_workers)

    def val_dataloader(self):
        return DataLoader(self.val_set, batch_size=10)

    def test_dataloader(self):
        return DataLoader(self.test_set, batch_size=10, num_workers=self.num_workers)

    def predict_dataloader(self):
        return self.test_dataloader()


class Net(L.LightningModule):
    def __init__(self, width: int = 128, lr: float = 0.01, slow: float = 0.0, slow_val: float = 0.0):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, 1))
        self.lr, self.slow, self.slow_val = lr, slow, slow_val

    def forward(self, x):
        return self.net(x)

    def loss(self, batch):
        return mse_loss(self(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        time.sleep(self.slow)
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        time.sleep(self.slow_val)
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)
