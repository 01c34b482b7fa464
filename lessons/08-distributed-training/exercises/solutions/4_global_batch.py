"""Solution: the GPUs of all nodes share the batch.

python exercises/solutions/4_global_batch.py

Rounding would hide that a batch of 64 has become one of 60, so what cannot be shared evenly is an error.
"""


def images_per_process(batch_size, nodes, gpus_per_node):
    """How many images of a batch are for one process; there is a process for each GPU.

    Raises ValueError where the batch cannot be shared evenly.
    """
    processes = nodes * gpus_per_node
    if batch_size % processes:
        raise ValueError(f"{processes} processes cannot share a batch of {batch_size} evenly")
    return batch_size // processes


if __name__ == "__main__":
    for nodes in (1, 2, 4):
        images = images_per_process(64, nodes, gpus_per_node=4)
        print(f"{nodes} nodes with 4 GPUs: {images} images each, {images * nodes * 4} in a batch of 64")
