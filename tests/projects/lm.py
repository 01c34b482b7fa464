"""A small language model of bytes."""

import time
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


def write_atomically(path: Path, content: bytes):
    temporary = path.with_name(f"{path.name}.{time.time_ns()}")
    temporary.write_bytes(content)
    temporary.replace(path)


class Windows(Dataset):
    def __init__(self, tokens: np.ndarray, block: int = 32, stride: int = 160):
        self.tokens, self.block, self.stride = tokens, block, stride

    def __len__(self):
        return (len(self.tokens) - self.block - 1) // self.stride + 1

    def __getitem__(self, i):
        window = self.tokens[i * self.stride :][: self.block + 1].astype(np.int64)
        return {"x": torch.from_numpy(window[:-1]), "y": torch.from_numpy(window[1:])}


class TextData(L.LightningDataModule):
    def __init__(self, text: Path, batch_size: int = 8, block: int = 32, num_workers: int = 0):
        super().__init__()
        self.text, self.bin = Path(text), Path(text).with_suffix(".bin")
        self.block, self.options = block, {"batch_size": batch_size, "num_workers": num_workers}

    def prepare_data(self):
        if not self.text.exists():
            lines = [f"{a} times {b} is {a * b}.\n" for a in range(40) for b in range(50)]
            write_atomically(self.text, "".join(lines).encode())
        if not self.bin.exists():
            write_atomically(self.bin, np.frombuffer(self.text.read_bytes(), np.uint8).astype(np.uint16).tobytes())

    def setup(self, stage=None):
        tokens = np.memmap(self.bin, np.uint16, mode="r")
        self.train, self.val = (Windows(part, self.block) for part in np.split(tokens, [9 * len(tokens) // 10]))

    def train_dataloader(self):
        return DataLoader(self.train, shuffle=True, drop_last=True, **self.options)

    def val_dataloader(self):
        return DataLoader(self.val, **self.options)

    def predict_dataloader(self):
        return self.val_dataloader()


@dataclass
class Sizes:
    dim: int = 48
    heads: int = 2
    layers: int = 2
    dropouts: list[float] = field(default_factory=lambda: [0.1, 0.1])  # in the blocks, after the embedding


class Norm(Enum):
    PRE = "pre"
    POST = "post"


class ByteLM(L.LightningModule):
    def __init__(
        self,
        sizes: Sizes = Sizes(),  # noqa: B008
        norm: Norm = Norm.PRE,
        lr: float = 3e-3,
        betas: np.ndarray | None = None,
        notes: Path = Path("notes.md"),
        slow: float = 0.0,
        slow_val: float = 0.0,
    ):
        super().__init__()
        betas, lr = np.array([0.9, 0.95] if betas is None else betas), np.float64(lr)
        self.save_hyperparameters()
        self.slow, self.slow_val = slow, slow_val
        dim, heads, (p, p_embedding) = sizes.dim, sizes.heads, sizes.dropouts
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, p, batch_first=True, norm_first=norm is Norm.PRE)
        self.blocks = nn.TransformerEncoder(layer, sizes.layers, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.token, self.place = nn.Embedding(256, dim), nn.Parameter(torch.zeros(512, dim))
        self.drop, self.out = nn.Dropout(p_embedding), nn.Linear(dim, 256, bias=False)
        self.token.weight = self.out.weight

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.out(self.blocks(self.drop(self.token(x) + self.place[: x.shape[1]]), mask, is_causal=True))

    def training_step(self, batch, batch_idx):
        time.sleep(self.slow)
        loss = nn.functional.cross_entropy(self(batch["x"]).flatten(0, 1), batch["y"].flatten())
        self.log("train/loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        time.sleep(self.slow_val)
        loss = nn.functional.cross_entropy(self(batch["x"]).flatten(0, 1), batch["y"].flatten())
        self.log_dict({"val/loss": loss, "val/ppl": loss.exp()})

    def predict_step(self, batch, batch_idx):
        return {"tokens": self(batch["x"]).argmax(-1), "lengths": [len(x) for x in batch["x"]]}

    def configure_optimizers(self):
        matrices = [p for p in self.parameters() if p.dim() > 1]
        vectors = [p for p in self.parameters() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.hparams.lr, betas=tuple(self.hparams.betas))
        warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}
