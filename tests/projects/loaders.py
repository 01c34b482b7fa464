"""Loaders of all kinds, for the network of small.py."""

import os
import random

import numpy as np
import torch
from small import Lines, Net
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)


class Pairs(Sampler):
    """Batches of neighbours, in random order."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        pairs = [[number, number + 1] for number in range(0, self.length, 2)]
        random.shuffle(pairs)
        return iter(pairs)

    def __len__(self):
        return self.length // 2


class Endless(IterableDataset):
    """The second process has fewer samples."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        for number in range(200 - 20 * int(os.environ["RANK"])):
            yield self.dataset[number]


class Noise:
    def __init__(self):
        self.rng = np.random.default_rng(7)

    def __call__(self, x):
        return x + torch.from_numpy(self.rng.normal(size=x.shape)).float()


class Noisy:
    """Its transforms have generators of their own."""

    loudness = 0.1

    def __init__(self, dataset, transforms):
        self.dataset, self.transforms = dataset, transforms

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        x, y = self.dataset[index]
        for transform in self.transforms:
            x = x + self.loudness * transform(x)
        return x, y


def loudly(worker):
    """Data workers make louder noise."""
    get_worker_info().dataset.dataset.loudness = 0.5


class Own:
    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 25

    def __iter__(self):
        for batch in torch.randperm(250).split(10):
            yield self.dataset[batch]


class Stateful:
    """An iterable with a state of its own, such as torchdata's StatefulDataLoader: its order resumes where it was."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.generator = torch.Generator().manual_seed(int(os.environ["RANK"]))
        self.order = ()  # of this epoch: what is left

    def __len__(self):
        return 20

    def __iter__(self):
        if not self.order:
            self.order = torch.randperm(len(self.dataset), generator=self.generator)[:200].split(10)
        while self.order:
            batch, self.order = self.order[0], self.order[1:]
            yield self.dataset[batch]

    def state_dict(self):
        return {"order": self.order, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.order = state["order"]
        self.generator.set_state(state["generator"])


class Loaders(Lines):
    def __init__(self, kind: str, workers: int = 0):
        super().__init__()
        self.kind, self.workers = kind, workers

    def val_dataloader(self):
        return self.train_dataloader() if self.kind == "batches" else super().val_dataloader()

    def train_dataloader(self):
        data, options = self.parts[0], {"num_workers": self.workers}
        match self.kind:
            case "weighted":
                sampler = WeightedRandomSampler(torch.arange(1.0, 251.0), 200)
                return DataLoader(data, 10, sampler=sampler, **options)
            case "distributed":
                sampler = DistributedSampler(data, num_replicas=2, rank=int(os.environ["RANK"]), shuffle=True)
                return DataLoader(data, 10, sampler=sampler, drop_last=True, **options)
            case "several":  # of different lengths
                short = TensorDataset(*(tensor[:60] for tensor in data.tensors))
                return {
                    "long": DataLoader(data, 10, shuffle=True, **options),
                    "short": DataLoader(short, 10, **options),
                }
            case "batches":
                return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 10, True), **options)
            case "generators":
                noisy = Subset(Noisy(data, [Noise()]), range(200))
                return DataLoader(noisy, 10, shuffle=True, worker_init_fn=loudly, **options)
            case "batch_sampler":
                return DataLoader(data, batch_sampler=Pairs(250), **options)
            case "iterable":
                return DataLoader(Endless(data), 10, **options)
            case "stateful":
                return Stateful(data)
            case "own":
                return Own(data)


class Both(Net):
    """For several loaders: the samples of all of them are one batch."""

    def training_step(self, batches, index):
        return super().training_step([torch.cat(parts) for parts in zip(*batches.values(), strict=True)], index)
