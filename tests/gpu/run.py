"""Run everything that needs a GPU, the most important first. Each result is written as soon as it is known.

bash tests/gpu/run.sh OUT                         all steps; OUT is the folder for the results
bash tests/gpu/run.sh OUT --only record cost      only these steps
bash tests/gpu/run.sh OUT --skip-done             the steps that OUT does not have yet
bash tests/gpu/run.sh OUT --smoke                 a rehearsal on the CPU, as small as possible

Steps, in this order:
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from results import HERE, ROOT, read_json, write_json


class Step(NamedTuple):
    seconds: int  # its limit
    text: str
    resumes: bool = False  # whether it continues where it was interrupted


STEPS = {
    "images": Step(120, "unpack MNIST, make colour-MNIST, decode CIFAR-10"),
    "tests": Step(170, "the tests marked gpu"),
    "record": Step(200, "ResNet-18 on CIFAR-10: seconds and test accuracy, compiled and not compiled", resumes=True),
    "cost": Step(60, "Lightning, callbacks and TensorBoard over a bare loop"),
    "throughput": Step(60, "images/s from the device, memory, HDF5, and sample by sample"),
    "published": Step(60, "published speed runs, if there are any"),
}
SLOWER = 4  # two CPU cores get so many times these limits
LEAST = 10  # seconds: a step that would get less is not started
MARK = "GPU_RUN"  # in the environment of every process of a step
NEEDED = "import submitit, jsonargparse, optuna"


def read_arguments():
    width = max(map(len, STEPS))
    listed = "\n".join(f"    {name:{width}}  {step.text} (at most {step.seconds} s)" for name, step in STEPS.items())
    parser = argparse.ArgumentParser(
        prog="tests/gpu/run.sh",
        description=__doc__ + listed,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder for the results")
    parser.add_argument("--only", nargs="+", choices=STEPS, metavar="STEP", help="only these steps")
    parser.add_argument("--skip-done", action="store_true", help="skip the steps that OUT has already")
    parser.add_argument("--smoke", action="store_true", help="a rehearsal on the CPU")
    parser.add_argument("--minutes", type=float, default=8, help="limit for all steps together (default: 8)")
    parser.add_argument("--epochs", type=int, default=15, help="length of the record (default: 15)")
    parser.add_argument(
        "--prepared", type=Path, default=HERE / "prepared", help="the folder that prepare.sh filled; it may be missing"
    )
    parser.add_argument("--work", type=Path, help="the folder for data sets and runs (default: a temporary one)")
    args = parser.parse_args()
    if args.out.exists() and not args.skip_done and any(args.out.iterdir()):
        parser.error(f"{args.out} is not empty: name a new folder, or add --skip-done")
    return args


def find_python(prepared, work):
    """This Python if it has all packages; else a virtual environment with the wheels, on top of the packages here."""
    if subprocess.run([sys.executable, "-c", NEEDED], capture_output=True).returncode == 0:
        return sys.executable
    wheels = sorted((prepared / "wheels").glob("*.whl"))
    if not wheels:
        sys.exit(
            f"this Python cannot '{NEEDED}', and there are no wheels in {prepared}: run   "
            "bash tests/gpu/prepare.sh DIR   on a machine with network, then add --prepared DIR"
        )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", work / "env"], check=True)
    [packages] = work.glob("env/lib/python*/site-packages")
    install = "-m pip install --quiet --no-index --no-deps --no-cache-dir --disable-pip-version-check --target"
    subprocess.run([sys.executable, *install.split(), packages, *wheels], check=True)
    here = [folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))]
    (packages / "here.pth").write_text("\n".join(here) + "\n")
    return str(work / "env/bin/python")


def make_environment(args, work, python):
    """The environment of the steps."""
    environment = dict(os.environ)
    # `python` in a command is this one.
    environment["PATH"] = f"{Path(python).parent}:{environment['PATH']}"
    # The modules of the tests' own data sets and networks.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), environment.get("PYTHONPATH")]))
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(work / "compiled")
    environment["PREPARED"] = str(args.prepared)
    if args.smoke:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return environment


def describe_machine(args, python, environment):
    """Write machine.json. Exits if there is no GPU and this is no rehearsal."""
    code = """
