"""What `run.py predict` writes: predictions.npz, one array for all test images."""

import logging
import os

import numpy as np
import torch

from src.datasets.batches import Batches
from src.utils.processes import close_channel, gather, open_channel

log = logging.getLogger(__name__)


def write_predictions(trainer, data, outputs, path):
    """What the model predicts for all test images, in their order, whatever process predicted which.

    Args:
        outputs: of each batch what predict_step returned: probabilities (N, num_classes), or tensors (N, ...) by name;
            None in a process that had no batch
    """
    named = [output if isinstance(output, dict) else {"probabilities": output} for output in outputs or []]
    names = named[0] if named else {}
    share = {name: torch.cat([output[name] for output in named]).float().cpu().numpy() for name in names}
    open_channel()
    shares = gather(share)
    close_channel()
    if not trainer.is_global_zero:
        return
    length, batch_size, world_size = len(data.test_set), data.batch_size, trainer.world_size
    arrays = {}
    for rank, share in enumerate(shares):
        if not share:
            continue
        indices = torch.cat([part for _, part in Batches(length, batch_size, rank, world_size)]).numpy()
        for name, values in share.items():
            if name not in arrays:
                arrays[name] = np.zeros((length, *values.shape[1:]), values.dtype)
            arrays[name][indices] = values
    if "probabilities" in arrays:
        arrays |= {"predicted": arrays["probabilities"].argmax(1), "classes": np.array(data.classes)}
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, **arrays)
    os.replace(partial, path)
    log.info(f"wrote {path}: {', '.join(f'{name} {array.shape}' for name, array in arrays.items())}")
