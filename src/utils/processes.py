"""What the processes of a training tell each other besides gradients: small things, on a channel of their own.

The channel is gloo, on the CPUs: on a GPU a question and its answer would stop the work that is queued there.
"""

import torch
import torch.distributed as dist

_channel = None


def open_channel():
    """All processes call this together, before the functions below. With one process there is nothing to open."""
    global _channel
    if dist.is_initialized() and _channel is None:
        _channel = dist.new_group(backend="gloo")


def close_channel():
    global _channel
    _channel = None


def largest(*numbers):
    """For each of these numbers the largest that any process gave. All processes call this together."""
    if _channel is None:
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_channel)
    return tuple(tensor.tolist())


def smallest(*numbers):
    """The same for the smallest."""
    return tuple(-number for number in largest(*(-number for number in numbers)))


def gather(thing):
    """What each process gave, a list in the order of the ranks. All processes call this together."""
    if _channel is None:
        return [thing]
    things = [None] * dist.get_world_size()
    dist.all_gather_object(things, thing, group=_channel)
    return things
