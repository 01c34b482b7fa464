"""Ask Slurm, and the system, which of the jobs run."""

import os
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
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def when(text):
    """Slurm's 2026-01-31T12:00:00 without the T; - before a job has started."""
    return text.replace("T", " ") if text[:1].isdigit() else "-"


def attempts_of(ids):
    """Job id -> its attempts, each a dictionary with state, start, elapsed. One call of sacct and one of squeue.

    The id of the third task of an array is 12_3.
    """
    attempts = defaultdict(list)
    if not ids:
        return attempts
    sacct = ["sacct", "-X", "-D", "--noheader", "--parsable2", "--format=JobID,State,Start,Elapsed"]
    for line in ask(*sacct, f"--jobs={','.join(ids)}"):
        job, state, start, elapsed = line.split("|")
        if job not in ids:  # 12_[5-9%4], those of an array that wait
            continue
        attempts[job].append({"state": state.split()[0], "start": when(start), "elapsed": elapsed})
    # The accounting comes a second late: of what is in the queue, the queue knows the truth.
    for line in ask("squeue", "--me", "--array", "--noheader", "--format=%i|%T|%S|%M"):
        job, state, start, elapsed = line.split("|")
        if job not in ids:
            continue
        known = attempts[job]
        if known and known[-1]["state"] in ACTIVE:
            known.pop()
        start = "-" if state == "PENDING" else when(start)  # what squeue says of it is a guess
        known.append({"state": state, "start": start, "elapsed": elapsed})
    return attempts


def process_starts(pids):
    """When each of these processes started, in seconds of the system's clock; those that run.

    A process's number alone may be another's by now.
    """
    if not pids:
        return {}
    # Of several columns in one -o macOS takes all but the first for a heading.
    ps = ["ps", "-o", "pid=", "-o", "stat=", "-o", "lstart=", "-p", ",".join(str(pid) for pid in pids)]
    lines = subprocess.run(ps, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}).stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in lines]
    return {
        int(pid): datetime.strptime(start, "%a %b %d %H:%M:%S %Y").timestamp()
        for pid, state, start in rows
        if not state.startswith("Z")  # it has ended
    }


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
