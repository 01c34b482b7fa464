"""What TensorBoard's pages take: percent of each epoch, and once a training. From Lightning's own profiler."""

import tempfile
from pathlib import Path

from measure import ROOT, Table, Target, run

PAGES = "TensorBoard's pages"


def shares(report):
    """From the report of Lightning's simple profiler: (percent of an epoch, seconds per training)."""
    # | action | mean | calls | total | percent |
    lines = [[word.strip() for word in line.split("|")] for line in report.read_text().splitlines()]
    seconds = {line[1]: float(line[4]) for line in lines if len(line) > 5 and line[3].isdigit()}
    pages = {action: total for action, total in seconds.items() if "TensorBoardPages" in action}
    once = sum(total for action, total in pages.items() if action.endswith(("on_train_start", "on_train_end")))
    return 100 * (sum(pages.values()) - once) / seconds["run_training_epoch"], once


def measure(smallest):
    table = Table(f"{PAGES} (pictures, histograms, curves) in `python run.py`, mlp on MNIST.")
    for _ in range(1 if smallest else 3):
        with tempfile.TemporaryDirectory() as folder:
            flags = "--limit_train_batches 50 --limit_val_batches 5 --max_epochs 2" if smallest else "--max_epochs 3"
            command = f"python run.py --cluster debug --profile simple --log_path {folder}/logs {flags}"
            run(command, ROOT)
            [report] = Path(folder).glob("logs/*/fit-profiler*.txt")
            share, once = shares(report)
        table.add(PAGES, percent_of_an_epoch=share, seconds_once_a_training=once)
    target = Target(f"{PAGES}, percent of an epoch", table.mean(PAGES, "percent of an epoch"), 2)
    return {"pages": table}, [target]
