"""How much faster are several processes, and how much of a step do they talk? On the cores of this machine, gloo.

python scaling.py                 takes a minute or two
python scaling.py --rounds 1      a first look
"""

import argparse
import contextlib
import os
import socket
import statistics
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from src.models.networks import make_network

CASES = [("mlp", [1, 28, 28], 64), ("mlp", [1, 28, 28], 2048), ("cnn", [3, 32, 32], 2048)]  # network, image, batch
SETTINGS = [(1, 1), (1, 2), (2, 1), (4, 1)]  # processes, threads of each
ROUNDS = 5
SECONDS = 0.2  # of a measurement, about


def seconds_per_step(network, images, labels, steps, communicate=True):
    """communicate=False: the same without the exchange of gradients."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, fused=True)
    alone = contextlib.nullcontext() if communicate else network.no_sync()
    with alone:
        start = time.perf_counter()
        for _ in range(steps):
            F.cross_entropy(network(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return (time.perf_counter() - start) / steps


def process(rank, port, rounds):
    most = max(processes for processes, _ in SETTINGS)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=most)
    groups = {processes: dist.new_group(range(processes)) for processes, _ in SETTINGS}
    if rank == 0:
        print(f"{os.cpu_count()} cores\n\nnetwork  batch  processes  threads  images/s  communication")
    for arch, shape, batch_size in CASES:
        rates, shares = {}, {}
        # The settings take turns, so that whatever else this machine does slows down all of them.
        for turn in range(rounds + 1):
            for setting in SETTINGS:
                processes, threads = setting
                dist.barrier()  # those that have nothing to do wait at the next one
                if rank >= processes:
                    continue
                torch.set_num_threads(threads)
                network = make_network(arch, "imagenet", False, shape, 10)
                if processes > 1:
                    network = DistributedDataParallel(network, process_group=groups[processes])
                images = torch.randn(batch_size // processes, *shape)  # a share of the global batch
                labels = torch.randint(10, [batch_size // processes])
                steps = torch.tensor(SECONDS / seconds_per_step(network, images, labels, 5)).ceil()
                dist.all_reduce(steps, dist.ReduceOp.MAX, groups[processes])  # all take as many
                steps = int(steps)
                together = seconds_per_step(network, images, labels, steps)
                alone = together
                if processes > 1:
                    alone = seconds_per_step(network, images, labels, steps, communicate=False)
                if turn > 0:  # the first is for warming up
                    rates.setdefault(setting, []).append(batch_size / together)
                    shares.setdefault(setting, []).append(1 - alone / together)
        for processes, threads in rates if rank == 0 else []:
            rate, share = (statistics.median(numbers[processes, threads]) for numbers in (rates, shares))
            print(f"{arch:7}{batch_size:7}{processes:11}{threads:9}{rate:10.0f}{max(0, share):15.0%}", flush=True)
    dist.barrier()
    os._exit(0)  # at once: the threads of gloo sometimes abort a process that Python takes down


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as run.py does; for the processes that begin now
    mp.spawn(process, (port, rounds), nprocs=max(processes for processes, _ in SETTINGS))


if __name__ == "__main__":
    main()
