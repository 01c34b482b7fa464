"""Which waveform is it? Synthetic tones of different lengths."""

import random
import time

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from torchmetrics import Accuracy

HOP = 64  # samples from one frame of the spectrum to the next


class Tones(Dataset):
    def __init__(self, n: int, seed: int, shortest: int, augment: bool = False):
        self.n, self.seed, self.shortest, self.augment = n, seed, shortest, augment

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        rng = np.random.default_rng([self.seed, i])
        label = int(rng.integers(4))
        phase = np.arange(rng.integers(self.shortest, 1201)) * rng.uniform(0.02, 0.12) % 1
        noise = rng.normal(size=len(phase))
        wave = [np.sin(2 * np.pi * phase), np.sign(phase - 0.5), 2 * phase - 1, noise][label] + 0.1 * noise
        wave = torch.from_numpy(wave.astype(np.float32))
        if self.augment:
            wave = random.uniform(0.5, 1.5) * wave.roll(np.random.randint(len(wave)))
            wave = wave + 0.2 * torch.randn(len(wave))
        return wave, label


def pad(batch):
    """Make one tensor of waves of different lengths."""
    waves, labels = zip(*batch, strict=True)
    return pad_sequence(waves, batch_first=True), torch.tensor([len(w) for w in waves]), torch.tensor(labels)


class ToneData(L.LightningDataModule):
    def __init__(self, batch_size: int = 16, eval_batch_size: int = 25, num_workers: int = 2, shortest: int = 400):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage=None):
        self.train_set = Tones(403, 0, self.hparams.shortest, augment=True)
        self.val_set = Tones(101, 1, self.hparams.shortest)
        self.test_set = Tones(101, 2, self.hparams.shortest)

    def loader(self, dataset, batch_size, shuffle=False):
        n = self.hparams.num_workers
        workers = {"num_workers": n, "persistent_workers": n > 0}
        return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, collate_fn=pad, **workers)

    def train_dataloader(self):
        return self.loader(self.train_set, self.hparams.batch_size, shuffle=True)

    def val_dataloader(self):
        return self.loader(self.val_set, self.hparams.eval_batch_size)

    def test_dataloader(self):
        return self.loader(self.test_set, self.hparams.eval_batch_size)

    def predict_dataloader(self):
        return self.test_dataloader()


class ToneNet(L.LightningModule):
    def __init__(self, dim: int = 16, dropout: float = 0.1, lr: float = 5e-3, slow: float = 0.0, slow_val: float = 0.0):
        super().__init__()
        self.save_hyperparameters()
        self.slow, self.slow_val = slow, slow_val
        self.register_buffer("window", torch.hann_window(2 * HOP))
        self.net = nn.Sequential(
            nn.GroupNorm(1, HOP + 1),
            nn.Conv1d(HOP + 1, self.hparams.dim, 3, padding=1),
            nn.GELU(),
            nn.Dropout(self.hparams.dropout),
            nn.Conv1d(self.hparams.dim, self.hparams.dim, 3, padding=1),
            nn.GELU(),
        )
        self.head = nn.Linear(self.hparams.dim, 4)
        self.train_acc, self.val_acc, self.test_acc = (Accuracy("multiclass", num_classes=4) for _ in range(3))

    def forward(self, waves, lengths):
        spectrum = torch.stft(waves, 2 * HOP, HOP, window=self.window, return_complex=True).abs().log1p()
        features, frames = self.net(spectrum), lengths[:, None] // HOP + 1
        mask = torch.arange(features.shape[-1], device=self.device) < frames
        return self.head((features * mask[:, None]).sum(-1) / frames)

    def step(self, batch, stage, accuracy):
        waves, lengths, labels = batch
        logits = self(waves, lengths)
        loss = F.cross_entropy(logits, labels)
        accuracy(logits, labels)
        self.log(f"{stage}_loss", loss)
        self.log(f"{stage}_acc", accuracy, on_step=False, on_epoch=True)
        return loss

    def training_step(self, batch, batch_idx):
        time.sleep(self.slow)
        return self.step(batch, "train", self.train_acc)

    def validation_step(self, batch, batch_idx):
        time.sleep(self.slow_val)
        self.step(batch, "val", self.val_acc)

    def test_step(self, batch, batch_idx):
        self.step(batch, "test", self.test_acc)

    def predict_step(self, batch, batch_idx):
        return self(*batch[:2]).softmax(-1)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
