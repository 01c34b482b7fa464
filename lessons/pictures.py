"""Draw the pictures of the READMEs that are drawn, into .img/. Each is made of this repository's own data.

python lessons/pictures.py                  all of them, about a minute
python lessons/pictures.py ddp workers      these

Others are of TensorBoard: lessons/screenshots.py takes them (tensorboard, 5, and 12 where its search is). The rest are
made by the commands of their lessons: compare.py (9), the study (12), show.py (13), data/colour_mnist.py --picture and
tests/benchmarks/scaling.py --project.
"""

import argparse
import functools
import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.patheffects import withStroke
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import models
from torchvision.datasets import MNIST
from torchvision.transforms import Compose, Normalize, ToTensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from src.models.networks import make_network  # noqa: E402

BLUE, ORANGE, GREEN, PURPLE, GREY = "#9ecae1", "#fdae6b", "#a1d99b", "#bcbddc", "#d9d9d9"


def canvas(width, height):
    """A figure without axes; the unit of its coordinates is an inch."""
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")  # white: readable on a dark page too
    axes = figure.add_axes([0, 0, 1, 1])
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return figure, axes


def box(axes, x, y, width, height, text, colour, size=9):
    """A box with its lower left corner at x, y."""
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.08", fc=colour, ec="none")
    )
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", size=size, linespacing=1.5)


def arrow(axes, start, end, text="", **style):
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=12, color="#555555", **style))
    if text:
        axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.12, text, ha="center", size=8, color="#555555")


def road_map():
    """The lessons in their order, and where the way forks."""
    figure, axes = canvas(10, 4.3)
    built = ["1\na plain loop", "2\nLightning-\nModule", "3\nfast data", "4\njobs from\nPython",
             "5\nmetrics and\npages", "6\nyour own\ndata", "7\nany\nnetwork", "8\nmany\nnodes"]  # fmt: skip
    for number, text in enumerate(built):
        x = 0.25 + 1.21 * number
        box(axes, x, 2.75, 1.0, 0.95, text, BLUE)
        if number:
            arrow(axes, (x - 0.2, 3.22), (x - 0.01, 3.22))
    axes.text(0.25, 3.87, "Part I: you build it. Each lesson is the one before and one idea.", size=10)
    box(axes, 0.25, 1.6, 9.47, 0.62, "the last stage: run.py and src/ in the root of this repository", ORANGE, 10)
    arrow(axes, (9.22, 2.74), (9.22, 2.23))
    used = ["9\nsurviving\npreemption", "10\nyour own\nproject", "11\ndata for\nfile systems", "12\nsearching",
            "13\nseveral\noutputs", "14\ncontainers,\nother clusters"]  # fmt: skip
    for number, text in enumerate(used):
        x = 0.25 + 1.62 * number
        box(axes, x, 0.15, 1.35, 0.9, text, GREEN)
        arrow(axes, (x + 0.67, 1.59), (x + 0.67, 1.06))
    axes.text(1.1, 1.25, "Part II: you use it.", size=10)
    return figure


@functools.cache
def mnist(train):
    return MNIST(ROOT / "data", train=train, download=True)  # unpacks what is in the repository


