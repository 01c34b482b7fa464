"""src/train.py with a process group on a single GPU, which it would refuse or not need.

python tests/gpu/one_gpu.py nccl src/train.py fit ...                            one process, DDP over NCCL
torchrun --nproc_per_node 2 tests/gpu/one_gpu.py gloo src/train.py fit ...       two processes that share the GPU

NCCL refuses two processes on one GPU. With gloo each of them appears to be the only process of its node.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from src.launch.submit import free_port

BACKEND, *ARGUMENTS = sys.argv[1:]
if "RANK" in os.environ:
    os.environ |= {"GROUP_RANK": os.environ["RANK"], "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
else:
    os.environ["MASTER_PORT"] = str(free_port())

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy  # noqa: E402

from src import train  # noqa: E402
from src.models.sharding import attach_sharding  # noqa: E402


def make_strategy(settings, world_size):
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(world_size, tensor_parallel_size=1, save_distributed_checkpoint=False)
    return DDPStrategy(process_group_backend=BACKEND)


def attach_all(model, *more):
    """The network is sharded by one process, too."""
    attach_optimizer(model, *more)
    if "fsdp" in ARGUMENTS:
        attach_sharding(model, False)


attach_optimizer, train.attach_optimizer = train.attach_optimizer, attach_all
train.make_strategy = make_strategy
if __name__ == "__main__":
    sys.argv = ARGUMENTS
    train.main()
