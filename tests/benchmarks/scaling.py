"""How DDP will scale beyond the machines at hand: a model of a step, held against what was measured, and its advice.

python tests/benchmarks/scaling.py               measure all-reduce here: 2 and 4 processes, gloo (half a minute)
python tests/benchmarks/scaling.py --project     up to 1,024 GPUs; a picture in .img/scaling.png
python tests/benchmarks/scaling.py --project --network vit_l_16 --pixels 224 --step_ms 310 --batch_size 64

A step of N processes takes as long as that of one, and what of the all-reduce does not hide behind the backward pass:

    ring   2 (N - 1) latency + 2 (N - 1) / N bytes / bandwidth
    tree   2 log2(N) latency + 2 bytes / bandwidth              NCCL takes the faster

DDP sends gradients in buckets of 25 MB while the backward pass, two thirds of the step, goes on. The last bucket cannot
hide. What a GPU takes for a step is --step_ms if you have measured it; else it is guessed from the network's operations
and --tflops. Bandwidth, latency and --tflops are statements about a cluster that nobody has measured here.
"""

import argparse
import json
import math
import os
import socket
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ALL_REDUCE, STEPS = "all_reduce.json", "scaling.json"  # what is measured here, and by run.py
SIZES = [4 * 4**power for power in range(12)]  # bytes: 4 to 16 MB
BUCKET = 25e6  # bytes, DDP's
BACKWARD = 2 / 3  # of a step
GPUS = [2**power for power in range(11)]
STATE = 16  # bytes for a parameter: itself, its gradient and Adam's two numbers, 4 each
FSDP_TRAFFIC = 1.5  # of DDP's: the parameters are collected twice, the gradients added up once


@dataclass
class Network:
    """latency: seconds for a message between two processes; bandwidth: bytes/s out of one of them."""

    latency: float
    bandwidth: float

    def ring(self, processes, size):
        return 2 * (processes - 1) * (self.latency + size / processes / self.bandwidth)

    def tree(self, processes, size):
        return 2 * math.ceil(math.log2(processes)) * self.latency + 2 * size / self.bandwidth

    def all_reduce(self, processes, size):
        return min(self.ring(processes, size), self.tree(processes, size)) if processes > 1 else 0.0


def exposed(network, processes, size, step, overlap=True):
    """Seconds of a step in which a process does nothing but exchange gradients."""
    everything = network.all_reduce(processes, size)
    hidden = BACKWARD * step if overlap else 0.0
    return max(everything - hidden, network.all_reduce(processes, min(size, BUCKET)))


def efficiency(network, processes, size, step):
    """Weak scaling: what share of its time a process computes."""
    return step / (step + exposed(network, processes, size, step))


