"""What a search has found: a table, trials.csv, study.png, and what to type next."""

import csv
import os

from src.launch.records import name_of, typed
from src.launch.runs import describe_all
from src.launch.slurm import ACTIVE
from src.search import study
from src.search.space import Range, read_space
from src.settings import printable


def show(folder):
    """Print the table of the study in this folder, and write trials.csv and study.png into it."""
    # In this order: a trial that ends in between is in the journal then.
    described = describe_all([path.parent for path in folder.glob("*/run.json")])
    settings, found = study.read(folder), study.load(folder)
    space, trials = read_space(settings["search"]), found.trials
    rows, states = [], []
    for trial in trials:
        run = folder / str(trial.number)
        states.append(state_of(trial, described.get(run, {}).get("state")))
        row = {"trial": trial.number, "run": name_of(run), "state": states[-1], settings["monitor"]: trial.value}
        row["validations"] = len(trial.intermediate_values)
        rows.append(row | {name: trial.params.get(name) for name in space})
    write_csv(folder / "trials.csv", rows)
    print_table(rows)
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    print(f"\n{len(trials)} trials: {', '.join(counts)}; also in {os.path.relpath(folder / 'trials.csv')}")
    if {"not begun", "broken off"} & set(states):
        print(f"finish them         python run.py resume {typed(folder)}")
    done = [trial for trial in trials if trial.state == study.TrialState.COMPLETE]
    if done:
        draw(folder / "study.png", trials, space, settings)
        best = found.best_trial
        print(f"the best is {best.number}, with {settings['monitor']} {best.value:.4f} in its best validation")
        print(f"test it             python run.py test {typed(folder, best.number)} --ckpt best")
        print(f"the same again      python run.py repeat {typed(folder, best.number)}")
        print(f"the picture         {os.path.relpath(folder / 'study.png')}")
    print(f"open TensorBoard    tensorboard --logdir {os.path.relpath(folder)}")


def state_of(trial, run):
    """What a trial is, in words. run: the state of its run, or None"""
    if trial.state in study.FINISHED:
        return study.FINISHED[trial.state]
    if run in ACTIVE:
        return run.lower()
    return "not begun" if trial.state == study.TrialState.WAITING else "broken off"


def in_words(value):
    """A cell of the table."""
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def print_table(rows):
    cells = [list(rows[0]), *([in_words(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    cells = [[printable(cell) for cell in row] for row in cells]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def write_csv(path, rows):
    new = path.with_suffix(f".{os.getpid()}")
    with open(new, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    new.replace(path)


def draw(path, trials, space, settings):
    """What the trials are worth, one after the other, and against each of their values. White, also on a dark page."""
    from matplotlib.figure import Figure  # takes half a second

    figure = Figure(figsize=(3.2 * (1 + len(space)), 3.4), dpi=100, layout="constrained", facecolor="white")
    history, *others = figure.subplots(1, 1 + len(space), sharey=True, squeeze=False)[0]
    kinds = {"complete": ("o", "#1b6ca8"), "pruned": ("x", "#d95f02")}
    for state, (marker, colour) in kinds.items():
        shown = [trial for trial in trials if study.FINISHED.get(trial.state) == state and trial.value is not None]
        values = [trial.value for trial in shown]
        history.scatter([trial.number for trial in shown], values, marker=marker, color=colour, label=state)
        for axes, name in zip(others, space, strict=True):
            places = [place(trial.params[name], space[name]) for trial in shown]
            axes.scatter(places, values, marker=marker, color=colour)
    better = min if settings["minimize"] else max
    best, numbers = [], []
    for trial in trials:
        if trial.state == study.TrialState.COMPLETE:
            numbers.append(trial.number)
            best.append(better([*best[-1:], trial.value]))
    history.step(numbers, best, where="post", color="#7f7f7f", lw=1, label="best so far")
    history.set(xlabel="trial", ylabel=settings["monitor"])
    history.xaxis.get_major_locator().set_params(integer=True)
    history.legend()
    for axes, name in zip(others, space, strict=True):
        axes.set_xlabel(name)
        if not isinstance(space[name], Range):
            axes.set_xticks(range(len(space[name])), space[name])
            axes.margins(x=0.2)
        elif space[name].log:
            axes.set_xscale("log")
    for axes in [history, *others]:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    new = path.with_suffix(f".{os.getpid()}.png")
    figure.savefig(new)
    new.replace(path)


def place(value, values):
    """Where a value stands on its axis: a number of a range there, one of a list at its place in the list."""
    return value if isinstance(values, Range) else values.index(value)
