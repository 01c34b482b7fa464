"""The result of one step: a JSON file that is complete after every measurement, so that an interruption loses nothing.

Each step is a program: `python tests/gpu/STEP.py --out FILE --work FOLDER [--smoke]`. run.py starts it.
"""

import argparse
import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# src/; lesson.py and training.py; measure.py and the other benchmarks
sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE.parent / "benchmarks")]


def arguments(description):
    """The options that every step has: out, work, smoke."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file for the result")
    parser.add_argument("--work", type=Path, required=True, help="the folder for data sets and runs")
    parser.add_argument("--smoke", action="store_true", help="on the CPU, as small as possible")
    parser.add_argument("--epochs", type=int, default=15, help="length of the record")
    return parser.parse_args()


def read_json(path):
    """The content of a JSON file; {} if it does not exist."""
    return json.loads(path.read_text()) if path.exists() else {}


def write_json(path, content):
    """Write a JSON file in one piece: a reader never sees half of it."""
    partial = path.with_suffix(".partial")
    partial.write_text(f"{json.dumps(content, indent=1)}\n")
    os.replace(partial, path)


def synchronize():
    """Wait until the GPU, if there is one, has done what it was asked to do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Results:
    """rows: {row: {column: [one number per measurement]}}. The caption names what is measured, and the units."""

    def __init__(self, path, caption):
        self.path = path
        self.content = {"caption": caption, "rows": {}, "notes": []}
        before = read_json(path)
        if before.get("caption") == caption:  # this step was interrupted, and the settings in the caption are the same
            self.content = before
        self.rows = self.content["rows"]

    def add(self, row, **columns):
        """Add one measurement. Underscores in the names of columns become spaces."""
        for column, value in columns.items():
            self.rows.setdefault(row, {}).setdefault(column.replace("_", " "), []).append(value)
        write_json(self.path, self.content)

    def note(self, text):
        """Add a sentence that appears below the table."""
        print(text, flush=True)
        self.content["notes"].append(text)
        write_json(self.path, self.content)

    def count(self, row):
        """How many measurements this row has."""
        return max(map(len, self.rows.get(row, {}).values()), default=0)