def measure():
    """Time all-reduce: {processes: {bytes: seconds}}, medians."""
    import torch.multiprocessing as mp

    found = {}
    for processes in (2, 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results = mp.get_context("spawn").SimpleQueue()
        mp.spawn(time_all_reduce, (processes, port, results), nprocs=processes)
        found[processes] = results.get()
    return found


def time_all_reduce(rank, processes, port, results):
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=processes)
    tensors = {size: torch.ones(size // 4) for size in SIZES}
    seconds = {size: [] for size in SIZES}
    for turn in range(30):  # the sizes take turns
        for size, tensor in tensors.items():
            dist.barrier()
            start = time.perf_counter()
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
            if turn > 2:
                seconds[size].append(time.perf_counter() - start)
    if rank == 0:
        results.put({size: statistics.median(times) for size, times in seconds.items()})
    dist.destroy_process_group()


def fit(measured, processes):
    """Latency and bandwidth with which the ring's formula comes nearest to the measured times (in proportion)."""
    sizes = np.array([float(size) for size in measured])
    seconds = np.array(list(measured.values()))
    terms = 2 * (processes - 1) * np.stack([np.ones_like(sizes), sizes / processes], axis=1)
    latency, per_byte = np.linalg.lstsq(terms / seconds[:, None], np.ones_like(seconds), rcond=None)[0]
    return Network(latency, 1 / per_byte)


def measured_steps(path):
    """Weak scaling as run.py measured it: [(network, processes, seconds of one process's step, communication)]."""
    rows = json.loads(path.read_text())["sections"]["scaling"]["rows"]
    found = []
    for name, columns in rows.items():
        network, _, kind, processes = name.split(", ")
        count = int(processes.split()[0])
        if kind == "weak" and count > 1:
            step, talk = (statistics.mean(columns[column]) / 1000 for column in ("step, ms", "communication, ms"))
            found.append((network, count, step - talk, talk))
    return found


def gradient_bytes(arch, shape=(3, 32, 32)):
    import sys

    sys.path.insert(0, str(ROOT))
    from src.models.networks import make_network

    return 4 * sum(
        parameter.numel() for parameter in make_network(arch, "imagenet", False, list(shape), 10).parameters()
    )


def guessed_step(arch, pixels, batch_size, tflops):
    """(gradient bytes, seconds of a step) of one of torchvision's networks, by what its weights say about it."""
    from torchvision import models

    weights = models.get_model_weights(arch).DEFAULT
    meta, [trained_at] = weights.meta, weights.transforms().crop_size
    operations = 2e9 * meta["_ops"] * (pixels / trained_at) ** 2  # _ops: 10^9 multiplications, each with an addition
    return 4 * meta["num_params"], 3 * operations * batch_size / (tflops * 1e12)  # forward once, backward twice


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", action="store_true", help="the model, held against what was measured")
    parser.add_argument("--network", default="resnet50", help="of torchvision")
    parser.add_argument("--pixels", type=int, default=224, help="height and width of an image")
    parser.add_argument("--batch_size", type=int, default=128, help="of one GPU")
    parser.add_argument("--step_ms", type=float, help="what one GPU takes for a step, measured")
    parser.add_argument("--tflops", type=float, default=100, help="of one GPU, sustained, where --step_ms is not given")
    parser.add_argument("--bandwidth", type=float, default=25, help="GB/s out of each GPU; 25: a 200 Gbit/s card each")
    parser.add_argument("--latency", type=float, default=10, help="microseconds for a message")
    parser.add_argument("--memory", type=float, default=80, help="GB of a GPU")
    parser.add_argument(
        "--largest_batch", type=int, default=8192, help="of all GPUs, above which the result gets worse"
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where measured numbers are kept")
    parser.add_argument("--out", type=Path, default=ROOT / ".img/scaling.png", help="where the picture goes")
    args = parser.parse_args()
    if not args.project:
        measured = measure()
        args.results.mkdir(parents=True, exist_ok=True)
        (args.results / ALL_REDUCE).write_text(
            f"{json.dumps({'cores': os.cpu_count(), 'seconds': measured}, indent=1)}\n"
        )
        for processes, seconds in measured.items():
            here = fit(seconds, processes)
            print(f"{processes} processes: {1e6 * here.latency:.0f} us a message, {here.bandwidth / 1e9:.2f} GB/s")
        return
    for name, command in ((ALL_REDUCE, "tests/benchmarks/scaling.py"), (STEPS, "tests/benchmarks/run.py scaling")):
        if not (args.results / name).exists():
            parser.exit(1, f"{name} is missing: measure first, with   python {command}\n")
    project(args)


def project(args):
    all_reduce = json.loads((args.results / ALL_REDUCE).read_text())["seconds"]
    here = {int(processes): fit(seconds, int(processes)) for processes, seconds in all_reduce.items()}
    print("Here, all processes on the same cores: what the model says of a step, and what was measured\n")
    print(f"{'':20} {'processes':>9} {'compute':>9} {'exchange, model':>16} {'measured':>9}")
    points = []
    for name, count, computing, measured in measured_steps(args.results / STEPS):
        arch, shape = name.split()[0], (1, 28, 28) if name.startswith("mlp") else (3, 32, 32)
        model = exposed(here[count], count, gradient_bytes(arch, shape), computing, overlap=False)
        points.append((name, count, computing / (computing + model), computing / (computing + measured)))
        print(f"{name:20} {count:9} {1000 * computing:6.1f} ms {1000 * model:13.1f} ms {1000 * measured:6.1f} ms")

    size, step = guessed_step(args.network, args.pixels, args.batch_size, args.tflops)
    step = args.step_ms / 1000 if args.step_ms else step
    network = Network(args.latency / 1e6, args.bandwidth * 1e9)
    print(
        f"\n{args.network}, {args.batch_size} images of {args.pixels} x {args.pixels} a GPU: {1000 * step:.0f} ms a "
        f"step ({'measured' if args.step_ms else f'guessed: {args.tflops:g} TFLOP/s'}), {size / 1e6:.0f} MB of "
        f"gradients. Stated, not measured: {args.bandwidth:g} GB/s and {args.latency:g} us from GPU to GPU\n"
    )
    print(f"{'GPUs':>5} {'ring':>9} {'tree':>9} {'exposed':>9} {'weak':>6} {'strong':>7}")
    for gpus in GPUS:
        ring, tree = (f"{1000 * way(gpus, size):6.1f} ms" if gpus > 1 else "" for way in (network.ring, network.tree))
        print(
            f"{gpus:5} {ring:>9} {tree:>9} {1000 * exposed(network, gpus, size, step):6.1f} ms "
            f"{efficiency(network, gpus, size, step):6.0%} {efficiency(network, gpus, size, step / gpus):7.0%}"
        )
    print("\n".join(["", *advice(args, network, size, step)]))
    draw(args, network, size, step, points)


def advice(args, network, size, step):
    """When to grow the batch, when to accumulate, when DDP stops paying, when FSDP begins."""
    most = GPUS[-1]
    image = step / args.batch_size
    batches = [2**power for power in range(20)]
    batch = next((batch for batch in batches if efficiency(network, most, size, batch * image) >= 0.9), batches[-1])
    yield f"Grow the batch: with {batch} images a GPU, {most} GPUs compute for at least 90 % of the time."
    yield (
        f"Accumulate: where memory ends before {batch} images, --accumulate exchanges the gradients of several batches "
        "at once. For what is learnt that is the larger batch all the same."
    )
    useful = max(gpus for gpus in GPUS if gpus == 1 or gpus * batch <= args.largest_batch)
    yield (
        f"The limit: {args.largest_batch} images in a step are said to be the most that still learn well "
        f"(--largest_batch). With {batch} a GPU that is {useful} GPUs."
    )
    whole = args.largest_batch * image
    paying = max(gpus for gpus in GPUS if efficiency(network, gpus, size, whole / gpus) >= 0.5)
    yield f"DDP stops paying: when these images are divided among more than {paying} GPUs, half of the time is lost."
    state, room = STATE * size / 4 / 1e9, args.memory / 2
    yield (
        f"FSDP: the parameters, their gradients and Adam's numbers are {state:.1f} GB, which "
        f"{'fits' if state < room else 'does not fit'} into half of {args.memory:g} GB; the other half is for what the "
        f"backward pass needs. From {room / STATE:.1f} billion parameters on it is needed. It sends {FSDP_TRAFFIC} "
        "times as much as DDP, and each GPU holds its share only."
    )


def draw(args, network, size, step, points):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=100, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for colour, name in zip(("#d95f02", "#1b9e77"), dict.fromkeys(point[0] for point in points), strict=False):
        counts, model, measured = zip(*[point[1:] for point in points if point[0] == name], strict=True)
        left.plot([1, *counts], [1, *model], color=colour, label=f"{name}: model")
        left.plot(counts, measured, "o", color=colour, label=f"{name}: measured")
    left.set(title="this machine, CPUs, gloo", xscale="log", xticks=[1, 2, 4], xticklabels=[1, 2, 4])
    left.minorticks_off()
    ways = {
        "weak": lambda n: efficiency(network, n, size, step),
        "weak, a quarter of the batch": lambda n: efficiency(network, n, size, step / 4),
        "strong": lambda n: efficiency(network, n, size, step / n),
    }
    for colour, (name, way) in zip(("#1b9e77", "#7570b3", "#d95f02"), ways.items(), strict=True):
        right.plot(GPUS, [way(gpus) for gpus in GPUS], color=colour, label=name)
    right.set(title=f"{args.network}, {args.bandwidth:g} GB/s a GPU: model only", xscale="log", xticks=GPUS[::2])
    right.set_xticklabels(GPUS[::2])
    right.minorticks_off()
    for axes, unit in ((left, "processes"), (right, "GPUs")):
        axes.set(xlabel=unit, ylabel="efficiency", ylim=(0, 1.05))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(args.out)
    print(f"\nthe picture is {args.out}")


if __name__ == "__main__":
    main()
