"""Compare runs: are their weights the same, to the last bit? And their curves, with a mark where an attempt began.

python lessons/09-surviving-preemption/compare.py RUN RUN ...    RUN: the folder of a run, or its name in logs/
"""

import argparse
import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from src.callbacks.checkpoints import find  # noqa: E402
from src.launch.runs import find_run  # noqa: E402

TAGS = ["val/accuracy", "train/loss"]


def read_curves(run):
    """What TensorBoard shows of a run.

    Returns:
        for each of TAGS {step: value}, and the steps at which the attempts began
    """
    curves, beginnings = {tag: {} for tag in TAGS}, []
    for path in sorted(run.glob("events.out.tfevents.*")):  # each attempt writes a file; their names hold the time
        for event in EventFileLoader(str(path)).Load():
            if event.HasField("session_log"):  # an attempt goes on from this step: what came after it is taken back
                beginnings.append(event.step)
                curves = {
                    tag: {step: value for step, value in curve.items() if step < event.step}
                    for tag, curve in curves.items()
                }
            for value in event.summary.value:
                if value.tag in TAGS:
                    curves[value.tag][event.step] = value.tensor.float_val[0]
    return curves, beginnings


def draw(runs, path):
    """The curves of all runs in one picture: that of the first run wide, the others on it."""
    colours = ["#9ecae1", "#d95f02", "#1b9e77", "#7570b3"]
    figure = Figure(figsize=(9, 6), dpi=100, layout="constrained", facecolor="white")
    for axes, tag in zip(figure.subplots(len(TAGS), 1, sharex=True), TAGS, strict=True):
        for number, run in enumerate(runs):
            curves, beginnings = read_curves(run)
            colour = colours[number % len(colours)]
            axes.plot(*zip(*sorted(curves[tag].items()), strict=True), color=colour, lw=1.5 if number else 6)
            for step in beginnings[1:]:  # the first is where the run itself began
                axes.axvline(step, color=colour, lw=1, ls=":")
            axes.plot([], [], color=colour, lw=1.5 if number else 6, label=f"run {run.name}")
        axes.set_ylabel(tag)
        axes.grid(alpha=0.3)
        axes.legend()
    axes.set_xlabel("step (dotted: here the run went on after it was killed)")
    figure.savefig(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", default="compared.png", help="where the picture goes")
    args = parser.parse_args()
    runs = [find_run(name) for name in args.runs]

    weights = {}
    for run in runs:
        checkpoint = torch.load(find(run), map_location="cpu", weights_only=True)
        weights[run] = checkpoint["state_dict"]
        beginnings = ", ".join(str(step) for step in read_curves(run)[1])
        print(f"run {run.name}: at step {checkpoint['global_step']}, begun at steps {beginnings}")
    first, *others = runs
    for run in others:
        names = [name for name, values in weights[first].items() if not torch.equal(values, weights[run][name])]
        if names:
            print(f"the weights of {run.name} are not those of {first.name}: {', '.join(names)}")
        else:
            print(f"the weights of {run.name} are those of {first.name}, to the last bit")
    draw(runs, args.out)
    print(f"the curves are in {args.out}")


if __name__ == "__main__":
    main()
