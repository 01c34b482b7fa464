"""Rebuild the DataLoaders of the user.

A rebuilt loader shares the data between the processes, and evaluates each sample once. A training that was stopped
resumes with the next batch and its random numbers.

A loader keeps its data set, its collate function, its workers and its batch size, which is that of one process. Its
sampler draws the order, from a seed made of the run's seed and the epoch. If a loader cannot be taken apart, it is used
as it is, and the log says so.
"""

import copy
import logging
import random
import sys
import warnings
from types import ModuleType

import numpy as np
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from src.datasets.batches import Batches, Fetched, start_worker
from src.datasets.stream import Stream, StreamLoader, StreamPlace
from src.utils.processes import gather, largest, smallest
from src.utils.seeds import seed_for, seed_here

log = logging.getLogger(__name__)
log_once = rank_zero_only(log.info)

HOOKS = {
    "train": "train_dataloader",
    "val": "val_dataloader",
    "test": "test_dataloader",
    "predict": "predict_dataloader",
}
END = object()  # in place of a batch: there is none left
SAMPLERS = (SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


class SampledBatches(Batches):
    """Batches in the order that a sampler of torch's draws: the same order in every process."""

    def __init__(self, sampler, batch_size, drop_last, seed, **place):
        """
        Args:
            sampler: one of SAMPLERS
            batch_size: of all processes together
            drop_last: whether a batch that is not full is left out
            seed: of the run; a generator that the sampler was given has one of its own
        """
        if isinstance(sampler, DistributedSampler):  # here the order is divided, not there
            kind = RandomSampler if sampler.shuffle else SequentialSampler
            drop_last, sampler = drop_last or sampler.drop_last, kind(sampler.dataset)
        generator = getattr(sampler, "generator", None)
        length = len(sampler)
        super().__init__(
            length - length % batch_size if drop_last else length,
            batch_size,
            seed=seed if generator is None else generator.initial_seed(),
            **place,
        )
        self.sampler = sampler

    def order(self):
        """Indices into the data set, int64 (length)."""
        if hasattr(self.sampler, "generator"):
            self.sampler.generator = torch.Generator().manual_seed(seed_for(self.seed, "order", self.epoch))
        return torch.tensor(list(self.sampler), dtype=torch.int64)


class FetchedSamples(Fetched):
    """A data set whose items are whole batches, fetched as a DataLoader does it: sample by sample, then collated.

    The random numbers of a sample depend on its position in the epoch, not on the process or worker that fetches it.
    """

    def __init__(self, dataset, collate, batched, world_size):
        super().__init__(dataset)
        self.collate = collate
        self.world_size = world_size
        self.batched = batched  # False: an item of the data set is a batch already
        self.generators = list(generators_in([dataset, collate]))

    def __getitem__(self, batch):
        (*place, number, rank), indices = batch
        indices = indices.tolist()
        self.seed(*place, number, "batch", rank)
        if self.batched and getattr(self.dataset, "__getitems__", None):  # all of them in one call
            return self.collate(self.dataset.__getitems__(indices))
        samples = []
        for count, index in enumerate(indices):
            self.seed(*place, number, "sample", rank + count * self.world_size)
            samples.append(self.dataset[index])
        self.seed(*place, number, "collate", rank)
        return self.collate(samples if self.batched else samples[0])

    def seed(self, *place):
        """Seed the global generators, and those that the data set holds."""
        seed_here(*place)
        for generator in self.generators:
            seed_generator(generator, seed_for(*place, "own"))


def generators_in(thing, depth=8, seen=None):
    """The generators of random numbers that an object holds, its transforms and inner data sets included."""
    seen = {} if seen is None else seen
    if id(thing) in seen or not depth:
        return
    seen[id(thing)] = thing
    parts = []
    if isinstance(thing, (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)):
        yield thing
    elif isinstance(thing, (list, tuple, dict)):
        parts = thing.values() if isinstance(thing, dict) else thing
    elif hasattr(thing, "__dict__") and not isinstance(thing, (type, ModuleType)):
        parts = vars(thing).values()
    if len(parts) < 100:  # not in lists of samples
        for part in list(parts):
            yield from generators_in(part, depth - 1, seen)


def seed_generator(generator, seed):
    if isinstance(generator, torch.Generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = type(generator.bit_generator)(seed).state
    else:
        generator.seed(seed % 2**32)


class Start:
    """What a worker does first: our part, then the user's."""

    def __init__(self, users):
        self.users = users

    def __call__(self, worker):
        start_worker(worker)
        if self.users is None:
            return
        info = get_worker_info()
        fetched = info.dataset
        if isinstance(fetched, FetchedSamples):
            object.__setattr__(info, "dataset", fetched.dataset)  # there the user's function expects it
        self.users(worker)
        if isinstance(fetched, FetchedSamples):
            fetched.generators = list(generators_in([fetched.dataset, fetched.collate]))


def share_loaders(source, seed, shuffle=True):
    """Have the loaders that a data module (or a module) makes shared by all processes, and resumed exactly.

    Args:
        source: a LightningDataModule, or a LightningModule with loaders of its own
        seed: of the run
        shuffle: False: training samples in their order, which is the same in every epoch
    """
    calling = []  # the hook that is called; it may call another one
    for stage, hook in HOOKS.items():
        if is_overridden(hook, source):
            setattr(source, hook, shared(source, getattr(source, hook), calling, stage, seed, shuffle))


def shared(source, make, calling, stage, seed, shuffle):
    def loaders():
        if calling:
            return make()
        calling.append(stage)
        try:
            made = make()
        finally:
            calling.clear()
        return rebuilt(made, source.trainer, stage, seed, shuffle)

    return loaders


def rebuilt(loaders, trainer, stage, seed, shuffle):
    """The loaders of one stage: one, or several in lists and dictionaries, or Lightning's CombinedLoader."""
    mode = "max_size_cycle" if stage == "train" else "sequential"
    if isinstance(loaders, CombinedLoader):
        combined, mode = loaders, loaders._mode
    elif isinstance(loaders, (list, tuple, dict)):
        combined = CombinedLoader(loaders, mode)
    else:
        return rebuild(loaders, trainer, stage, seed, shuffle)
    combined.flattened = [rebuild(loader, trainer, stage, seed, shuffle, mode) for loader in combined.flattened]
    return combined


def rebuild(loader, trainer, stage, seed, shuffle, mode="min_size"):
    """The same loader, shared and exact; or itself, if that cannot be done.

    Args:
        mode: the CombinedLoader mode: how it continues after a shorter loader has ended
    """
    if isinstance(getattr(loader, "dataset", None), Fetched):  # DataModule has made it
        return loader
    progress = trainer.fit_loop
    train = stage == "train"
    # Where the training stands: not at its beginning, if it was stopped and resumes here.
    done = progress.epoch_loop.batch_progress.current.completed if train and progress.restarting else 0
    place = {
        "rank": trainer.global_rank,
        "world_size": trainer.world_size,
        "train": train,
        "epoch": progress.epoch_progress.current.processed if trainer.state.fn == "fit" else 0,
    }
    if done:  # it does begin where the training stands, though not in the way Lightning looks for
        warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")
    if reason := why_not(loader, mode):
        over = progress.restarting and progress.epoch_loop.batch_progress.is_last_batch
        say(loader, reason, stage, done and not over, trainer.world_size, mode)
        if not train:
            return loader
        kind = Remembered if stateful(loader) and mode != "max_size_cycle" else AsItIs
        return kind(loader, trainer, seed, done, over)
    options = {
        "num_workers": loader.num_workers,
        "collate_fn": None,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": Start(loader.worker_init_fn),
        "multiprocessing_context": loader.multiprocessing_context,
        "prefetch_factor": loader.prefetch_factor,
        "persistent_workers": loader.persistent_workers,
    }
    sampler, batch_size, drop_last = parts_of(loader)
    size = batch_size or 1
    if train and trainer.world_size > 1:
        log_once(f"batch size: {size} per process, {size * trainer.world_size} in all")
    if isinstance(loader.dataset, Stream):
        options |= {"collate_fn": loader.collate_fn, "batch_size": loader.batch_size, "drop_last": loader.drop_last}
        return StreamLoader(loader.dataset, StreamPlace(batch_size=size, seed=seed, start=done, **place), **options)
    sampler = SequentialSampler(loader.dataset) if train and not shuffle else sampler
    batches = SampledBatches(sampler, size * trainer.world_size, drop_last, seed, **place)
    if batches.length < trainer.world_size and (train or batches.length):  # an evaluation without samples is skipped
        sys.exit(f"{len(sampler)} samples for {stage} are too few for {trainer.world_size} batches of {size}")
    if done:
        length = len(batches)
        batches.start = {place["epoch"]: done % length if mode == "max_size_cycle" else min(done, length)}
    dataset = FetchedSamples(loader.dataset, loader.collate_fn, batch_size is not None, trainer.world_size)
    return DataLoader(dataset, sampler=batches, batch_size=None, **options)


class AsItIs:
    """A loader that cannot be taken apart. All processes end an epoch together: when the first has no more batches."""

    def __init__(self, loader, trainer, seed, done, over):
        """
        Args:
            loader: that of this process
            trainer: Lightning's
            seed: of the run
            done: batches of this epoch that were trained before
            over: whether these were all batches of the epoch
        """
        self.loader = loader
        self.trainer = trainer
        self.seed = seed
        self.done = done
        self.over = over
        self.warned = False
        try:
            length = len(loader)
        except TypeError:
            length = -1
        [longest], [shortest] = largest(length), smallest(length)
        self.length = None if shortest < 0 else shortest
        self.warn(longest != shortest)

    def __len__(self):
        if self.length is None:
            raise TypeError(f"{type(self.loader).__name__} has no length")
        return self.length

    def __getattr__(self, name):  # its sampler, to which Lightning tells the epoch, and the like
        return getattr(self.loader, name)

    def __iter__(self):
        if self.over:  # the training was stopped in the validation after the epoch
            self.over = False
            return iter(())
        count, self.done = self.done, 0
        return self.batches(count)

    def batches(self, count):
        place = self.seed, "loader", self.trainer.fit_loop.epoch_progress.current.processed, self.trainer.global_rank
        seed_here(*place)
        iterator = iter(self.loader)
        upcoming = self.fetch(iterator, count, place)
        while upcoming is not END:
            batch, count = upcoming, count + 1
            # Before the last batch is handed out, the loader has to know that it has ended.
            upcoming = self.fetch(iterator, count, place)
            yield batch

    def fetch(self, iterator, count, place):
        """The next batch, or END if any process has none."""
        self.remember(count)
        seed_here(*place, count)
        batch = next(iterator, END)
        [ended] = largest(int(batch is END))
        if ended:
            self.remember(count)
            self.warn(batch is not END)
            return END
        return batch

    def remember(self, count):
        pass

    def warn(self, uneven):
        if uneven and not self.warned:
            self.warned = True
            log.warning("the processes have different numbers of batches: an epoch ends with the shortest")


class Remembered(AsItIs):
    """A loader that has its own state.

    Its state is kept before each batch, because later batches are fetched before a checkpoint is saved. The key is
    the number of completed batches.
    """

    def __iter__(self):
        self.states = {}
        return super().__iter__()

    def remember(self, count):
        self.states = {number: state for number, state in self.states.items() if number > count - 4}
        self.states[count] = copy.deepcopy(self.loader.state_dict())

    def state_dict(self):
        """All processes call this together."""
        done = self.trainer.fit_loop.epoch_loop.batch_progress.current.completed
        return {"of_processes": gather(self.states[done] if done in self.states else self.loader.state_dict())}

    def load_state_dict(self, state):
        states = state["of_processes"]
        if len(states) != self.trainer.world_size:
            name = type(self.loader).__name__
            sys.exit(f"the state of {name} is from {len(states)} processes: resume with {len(states)} processes")
        self.loader.load_state_dict(states[self.trainer.global_rank])


@rank_zero_only
def say(loader, reason, stage, done, world_size, mode):
    """In one sentence, that a loader is used as it is."""
    consequences = [f"each of the {world_size} processes reads all its batches"] if world_size > 1 else []
    if stage == "train" and stateful(loader) and mode != "max_size_cycle":
        consequences.append("its state_dict() determines whether a resume is exact")
    elif done:
        consequences.append("it repeats batches of this epoch, so this resume is not exact")
    elif stage == "train":
        consequences.append("a resume in the middle of an epoch is not exact")
    if consequences:
        log.warning(f"the {stage} loader is used as it is, because {reason}: {', and '.join(consequences)}")


def parts_of(loader):
    """Of a DataLoader: its sampler, batch size (None: an item of the data set is a batch already) and drop_last."""
    inner = loader.batch_sampler
    return (loader.sampler, None, False) if inner is None else (inner.sampler, inner.batch_size, inner.drop_last)


def stateful(loader):
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


def why_not(loader, mode):
    """Why a loader cannot be taken apart; None if it can."""
    name = type(loader).__name__
    again = ", and restarts while longer loaders continue" if mode == "max_size_cycle" else ""
    if stateful(loader):
        return f"it has a state of its own{again}"
    if not isinstance(loader, DataLoader):
        return f"{name} is not a DataLoader of torch's"
    if type(loader).__iter__ is not DataLoader.__iter__:
        return f"{name} has an __iter__ of its own"
    if isinstance(loader.dataset, Stream):
        return f"it is a Stream{again}" if again else None
    if isinstance(loader.dataset, IterableDataset):
        return f"{type(loader.dataset).__name__} is an IterableDataset, not a src.datasets.stream.Stream"
    if not isinstance(loader.dataset, Dataset) and not hasattr(loader.dataset, "__getitem__"):
        return f"{type(loader.dataset).__name__} has no __getitem__"
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        return f"{type(loader.batch_sampler).__name__} is a batch sampler of your own"
    sampler = type(parts_of(loader)[0])
    if sampler not in SAMPLERS:
        return f"{sampler.__name__} is a sampler of your own"
    return None
