"""FSDP: each process holds a part of every parameter, of its gradient and of what the optimizer knows about it.

A block of the network, a ResNet's or a transformer's, is put together when it is needed and given up after that.
"""

import sys

from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard

SMALLEST = 100_000  # parameters: to put together less than that is not worth a call


def attach_sharding(model, sync_batchnorm):
    """Have Lightning shard the model when the processes know each other, unless the model does so itself.

    Exits with one sentence when there are parameters that it would leave out.
    """
    if is_overridden("configure_model", model):
        return
    if any(True for _ in model.parameters(recurse=False)):
        sys.exit(f"--strategy fsdp: {type(model).__name__} has parameters of its own; put them into an nn.Module in it")

    def configure_model():
        if any(isinstance(module, FSDPModule) for module in model.modules()):
            return  # Lightning asks once more for the test
        if sync_batchnorm:  # Lightning sees to it with DDP only
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # The parts of a sequence are what torchvision and others make their blocks of.
        sequences = [module for module in model.modules() if isinstance(module, (nn.Sequential, nn.ModuleList))]
        blocks = [block for sequence in sequences for block in sequence if size(block) >= SMALLEST]
        whole = [child for child in model.children() if size(child)]
        for module in [*reversed(blocks), *whole]:  # the inner ones first
            fully_shard(module, mesh=model.device_mesh["data_parallel"])

    model.configure_model = configure_model


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())
