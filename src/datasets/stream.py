"""Data that come one after the other, shared by processes and workers, and resumed where a training was stopped.

class Lines(Stream):
    def __iter__(self):
        for line in self.share(open("lines.txt")):
            yield parse(line)

DataLoader(Lines(), batch_size=16, num_workers=2)
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from src.utils.seeds import seed_here

Item = TypeVar("Item")


@dataclass
class StreamPlace:
    """Where in the training a stream is read.

    Args:
        rank: of this process
        world_size: how many processes share the stream
        batch_size: samples in a batch of one process
        seed: of the training
        train: whether each process has to get the same number of samples
        epoch: how often the stream was read before
        start: batches of this epoch that are done
    """

    rank: int = 0
    world_size: int = 1
    batch_size: int = 1
    seed: int = 1
    train: bool = False
    epoch: int = 0
    start: int = 0


class Stream(IterableDataset):
    """An IterableDataset that is read by several processes and workers, and resumed exactly.

    Its __iter__ must pass all items through share() once, and then yield exactly one sample per item. If the global
    batch size is the same, a global batch contains the same samples for any number of processes.
    """

    place = StreamPlace()
    _passes = 0  # how often this worker has read the stream

    @property
    def epoch(self) -> int:
        """The number of this epoch, from 0: by it a stream may be shuffled."""
        return self.place.epoch + self._passes

    def share(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items of this process and this worker, in order.

        Before each item, the random generators are seeded from its position. Its random numbers are always the same.
        If the data allow random access, use share(range(n)): skipped numbers cost almost nothing.

        Args:
            items: the whole stream of this epoch, the same in all processes
        """
        place, info = self.place, get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch = self.epoch
        start = 0 if self._passes else place.start
        if info:  # a worker that lives longer than an epoch knows only where it began
            self._passes += 1
        # The loader takes a batch from each worker in turn, and begins with the first.
        worker = (worker + start) % workers
        row, rows_per_batch = [], place.batch_size  # a row has one item for each process
        for number, item in enumerate(items):
            row.append(item)
            if len(row) < place.world_size:
                continue
            batch = number // place.world_size // rows_per_batch
            mine = row[place.rank]
            row = []
            if batch >= start and batch % workers == worker:
                seed_here(place.seed, "stream", epoch, number // place.world_size * place.world_size + place.rank)
                yield mine
        if not place.train and place.rank < len(row):  # in evaluation nothing is left out
            batch = (number + 1 - len(row)) // place.world_size // rows_per_batch
            if batch >= start and batch % workers == worker:
                seed_here(place.seed, "stream", epoch, number + 1 - len(row) + place.rank)
                yield row[place.rank]


class StreamLoader(DataLoader):
    """A DataLoader of a Stream: it tells the stream which epoch is read."""

    def __init__(self, dataset, place, **options):
        super().__init__(dataset, **options)
        self.next_place = place

    def __iter__(self):
        self.dataset.place = self.next_place
        self.next_place = StreamPlace(**vars(self.next_place) | {"epoch": self.next_place.epoch + 1, "start": 0})
        return super().__iter__()
