"""Classes with arguments of all kinds, as people write them."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import lightning as L
import numpy as np
import torch
from small import Lines, Net
from torch import nn
from torch.nn import functional as F


class Classic(L.LightningDataModule):
    """As in Lightning's documentation."""

    def __init__(self, data_dir: str = "./", batch_size: int = 32, seed: int = 42, num_workers: int = 4):
        super().__init__()
        self.given = {"data_dir": data_dir, "batch_size": batch_size, "seed": seed, "num_workers": num_workers}


class Unusual(L.LightningDataModule):
    """A default that is an object, and numbers with a meaning of its own."""

    def __init__(self, data_dir: Path = Path("there"), batch_size: int = 0, num_workers: int = -1):
        super().__init__()
        self.given = str(data_dir), batch_size, num_workers


class Needing(L.LightningDataModule):
    classes = ["a", "b", "c"]
    shape = [1, 2, 3]

    def __init__(self, data_dir: str, batch_size: int):
        super().__init__()
        self.given = {"data_dir": data_dir, "batch_size": batch_size}


class Bare(L.LightningDataModule):
    pass


class Five(L.LightningModule):
    def __init__(self, num_classes: int = 5, shape: int = 3):
        super().__init__()
        self.given = num_classes, shape


class Asking(L.LightningModule):
    def __init__(self, shape: list[int], num_classes: int | None = None):
        super().__init__()
        self.given = num_classes, shape


class Untyped(L.LightningModule):
    def __init__(self, hidden, names=None):
        super().__init__()
        self.given = hidden, names


class Objects(L.LightningModule):
    """Defaults that a YAML file cannot hold."""

    def __init__(
        self,
        act: nn.Module = nn.ReLU(),  # noqa: B008
        where: torch.device | str | None = torch.device("cpu"),  # noqa: B008
        dtype: torch.dtype = torch.float64,
        function: Callable = F.relu,
        init=lambda x: x,
        norm: type[nn.Module] = nn.LayerNorm,
        weights=torch.ones(2),  # noqa: B008
        hidden: int = 3,
    ):
        super().__init__()
        self.given = [act, where, dtype, function, init, norm, weights]
        self.hidden = hidden


class Kind(Enum):
    BIG = "big"


class Holders(L.LightningModule):
    """Defaults that hold objects, or that YAML has no word for."""

    def __init__(
        self,
        scalar=np.float32(1),  # noqa: B008
        several={1, 2},  # noqa: B006
        number=1j,
        layers={"act": nn.ReLU(), "width": 3},  # noqa: B006, B008
        devices: list = [torch.device("cpu")],  # noqa: B006, B008
        kind: Kind | None = None,
        largest: float = float("inf"),
    ):
        super().__init__()
        self.given = [scalar, several, number, layers, devices, kind, largest]


class Own(L.LightningModule):
    def __init__(self, lr: float = 0.1):
        super().__init__()
        self.net, self.lr = nn.Linear(4, 1), lr

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)


@dataclass
class Sizes:
    dim: int = 3


class Saving(Net):
    """Everything that may be among hyperparameters."""

    def __init__(self, path: Path = Path("x"), kind: Kind = Kind.BIG, sizes: Sizes | None = None, **kwargs):
        super().__init__(**kwargs)
        array, scalar = np.arange(3), np.float32(0.5)
        self.save_hyperparameters({"path": path, "kind": kind, "sizes": sizes, "array": array, "scalar": scalar})
        assert self.hparams.path == path


class SavingData(Lines):
    def __init__(self, size: int = 10, options: dict[str, int] | None = None):
        super().__init__()
        self.save_hyperparameters()


class Unreadable(Net):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["mine"] = [1, {"net": nn.Linear(1, 1)}]
