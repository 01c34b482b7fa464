"""On one node with four GPUs this training is as it was. On two nodes it learns with batches of twice the size.

python exercises/4_global_batch.py

Repair images_per_process().
"""


def images_per_process(batch_size, nodes, gpus_per_node):
    """How many images of a batch are for one process; there is a process for each GPU.

    Raises ValueError where the batch cannot be shared evenly.
    """
    return batch_size // gpus_per_node


if __name__ == "__main__":
    for nodes in (1, 2, 4):
        images = images_per_process(64, nodes, gpus_per_node=4)
        print(f"{nodes} nodes with 4 GPUs: {images} images each, {images * nodes * 4} in a batch of 64")
