"""Ask Slurm, and the system, which of the jobs run."""

import os
import re
import subprocess
from collections import defaultdict
from datetime import datetime

# States of squeue in which a job may still write into its folder.
ACTIVE = {
    *("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"),
    *("REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"),
}


def ask(*command):
    """The lines that a program of Slurm prints; none where it is not found or refuses."""
    return answer(*command) or []


def answer(*command):
    """The lines that a program of Slurm prints; None where it is not found or refuses."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError:
        return None
    return done.stdout.splitlines() if done.returncode == 0 else None


def when(text):
    """Slurm's 2026-01-31T12:00:00 without the T; - before a job has started."""
    return text.replace("T", " ") if text[:1].isdigit() else "-"


def attempts_of(ids):
    """Job id -> its attempts, each a dictionary with state, start, elapsed. One call of sacct and one of squeue.

    The id of the third task of an array is 12_3. A job that the queue no longer knows and that the accounting does not
    know either has ended, if the queue can be asked at all: its state is ENDED.
    """
    attempts = defaultdict(list)
    if not ids:
        return attempts
    arrays = {job.partition("_")[0] for job in ids}
    known_arrays = set()
    sacct = ["sacct", "-X", "-D", "--noheader", "--parsable2", "--format=JobID,State,Start,Elapsed"]
    for line in ask(*sacct, f"--jobs={','.join(sorted(arrays))}"):
        jobs, state, start, elapsed = line.split("|")
        known_arrays.add(jobs.partition("_")[0])
        for job in tasks_of(jobs):
            if job in ids:
                attempts[job].append({"state": state.split()[0], "start": when(start), "elapsed": elapsed})
    # The accounting comes a second late: of what is in the queue, the queue knows the truth.
    queue = answer("squeue", "--me", "--array", "--noheader", "--format=%i|%T|%S|%M")
    for line in queue or []:
        job, bar, rest = line.partition("|")
        if job not in ids or not bar:
            continue
        state, start, elapsed = rest.split("|")
        known = attempts[job]
        if known and known[-1]["state"] in ACTIVE:
            known.pop()
        start = "-" if state == "PENDING" else when(start)  # what squeue says of it is a guess
        known.append({"state": state, "start": start, "elapsed": elapsed})
    for job in ids:
        array, _, task = job.partition("_")
        if not attempts[job] and queue is not None:
            # The accounting has no row for a task that was cancelled while it waited.
            state = "CANCELLED" if task and array in known_arrays else "ENDED"
            attempts[job].append({"state": state, "start": "-", "elapsed": "-"})
    return attempts


def tasks_of(jobs):
    """The job ids in a row of sacct: 12, 12_3, or 12_[1-3,7%2], which are 12_1, 12_2, 12_3 and 12_7."""
    array, bracket, tasks = jobs.partition("_[")
    if not bracket:
        return [jobs]
    numbers = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        if match := re.fullmatch(r"([0-9]+)(?:-([0-9]+)(?::([0-9]+))?)?", part):  # else it was cut off: "..."
            first, last, step = match.groups()
            numbers += range(int(first), min(int(last or first), int(first) + 100_000) + 1, int(step or 1))
    return [f"{array}_{number}" for number in numbers]


def output_files(job):
    """Where Slurm writes the log of this job, or of the tasks of an array; an empty list if it does not say."""
    lines = ask("scontrol", "show", "job", job)
    return [line.partition("=")[2] for line in map(str.strip, lines) if line.startswith("StdOut=")]


def process_starts(pids):
    """When each of these processes started, in seconds of the system's clock; those that run.

    A process's number alone may be another's by now.
    """
    if not pids:
        return {}
    # With several columns in one -o, macOS takes all but the first for a heading.
    ps = ["ps", "-o", "pid=", "-o", "stat=", "-o", "lstart=", "-p", ",".join(str(pid) for pid in pids)]
    lines = subprocess.run(ps, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}).stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in lines]
    return {
        int(pid): datetime.strptime(start, "%a %b %d %H:%M:%S %Y").timestamp()
        for pid, state, start in rows
        if not state.startswith("Z")  # it has ended
    }


def command_line(pid):
    """The command line of a process; an empty text if it has ended."""
    return subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True).stdout


def descendants(pid):
    """A process and all that it started, parents first."""
    children = defaultdict(list)
    ps = ["ps", "-A", "-o", "pid=", "-o", "ppid="]
    for line in subprocess.run(ps, capture_output=True, text=True).stdout.splitlines():
        child, parent = map(int, line.split())
        children[parent].append(child)
    found = [pid]
    for one in found:
        found += children[one]
    return found
