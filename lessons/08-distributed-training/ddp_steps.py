"""DistributedDataParallel in six steps, each shown with the numbers of two processes.

python ddp_steps.py        all six
python ddp_steps.py 4      one of them
"""

import argparse
import copy
import os
import socket
import sys

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

PROCESSES = 2
IMAGES = 10  # made up, of 4 pixels


def say(text):
    """Print what each process has to say, in their order."""
    texts = [None] * dist.get_world_size()
    dist.all_gather_object(texts, f"  rank {dist.get_rank()}: {text}")
    if dist.get_rank() == 0:
        print("\n".join(texts), flush=True)


def numbers(tensor):
    return " ".join(f"{number:+.4f}" for number in tensor.flatten()[:4].tolist())


def make_network(seed):
    torch.manual_seed(seed)
    return nn.Linear(4, 1)


def make_data():
    """The same in all processes: images (10, 4), targets (10, 1)."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(IMAGES, 4, generator=generator), torch.randn(IMAGES, 1, generator=generator)


def share():
    """The indices that this process takes from one permutation of all."""
    return list(DistributedSampler(range(IMAGES), dist.get_world_size(), dist.get_rank(), seed=1))


def loss_of(network, indices):
    images, targets = make_data()
    return nn.functional.mse_loss(network(images[indices]), targets[indices])


def step_1():
    """The processes have found each other: each knows its rank, and a sum over all of them comes out."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    number = torch.tensor(rank + 1.0)
    dist.all_reduce(number)  # replaces it by the sum, in all processes
    say(f"process {rank + 1} of {world_size}, sum of 1 to {world_size}: {number:.0f}")
    assert number == world_size * (world_size + 1) / 2


def step_2():
    """Rank 0's weights are sent to all, so that all start alike."""
    network = make_network(seed=dist.get_rank())  # each process draws its own
    say(f"weights before {numbers(network.weight)}")
    DistributedDataParallel(network)  # sends them, here, once
    say(f"weights after  {numbers(network.weight)}")
    assert torch.equal(network.weight, make_network(seed=0).weight)


def step_3():
    """Each process takes its share of the images: none twice, none left out."""
    indices = share()
    shares = [None] * dist.get_world_size()
    dist.all_gather_object(shares, indices)
    say(f"images {indices}")
    assert sorted(sum(shares, [])) == list(range(IMAGES))


def step_4():
    """Each process computes the gradient of its own share: they differ."""
    network = make_network(seed=0)
    loss_of(network, share()).backward()
    say(f"gradient {numbers(network.weight.grad)}")
    gradients = [torch.empty_like(network.weight) for _ in range(dist.get_world_size())]
    dist.all_gather(gradients, network.weight.grad)
    assert not torch.allclose(gradients[0], gradients[1])


def step_5():
    """DDP replaces them by their mean while backward() runs: the gradient that one process has for all images."""
    network = DistributedDataParallel(make_network(seed=0))
    loss_of(network, share()).backward()
    say(f"gradient {numbers(network.module.weight.grad)}")

    alone = make_network(seed=0)
    loss_of(alone, range(IMAGES)).backward()
    if dist.get_rank() == 0:
        print(f"  one process, all images: {numbers(alone.weight.grad)}", flush=True)
    assert torch.allclose(network.module.weight.grad, alone.weight.grad, atol=1e-6)


def step_6():
    """Equal weights, equal gradients: after the optimizer's step the weights are equal again. Nobody sent them."""
    network = DistributedDataParallel(make_network(seed=0))
    before = copy.deepcopy(network.module.weight)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    loss_of(network, share()).backward()
    optimizer.step()
    say(f"weights {numbers(network.module.weight)}")
    weights = [torch.empty_like(before) for _ in range(dist.get_world_size())]
    dist.all_gather(weights, network.module.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], before)


STEPS = [step_1, step_2, step_3, step_4, step_5, step_6]


def process(rank, port, chosen):
    """What each process runs. Where they meet is an address and a port; a launcher such as srun tells them the rank."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=PROCESSES)
    for number in chosen:
        if rank == 0:
            print(f"{number}. {STEPS[number - 1].__doc__}", flush=True)
        STEPS[number - 1]()
    dist.barrier()  # nobody leaves while another still needs it
    sys.stderr.flush()
    os._exit(0)  # at once: the threads of gloo sometimes abort a process that Python takes down


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", type=int, nargs="?", choices=range(1, 7), help="default: all")
    step = parser.parse_args().step
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # 0: the system chooses a port that is free
        port = listener.getsockname()[1]
    mp.spawn(process, (port, [step] if step else range(1, 7)), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
