"""Which images are in which batch, and how a batch is fetched: the same however often the training was stopped."""

import atexit
import contextlib
import hmac  # noqa: F401 (see below)
import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import multiprocessing.resource_sharer
import os
import signal
import sys
import traceback

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, default_convert

from src.utils.seeds import seed_here

# hmac and the two parts of multiprocessing are imported here, and not when torch first needs them, perhaps in the
# thread that pins memory. A data worker that is forked at that moment would wait forever for the import to end.


class Batches(Sampler):
    """For each batch of an epoch: this process's share of its indices.

    Everything follows from seed and epoch, so all processes agree without a word, and a training that goes on in the
    middle of an epoch begins with batch number `start`.

    A batch of all processes together holds the same images whatever their number is: of its images, process `rank`
    takes number rank, rank + world_size, ... In training each share of a batch has the same size, because DDP
    averages the gradients of the shares: of the last batch, at most world_size - 1 images are left out, in every epoch
    others. In evaluation each image counts once and none is left out.
    """

    def __init__(self, length, batch_size, rank=0, world_size=1, seed=1, train=False, shuffle=False, epoch=0, start=0):
        self.length = length
        self.batch_size = batch_size  # of all processes together
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.train = train
        self.shuffle = shuffle
        self.epoch = epoch
        self.start = {epoch: start}  # in all other epochs: 0

    def set_epoch(self, epoch):  # Lightning calls it
        self.epoch = epoch

    def bounds(self, number):
        """The first image of a batch, and the first that is no more in it, as places in the order of the epoch."""
        first, end = number * self.batch_size, min((number + 1) * self.batch_size, self.length)
        if not self.train:
            # Fewer images in the last batch than processes: those that lack come from the batch before it.
            rest = self.length % self.batch_size
            lack = self.world_size - rest if 0 < rest < self.world_size else 0
            if lack and self.batch_size - lack >= self.world_size and self.length > self.batch_size:
                last = self.length // self.batch_size
                first -= lack * (number == last)
                end -= lack * (number == last - 1)
        return first, end

    def share(self, number):
        """How many images of a batch are this process's."""
        first, end = self.bounds(number)
        size = end - first
        return size // self.world_size if self.train else len(range(self.rank, size, self.world_size))

    def __len__(self):
        """Batches in a whole epoch."""
        batches = -(-self.length // self.batch_size)
        # There may be fewer images in the last batch than processes.
        return batches if batches and self.share(batches - 1) else max(0, batches - 1)

    def order(self):
        """The images of this epoch, int64 (length)."""
        if self.shuffle:
            return torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        return torch.arange(self.length)

    def __iter__(self):
        """Yields (place, indices): where in the training this is, for the random numbers; int64 (share).

        The indices are a NumPy array: tensors are handed to a data worker by a thread that shares their memory.
        """
        order = self.order().numpy()
        for number in range(self.start.get(self.epoch, 0), len(self)):
            first, end = self.bounds(number)
            place = (self.seed, "fetch", self.epoch, number, self.rank)
            yield place, order[first:end][self.rank :: self.world_size][: self.share(number)]
        self.start.pop(self.epoch, None)  # next to a longer loader an epoch of this one comes more than once


class Fetched(Dataset):
    """A data set whose items are whole batches. What is drawn at random to fetch one depends on the batch alone."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, batch):
        place, indices = batch
        indices = torch.from_numpy(indices)
        seed_here(*place)
        if hasattr(self.dataset, "__getitems__"):  # all of them in one call
            fetched = self.dataset.__getitems__(indices)
            # torch's own, such as Subset and random_split, return a list of samples: they are still to be put together.
            return default_collate(fetched) if isinstance(fetched, list) else default_convert(fetched)
        return default_collate([self.dataset[index] for index in indices.tolist()])


def start_worker(worker):
    """What a data worker does first.

    Slurm sends its signals to every process of a job. Only the training processes answer them.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end_worker)


def end_worker(error, batch):
    """A batch cannot be handed over. Python would only say so, and the training would wait for the batch forever."""
    traceback.print_exception(error)
    sys.stderr.flush()
    if "shared memory" in str(error):
        signal.raise_signal(signal.SIGBUS)  # the same as where Linux finds out when the memory is written to
    os._exit(1)


@atexit.register
def kill_workers():
    """End the data workers. Python would ask them with TERM, which they ignore, and wait for them forever."""
    with contextlib.suppress(ValueError):  # only the main thread may; torch's handler makes an error of a killed worker
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


def make_loader(dataset, batches, num_workers, pin_memory):
    """A DataLoader over the batches that the sampler names. pin_memory: so that a GPU can copy them while it works."""
    return DataLoader(
        Fetched(dataset),
        sampler=batches,
        batch_size=None,  # an item is a batch already
        num_workers=num_workers,
        worker_init_fn=start_worker,
        persistent_workers=num_workers > 0,  # started once, not in every epoch
        pin_memory=pin_memory,
    )
