"""Random numbers that depend on where in the training they are drawn, not on what was drawn before.

Each step, and each batch that is fetched, begins with a seed made from its place. So a training that was stopped goes
on with the numbers it would have drawn anyway, in each process and each worker, and nothing of them has to be saved.
"""

import hashlib
import random

import numpy as np
import torch
from torch.distributed.tensor import DTensor


def seed_for(*place):
    """A seed of 63 bits, such as seed_for(seed, "step", epoch, batch, rank). Other places have other seeds."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_here(*place):
    """Seed the random numbers of Python, NumPy and torch in this process."""
    seed = seed_for(*place)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # it takes 32 bits
    torch.default_generator.manual_seed(seed)  # torch.manual_seed() takes 80 us: it looks for devices of all kinds
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed(seed)


def weights_checksum(model):
    """A few letters that are the same only if all weights are, to the last bit. All processes call this together."""
    digest = hashlib.sha256()
    for values in model.state_dict().values():
        if isinstance(values, DTensor):  # with FSDP a process holds a part
            values = values.full_tensor()
        if isinstance(values, torch.Tensor):  # a module may keep more than that, as extra state
            values = values.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        digest.update(values if isinstance(values, bytes) else repr(values).encode())
    return digest.hexdigest()[:16]
