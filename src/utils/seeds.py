"""Random numbers that depend on where in the training they are drawn, not on what was drawn before.

Each step, and each batch that is fetched, begins with a seed made from its place. So a training that was stopped goes
on with the numbers it would have drawn anyway, in each process and each worker, and nothing of them has to be saved.
"""

import hashlib
import random

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_flatten


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
    for value in model.state_dict().values():
        for part in content_of(value):
            digest.update(part)
    return digest.hexdigest()[:16]


def content_of(value):
    """A value of a state_dict as bytes, a list of them: of a tensor, or of what a module keeps as extra state."""
    if isinstance(value, torch.Tensor):
        return bytes_of(value)
    if isinstance(value, bytes):
        return [value]
    parts, structure = tree_flatten(value)
    if structure.is_leaf():
        return [repr(value).encode()]
    return [repr(structure).encode(), *(data for part in parts for data in content_of(part))]


def bytes_of(tensor):
    """The numbers of a tensor of any kind; if it has none that can be read, its text."""
    try:
        if isinstance(tensor, DTensor):  # with FSDP a process holds a part
            tensor = tensor.full_tensor()
        tensor = tensor.detach().cpu()
        if tensor.layout is torch.sparse_coo:
            tensor = tensor.coalesce()
            return [*bytes_of(tensor.indices()), *bytes_of(tensor.values())]
        if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
            return [data for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values())
                    for data in bytes_of(part)]  # fmt: skip
        if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
            return [data for part in (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
                    for data in bytes_of(part)]  # fmt: skip
        if tensor.is_quantized:
            return [*bytes_of(tensor.int_repr()), *bytes_of(tensor.dequantize())]
        tensor = tensor.resolve_conj().resolve_neg().contiguous()
        return [tensor.flatten().view(torch.uint8).numpy().tobytes()]
    except (RuntimeError, TypeError, NotImplementedError):  # a checksum must not end a training that was good
        return [repr(tensor).encode()]
