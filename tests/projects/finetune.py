"""Fine-tuning of a pretrained backbone whose features are compared with those of the classes' names."""

import time

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

INPUTS, CLASSES, DIM = 16, 3, 12


def draw_samples(n: int, seed: int):
    """Return n inputs with their classes, of which the first is the most frequent."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(torch.tensor([0.7, 0.2, 0.1]), n, replacement=True, generator=generator)
    centres = torch.randn(CLASSES, INPUTS, generator=torch.Generator().manual_seed(99))
    return TensorDataset(centres[labels] + 4 * torch.randn(n, INPUTS, generator=generator), labels)


class ImbalancedData(L.LightningDataModule):
    def __init__(self, batch_size: int = 20, num_workers: int = 0):
        super().__init__()
        self.batch_size, self.num_workers = batch_size, num_workers

    def setup(self, stage: str):
        self.train = draw_samples(400, seed=0)
        self.val, self.test = draw_samples(101, seed=1), draw_samples(101, seed=2)

    def train_dataloader(self):
        labels = self.train.tensors[1]
        weights = 1 / labels.bincount()[labels]
        sampler = WeightedRandomSampler(weights, num_samples=len(labels))
        return DataLoader(self.train, batch_size=self.batch_size, sampler=sampler, num_workers=self.num_workers)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=self.batch_size, num_workers=self.num_workers)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=self.batch_size, num_workers=self.num_workers)


def load_pretrained(module: nn.Module, seed: int):
    """Give a module its pretrained weights, and freeze them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / p.shape[-1] ** 0.5)
    return module.requires_grad_(False)


class FineTuner(L.LightningModule):
    def __init__(self, width: int = 128, lr: float = 0.03, slow: float = 0.0, slow_val: float = 0.0):
        super().__init__()
        self.strict_loading = False  # the frozen encoder of the names is not in the checkpoints
        backbone = nn.Sequential(nn.Linear(INPUTS, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.backbone = load_pretrained(backbone, seed=5)
        self.frozen = load_pretrained(nn.Sequential(nn.Embedding(CLASSES, DIM), nn.Linear(DIM, DIM)), seed=6)
        self.head = nn.Linear(width, DIM)
        self.lr, self.slow, self.slow_val = lr, slow, slow_val
        self.thresholds = np.full(CLASSES, 1 / CLASSES)

    def forward(self, x):
        names = self.frozen(torch.arange(CLASSES, device=self.device))
        return self.head(self.backbone(x)) @ names.T

    def on_train_epoch_start(self):
        if self.current_epoch == 1:
            self.backbone.requires_grad_(True)

    def training_step(self, batch, batch_idx):
        time.sleep(self.slow)
        x, labels = batch
        loss = cross_entropy(self(x), labels)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def on_validation_epoch_start(self):
        self.scores = []

    def validation_step(self, batch, batch_idx):
        time.sleep(self.slow_val)
        x, labels = batch
        logits = self(x)
        self.scores.append(logits.softmax(1))
        self.log("val_loss", cross_entropy(logits, labels))

    def on_validation_epoch_end(self):
        self.thresholds = torch.cat(self.scores).double().mean(0).cpu().numpy()

    def test_step(self, batch, batch_idx):
        x, labels = batch
        thresholds = torch.tensor(self.thresholds, dtype=torch.float32, device=self.device)
        found = (self(x).softmax(1) - thresholds).argmax(1)
        self.log("test_acc", (found == labels).float().mean())

    def on_save_checkpoint(self, checkpoint):
        for name in [name for name in checkpoint["state_dict"] if name.startswith("frozen.")]:
            del checkpoint["state_dict"][name]
        checkpoint["thresholds"] = self.thresholds

    def on_load_checkpoint(self, checkpoint):
        self.thresholds = checkpoint["thresholds"]

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5, threshold=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "train_loss_epoch"}}
