"""From a command to the first step: what describes a job, what submits it, and what the job does before it trains."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cluster import Cluster, unavailable
from lesson import Root
from measure import ROOT, Table, rounds

COMMANDS = {
    "python -c pass": "-c pass",
    "python run.py --help": "run.py --help",
    "python run.py list": "run.py list",
    "python run.py --nodes 2 --tasks_per_node 2 --dry_run": "run.py --nodes 2 --tasks_per_node 2 --dry_run",
    "for comparison: import torch": "-c 'import torch'",
    "for comparison: import lightning": "-c 'import lightning'",
}
FIRST_STEP = Path(__file__).parent / "first_step.py"
PARTS = ["imports", "configuration", "data", "network", "summary of the network", "logger", "process group",
         "first step", "the rest", "total"]  # fmt: skip


def commands(turns, names):
    table = Table("Seconds of a command that describes or lists jobs, beside what it does not import.")
    table.rows = {name: {} for name in names}
    for _, name in rounds(names, turns):
        start = time.perf_counter()
        subprocess.run(f"{sys.executable} {COMMANDS[name]}", shell=True, cwd=ROOT, check=True, capture_output=True)
        table.add(name, seconds=time.perf_counter() - start)
    return table


def first_step(processes):
    """{part: seconds} of the first of these processes."""
    with tempfile.TemporaryDirectory() as folder:
        run_folder = f"{folder}/run"
        started = []
        for rank in range(processes):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            environment = os.environ | {name: str(value) for name, value in ranks.items()}
            environment |= {"BENCHMARK_BEGAN": str(time.time()), "GROUP_RANK": "0"}  # the port follows from our pid
            command = [sys.executable, str(FIRST_STEP), run_folder, "--threads", "1", "--accelerator", "cpu"]
            started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        for process in started:
            output = process.communicate()[0].decode()
            assert process.returncode == 0, output
        return json.loads(Path(f"{run_folder}.json").read_text())


def first_steps(turns, most):
    table = Table("From the start of `python src/train.py fit` (mlp, MNIST) to the end of its first step, in seconds.")
    cases = {"one process": 1, "two processes, the first of them": 2}
    cases = {name: count for name, count in cases.items() if count <= most}
    table.rows = {name: {part: [] for part in PARTS} for name in cases}
    for _, name in rounds(cases, turns):
        found = first_step(cases[name])
        for part in PARTS:
            table.rows[name][part].append(found.get(part, 0.0))
    return table


def wait_until(condition, limit=120):
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline, f"waited {limit} s in vain"
        time.sleep(0.02)
    return time.perf_counter()


def submit(root, shell, is_running):
    """Seconds from the command to its end, from there to a running job, and from there to its first epoch line.

    Args:
        root: a copy of this repository
        shell: types a command in it; returns a CompletedProcess
        is_running: whether the job with this id runs; None: without Slurm
    """
    start = time.perf_counter()
    done = shell("python run.py --smoke --cpus_per_task 1" + ("" if is_running else " --cluster local"))
    returned = time.perf_counter()
    assert done.returncode == 0, done.stdout + done.stderr
    name = re.search(r"^run (\S+)", done.stdout, re.MULTILINE)[1]

    def log():
        return "".join(path.read_text() for path in root.folder.glob(f"logs/{name}/*_0_log.out"))

    running = wait_until(lambda: is_running(name)) if is_running else returned
    learned = wait_until(lambda: "epoch: 01" in log())
    wait_until(lambda: "the weights are" in log())
    return {
        "typed_to_prompt": returned - start,
        "prompt_to_running": running - returned,
        "running_to_epoch_line": learned - running,
    }


def submissions(turns, smallest):
    table = Table(
        "Submitting `python run.py --smoke`, one batch of training and one of validation, in seconds: until the prompt "
        "is back (data and flags are checked by then), from there until the job runs, from there to the epoch line."
    )
    slurm = not smallest and unavailable() is None
    names = ["--cluster local", *(["practice cluster"] if slurm else [])]
    table.rows = {name: {} for name in names}
    with tempfile.TemporaryDirectory() as parent:
        root = Root("09-surviving-preemption", Path(parent))

        def here(command):
            return root.shell(command, real=True)

        if not slurm:
            for _ in range(turns):
                table.add(names[0], **submit(root, here, None))
            return table
        with Cluster() as cluster:

            def runs(job):
                return cluster.run(f"squeue --noheader --format=%T --jobs={job}", "/").stdout.strip() != "PENDING"

            for _, name in rounds(names, turns):
                on_slurm = name == "practice cluster"
                shell = (lambda command: cluster.run(command, root.folder)) if on_slurm else here
                table.add(name, **submit(root, shell, runs if on_slurm else None))
    return table


def measure(smallest):
    if smallest:
        sections = {"launch": commands(1, list(COMMANDS)[:2]), "launch-step": first_steps(1, 1)}
    else:
        sections = {"launch": commands(10, list(COMMANDS)), "launch-step": first_steps(5, 2)}
    sections["launch-submit"] = submissions(1 if smallest else 4, smallest)
    return sections, []
