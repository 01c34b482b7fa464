"""Measure again what the READMEs say about speed, and say what has changed since the last time.

python tests/benchmarks/run.py                   all tables; reckon with half an hour on two idle cores
python tests/benchmarks/run.py lesson data       these
python tests/benchmarks/run.py --write           put them into the READMEs too
python tests/benchmarks/run.py --smallest        does it run? The numbers mean nothing and are not kept

lesson    the lessons: an epoch, images/s, memory, accuracy; what is left of a step when the data cost nothing
step      where each microsecond of a step goes, from a bare loop to the last stage
pages     what TensorBoard's pages take of an epoch
data      the data alone, on one core
launch    from the command to the first step
scaling   1, 2 and 4 processes
cifar     ResNet-18 on CIFAR-10, with a GPU; only when it is named

What is compared is measured in turns, in random order. Each table's numbers are kept in tests/benchmarks/results/.
"""

import argparse
import importlib
import json
import logging
import os
import subprocess
import sys
import warnings
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]  # src/, lesson.py and cluster.py, measure.py

import report  # noqa: E402
from measure import loads, machine  # noqa: E402

TABLES = {"lesson": "lessons", "step": "steps", "pages": "pages", "data": "data_path", "launch": "launching",
          "scaling": "processes", "cifar": "cifar"}  # fmt: skip
BUSY = 0.5  # of the load average


def commit():
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or None


def measure(name, args):
    """Measure one table, print it, keep it."""
    result = {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "machine": machine(), "commit": commit()}
    loads[:] = [os.getloadavg()[0]]
    print(f"== {name}\n", flush=True)
    if loads[0] > BUSY:
        print(f"WARNING: the load average is {loads[0]:.2f}: something else runs here\n", flush=True)
    table = importlib.import_module(TABLES[name])
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # Lightning sets it when it is imported
    warnings.simplefilter("ignore")
    sections, targets = table.measure(args.smallest)
    result["load"] = list(loads)
    path = args.results / f"{name}.json"
    last = json.loads(path.read_text()) if path.exists() else None
    for key, section in sections.items():
        print(f"-- {key}\n\n{report.heading(section, result)}\n\n{report.markdown(section)}\n")
        print("\n".join([*report.changes(section, key, last), ""]), flush=True)
    print("\n".join([*map(str, targets), ""]), flush=True)
    if args.smallest and args.results == RESULTS:
        return
    result["sections"] = {key: asdict(section) for key, section in sections.items()}
    args.results.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{json.dumps(result, indent=1)}\n")
    if args.write:
        for key, section in sections.items():
            for readme in report.write_into_readmes(key, section, result):
                print(f"written into {readme}: {key}")


RESULTS = HERE / "results"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="table", help=", ".join(TABLES))
    parser.add_argument("--smallest", action="store_true", help="only to see whether it runs")
    parser.add_argument("--write", action="store_true", help="put the tables into the READMEs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the numbers are kept")
    args = parser.parse_args()
    for name in args.tables:
        if name not in TABLES:
            parser.error(f"there is no table {name}: there are {', '.join(TABLES)}")
    if args.smallest and args.write:
        parser.error("--smallest measures nothing that could be written: leave out one of them")
    if not args.smallest:  # the tests have a `python` of their own, which starts sooner
        os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for name in args.tables or [name for name in TABLES if name != "cifar"]:
        measure(name, args)


if __name__ == "__main__":
    main()
