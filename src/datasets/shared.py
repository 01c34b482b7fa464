"""Tensors that the processes of a node hold once, together, instead of once each."""

import logging
import os

import numpy as np
import torch

from src.utils.processes import gather, open_channel

log = logging.getLogger(__name__)


def once_per_node(make, trainer):
    """The tensors that make() returns. One process of each node calls it, the others read from the same memory.

    The memory (memfd, Linux) has no name, so nothing is left behind, however the processes end. Each process sees its
    own changes only. All processes call this together.

    Args:
        make: returns a list of tensors on the CPU, the same in every process
        trainer: Lightning's; it knows which processes there are. None: this one alone
    """
    if trainer is None or trainer.world_size == 1 or not hasattr(os, "memfd_create"):
        return make()
    open_channel()
    file, place, failure = None, None, None
    if trainer.local_rank == 0:
        try:
            file, place = write(make())
        except BaseException as error:  # first the others, who are waiting, have to know
            failure = error
    places = dict(filter(None, gather(place and (trainer.node_rank, place))))
    tensors = None
    try:
        tensors = read(*places[trainer.node_rank])
    except KeyError:  # no place: it has failed
        raise failure or SystemExit(1) from None
    except OSError as error:  # processes in containers of their own do not see each other
        log.info(f"this process holds its own copy of the data: {error}")
    gather(None)  # all have opened the file
    if file is not None:
        os.close(file)
    return make() if tensors is None else tensors


def write(tensors):
    """Returns the file in memory, and where the others find it: path, [(offset, type, shape), ...]."""
    file, offset, layout = os.memfd_create("data set"), 0, []
    with open(file, "wb", closefd=False) as stream:
        for tensor in tensors:
            array = tensor.contiguous().numpy()
            layout.append((offset, array.dtype.str, array.shape))
            stream.write(array.data)
            offset += array.nbytes
    return file, (f"/proc/{os.getpid()}/fd/{file}", layout)


def read(path, layout):
    return [torch.from_numpy(np.memmap(path, kind, "c", offset, shape)) for offset, kind, shape in layout]