import json, results, torch
from measure import machine
print(json.dumps({"machine": machine(), "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}))
"""
    done = subprocess.run([python, "-c", code], cwd=HERE, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the packages of this Python do not work together:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    if not found["gpu"] and not args.smoke:
        sys.exit("torch sees no GPU here: add --smoke to rehearse on the CPU")
    found["smoke"] = args.smoke
    path = args.out / "machine.json"
    before = read_json(path)
    if before and any(before[key] != value for key, value in found.items()):
        sys.exit(f"the results in {args.out} are from a different machine or setting: name a new folder")
    args.out.mkdir(parents=True, exist_ok=True)
    write_json(path, found | {"date": f"{datetime.now():%Y-%m-%d %H:%M}"})


def end_all(mark):
    """End every process of a step, including those that have left its process group."""
    from lesson import processes_with

    for _ in range(100):
        found = processes_with(f"{MARK}={mark}")
        if not found:
            break
        for folder in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(folder.name), signal.SIGKILL)
        time.sleep(0.05)


def perform(name, args, work, python, environment, seconds):
    """Run one step for at most so many seconds, and add its state to its JSON file. Returns the state."""
    path, mark = args.out / f"{name}.json", uuid.uuid4().hex
    if not STEPS[name].resumes:
        path.unlink(missing_ok=True)
    before = read_json(path).get("seconds", 0)
    command = [python, "-u", HERE / f"{name}.py", "--out", path, "--work", work, "--epochs", str(args.epochs)]
    started = time.monotonic()
    state = "interrupted"
    with open(args.out / "log.txt", "a") as log:
        print(f"\n== {name}, {datetime.now():%H:%M:%S}", file=log, flush=True)
        process = subprocess.Popen(
            [*command, *["--smoke"] * args.smoke],
            cwd=ROOT,
            env=environment | {MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            state = "failed" if process.wait(seconds) else "done"
        except subprocess.TimeoutExpired:
            state = "over its limit"
        finally:
            end_all(mark)
            process.wait()
            content = {"caption": "", "rows": {}, "notes": []} | read_json(path)
            write_json(path, content | {"state": state, "seconds": round(before + time.monotonic() - started, 1)})
            write_table(args.out)
    return state


def state_of(out, name):
    """done, failed, over its limit or interrupted; None: it was never started."""
    content = read_json(out / f"{name}.json")
    return content.get("state", "interrupted") if content else None


def write_table(out):
    """table.md: the results so far."""
    from measure import Table
    from report import markdown

    machine = read_json(out / "machine.json")
    text = [f"{machine['date']}, {machine['machine']}.", ""]
    if machine["smoke"]:
        text += ["A rehearsal on the CPU: the numbers mean nothing.", ""]
    text += ["| step | state | seconds |", "|---|---|---:|"]
    found = {name: read_json(out / f"{name}.json") for name in STEPS if state_of(out, name)}
    text += [f"| {name} | {step.get('state')} | {step.get('seconds', 0):.0f} |" for name, step in found.items()]
    for name, step in found.items():
        if step["rows"] or step["notes"]:
            text += ["", f"## {name}", "", step["caption"], ""]
        if step["rows"]:
            text += [markdown(Table(step["caption"], step["rows"])), ""]
        text += [f"- {note}" for note in step["notes"]]
    (out / "table.md").write_text("\n".join(text) + "\n")


def main():
    args = read_arguments()
    args.out, args.prepared = args.out.resolve(), args.prepared.resolve()
    deadline = time.monotonic() + 60 * args.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `finally` ends what was started
    work = args.work.resolve() if args.work else Path(tempfile.mkdtemp(prefix="gpu-run-"))
    work.mkdir(parents=True, exist_ok=True)
    try:
        python = find_python(args.prepared, work)
        environment = make_environment(args, work, python)
        describe_machine(args, python, environment)
        write_table(args.out)
        chosen = [name for name in STEPS if name in (args.only or STEPS)]
        if args.skip_done:  # the images are in the work folder, which is new
            chosen = [name for name in chosen if name == "images" or state_of(args.out, name) != "done"]
        if "images" not in chosen:
            chosen.insert(0, "images")
        again = [name for name in chosen if STEPS[name].resumes]
        for number, name in enumerate([*chosen, *again]):
            repeated = number >= len(chosen)
            if repeated and state_of(args.out, name) != "over its limit":
                continue
            left = deadline - time.monotonic()
            if left < LEAST:
                print(f"{name:12} no time left", flush=True)
                continue
            started = time.monotonic()
            limit = STEPS[name].seconds * (SLOWER if args.smoke else 1)
            state = perform(name, args, work, python, environment, left if repeated else min(left, limit))
            print(f"{name:12} {state} after {time.monotonic() - started:.0f} s", flush=True)
    finally:
        if args.work is None:
            shutil.rmtree(work, ignore_errors=True)
    print(f"\n{(args.out / 'table.md').read_text()}")
    if unfinished := [name for name in chosen if state_of(args.out, name) != "done"]:
        sys.exit(f"not done: {', '.join(unfinished)}; {args.out}/log.txt has the output, --skip-done continues")


if __name__ == "__main__":
    main()