def network():
    """Lesson 1's network, trained for one epoch, and what it says to an image it has not seen."""
    torch.manual_seed(1)
    images, labels = mnist(True).data[:, None] / 255, mnist(True).targets
    net = make_network("mlp", "imagenet", False, [1, 28, 28], 10)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for batch in torch.randperm(len(images)).split(64):
        F.cross_entropy(net(images[batch]), labels[batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    image = mnist(False).data[18]
    layers, values = list(net.eval()), [image[None, None] / 255]
    with torch.no_grad():
        for layer in layers:
            values.append(layer(values[-1]))
    shown = {"28 x 28 pixels\nof a byte": None, "784 numbers": values[1], "128": values[3], "256": values[5]}
    figure = Figure(figsize=(10, 3), dpi=100, facecolor="white", layout="constrained")
    grid = figure.subplots(1, 5, width_ratios=[1.3, 0.35, 0.35, 0.35, 1.5])
    for axes, (title, activations) in zip(grid, shown.items(), strict=False):
        picture = image if activations is None else activations.flatten()[:, None]
        axes.imshow(picture, cmap="Blues", aspect="equal" if activations is None else "auto")
        axes.set(xticks=[], yticks=[])
        axes.set_title(title, size=9)
    weights = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    for axes, count in zip(grid[2:], [count for count in weights if count], strict=True):
        axes.set_xlabel(f"{count:,}\nweights", size=8)
    grid[4].barh(range(10), values[-1].softmax(1)[0], color="#3182bd")
    grid[4].set(yticks=range(10), ylim=(9.6, -0.6), xlim=(0, 1))
    grid[4].set_title("probability of each digit", size=9)
    return figure


class Timed(Dataset):
    """MNIST, and when each image was fetched: with a transform sample by sample, else by the batch."""

    def __init__(self, by_batch):
        self.images = MNIST(ROOT / "data", transform=Compose([ToTensor(), Normalize(0.1307, 0.3081)]))
        self.decoded = (self.images.data[:, None] / 255 - 0.1307) / 0.3081 if by_batch else None

    def __len__(self):
        return 64 * 28

    def __getitems__(self, indices):
        start = time.perf_counter()
        if self.decoded is None:
            images = torch.stack([self.images[index][0] for index in indices])
        else:
            images = self.decoded[indices]
        return images, self.images.targets[indices], (os.getpid(), start, time.perf_counter())


def intervals(workers, by_batch):
    """Train a few steps; {who: [(begin, end)]} in milliseconds after the first batch was there."""
    torch.manual_seed(1)
    net = make_network("mlp", "imagenet", False, [1, 28, 28], 10)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loader = DataLoader(Timed(by_batch), 64, num_workers=workers, collate_fn=lambda batch: batch)
    fetched, computed = {}, []
    for images, labels, (process, start, end) in loader:
        fetched.setdefault(process, []).append((start, end))
        start = time.perf_counter()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        computed.append((start, time.perf_counter()))
    names = {
        process: f"worker {number}" if workers else "the same process" for number, process in enumerate(fetched, 1)
    }
    found = {"computes": computed, **{names[process]: times for process, times in fetched.items()}}
    zero = computed[4][0]  # the first are slow for reasons of their own
    return {who: [(1000 * (start - zero), 1000 * (end - zero)) for start, end in times] for who, times in found.items()}


def workers():
    """Who does what when: batches of 64 images of MNIST, measured."""
    torch.set_num_threads(1)
    cases = {
        "sample by sample, no workers": (0, False),
        "sample by sample, two workers": (2, False),
        "decoded once, by the batch": (0, True),
    }
    figure = Figure(figsize=(10, 4.2), dpi=100, facecolor="white", layout="constrained")
    for axes, (title, case) in zip(
        figure.subplots(3, 1, sharex=True, height_ratios=[2, 3, 2]), cases.items(), strict=True
    ):
        found = intervals(*case)
        for row, (who, times) in enumerate(found.items()):
            colour = "#3182bd" if who == "computes" else "#e6550d"
            spans = [(start, end - start) for start, end in times]
            axes.broken_barh(spans, (row - 0.35, 0.7), facecolors=colour, edgecolor="white", linewidth=0.6)
        names = {"computes": "computes", "the same process": "fetches"}
        axes.set(yticks=range(len(found)), ylim=(len(found) - 0.5, -0.5), xlim=(0, 20))
        axes.set_yticklabels([names.get(who, f"{who} fetches") for who in found], size=8)
        axes.set_title(title, size=9, loc="left")
    axes.set_xlabel("milliseconds; a bar is a batch")
    return figure


def note_size(sizes, part, module, inputs, output):
    sizes[part] = output.shape


def resnet18():
    """The parts of ResNet-18, and how large an image of 32 x 32 still is behind each, with both stems."""
    figure, axes = canvas(10, 3.1)
    parts = ["conv1", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool", "fc"]
    for row, stem in enumerate(("imagenet", "cifar")):
        net, sizes = make_network("resnet18", stem, False, [3, 32, 32], 10).eval(), {}
        for part in parts:
            note = functools.partial(note_size, sizes, part)
            net.get_submodule(part).register_forward_hook(note)
        with torch.no_grad():
            net(torch.zeros(1, 3, 32, 32))
        y = 1.75 - 1.55 * row
        axes.text(0.15, y + 0.45, f"--stem\n{stem}", va="center", size=10)
        box(axes, 1.0, y, 0.85, 0.9, "image\n3 x 32 x 32", GREY, 8)
        for number, part in enumerate(parts):
            x = 2.05 + 0.99 * number
            shape = " x ".join(str(size) for size in sizes[part][1:])
            kind = {"conv1": f"conv {net.conv1.kernel_size[0]}x{net.conv1.kernel_size[1]}", "fc": "linear"}.get(
                part, part
            )
            if part == "maxpool" and stem == "cifar":
                kind = "nothing"
            colour = {"conv1": ORANGE, "maxpool": ORANGE, "avgpool": PURPLE, "fc": PURPLE}.get(part, BLUE)
            box(axes, x, y, 0.85, 0.9, f"{kind}\n{shape}", colour, 8)
            arrow(axes, (x - 0.15, y + 0.45), (x - 0.01, y + 0.45))
    axes.text(0.15, 2.85, "Each blue part is two blocks of two 3 x 3 convolutions, with a way around them.", size=9)
    return figure


def architectures():
    """Accuracy on ImageNet against operations, as torchvision's weights say it themselves."""
    figure = Figure(figsize=(9, 5), dpi=100, facecolor="white", layout="constrained")
    axes = figure.subplots()
    labelled = {"alexnet", "squeezenet1_1", "mobilenet_v3_small", "mobilenet_v3_large", "resnet18", "resnet50", "vgg16",
                "densenet121", "efficientnet_b0", "efficientnet_v2_s", "convnext_tiny", "vit_b_16", "vit_l_16",
                "regnet_y_16gf", "convnext_large"}  # fmt: skip
    for name in models.list_models(module=models):
        meta = models.get_model_weights(name).DEFAULT.meta
        [accuracy] = [metrics["acc@1"] for metrics in meta["_metrics"].values()][:1]
        chosen = name in labelled
        colour = "#e6550d" if chosen else BLUE
        axes.scatter(meta["_ops"], accuracy, s=meta["num_params"] / 1e6 * 3, color=colour, alpha=0.7, linewidth=0)
        if chosen:
            text = axes.annotate(name, (meta["_ops"], accuracy), xytext=(4, -9), textcoords="offset points", size=8)
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])  # readable on other points too
    axes.set(
        xscale="log",
        xlabel="10^9 multiplications for an image",
        ylabel="% right on ImageNet (best weights)",
        ylim=(54, 92),
    )
    axes.set_title("torchvision's classifiers; the area of a point is the number of parameters", size=10)
    axes.grid(alpha=0.3)
    return figure


def ddp():
    """Two processes in the six steps of lesson 8."""
    figure, axes = canvas(10.2, 4.2)
    steps = ["1 meet", "2 equal weights", "3 other images", "4 own gradient", "5 mean gradient", "6 equal step"]
    for number, text in enumerate(steps):
        axes.text(1.9 + 1.5 * number, 3.9, text, ha="center", size=10)
    before, after = ["address\nand port", "weights w"], ["(a + b) / 2", "the same\nnew w"]
    texts = {
        "process 0": [*before, "images\n0, 2, 4, ...", "gradient a", *after],
        "process 1": [*before, "images\n1, 3, 5, ...", "gradient b", *after],
    }
    colours = [GREY, BLUE, ORANGE, ORANGE, GREEN, BLUE]
    for row, (name, words) in enumerate(texts.items()):
        y = 2.65 - 2.1 * row
        axes.text(0.1, y + 0.4, name, va="center", size=10)
        for number, word in enumerate(words):
            x = 1.3 + 1.5 * number
            box(axes, x, y, 1.2, 0.8, word, colours[number])
            if number:
                arrow(axes, (x - 0.29, y + 0.4), (x - 0.01, y + 0.4))
    for number, text in {0: "find each other", 1: "rank 0's", 4: "all-reduce"}.items():
        x = 1.9 + 1.5 * number
        axes.add_patch(FancyArrowPatch((x, 2.6), (x, 1.4), arrowstyle="<|-|>" if number != 1 else "-|>",
                                       mutation_scale=14, color="#de2d26", lw=2))  # fmt: skip
        axes.text(x + 0.08, 2.0, text, size=9, color="#de2d26", va="center")
    axes.text(1.3, 0.15, "Only what is red travels between the processes; in each step that is the gradients.", size=9)
    return figure


def measured(section):
    """A table of tests/benchmarks/results/launch.json: {row: {column: mean}}."""
    result = json.loads((ROOT / "tests/benchmarks/results/launch.json").read_text())
    rows = result["sections"][section]["rows"]
    return {row: {name: statistics.mean(times) for name, times in found.items()} for row, found in rows.items()}


def launch():
    """Who does what between `python run.py` and the end of the first step, and for how long."""
    describe = measured("launch")["python run.py --nodes 2 --tasks_per_node 2 --dry_run"]["seconds"]
    job, python = measured("launch-submit")["practice cluster"], measured("launch-step")
    rank_0 = python["two processes, the first of them"]
    # This was measured with one process and up to its epoch line: a little more than what stands in the picture.
    start = job["running to epoch line"] - python["one process"]["total"]
    login, slurm, process = "run.py, where you type", "Slurm", "Python, in each process on the nodes"
    bars = [
        (login, "read the flags, describe the job", describe),
        (login, "try flags, network and data with torch; sbatch", job["typed to prompt"] - describe),
        (slurm, "slurmctld: a node for the job", job["prompt to running"]),
        (slurm, "slurmd, srun: start the processes", start),
        (process, "import torch, Lightning, ...", rank_0["imports"]),
        (process, "configuration, network, logger", sum(rank_0[part] for part in (
            "configuration", "network", "summary of the network", "logger"))),
        (process, "process group: all find each other", rank_0["process group"]),
        (process, "data", rank_0["data"]),
        (process, "Lightning's preparations", rank_0["the rest"]),
        (process, "first step", rank_0["first step"]),
    ]  # fmt: skip
    colours = {login: "#3182bd", slurm: "#31a354", process: "#e6550d"}
    figure = Figure(figsize=(10, 3.8), dpi=100, facecolor="white", layout="constrained")
    axes, now = figure.subplots(), 0.0
    for row, (who, _, seconds) in enumerate(bars):
        axes.barh(row, seconds, left=now, color=colours[who])
        now += seconds
        axes.text(now + 0.06, row, f"{seconds:.2f} s", va="center", size=9)
    axes.set(xlim=(0, 1.07 * now), ylim=(len(bars) - 0.4, -0.6), xlabel="seconds after you have typed the command")
    axes.set_yticks(range(len(bars)), [what for _, what, _ in bars], size=9)
    axes.legend([Patch(color=colour) for colour in colours.values()], colours, loc="lower left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


PICTURES = {
    "road-map": road_map,
    "01-network": network,
    "03-workers": workers,
    "07-resnet18": resnet18,
    "07-architectures": architectures,
    "08-ddp": ddp,
    "08-launch": launch,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts of the names of the pictures")
    parser.add_argument("--out", type=Path, default=ROOT / ".img", help="where they go")
    args = parser.parse_args()
    chosen = [name for name in PICTURES if not args.names or any(part in name for part in args.names)]
    if not chosen:
        parser.error(f"there is no picture {' '.join(args.names)}: there are {', '.join(PICTURES)}")
    args.out.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        PICTURES[name]().savefig(args.out / f"{name}.png")
        print(args.out / f"{name}.png")


if __name__ == "__main__":
    main()
