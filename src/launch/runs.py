"""The runs in logs/: list them, read their logs, cancel them."""

import contextlib
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from src.launch import qsub
from src.launch.files import log_path
from src.launch.records import TIME, find_run, is_running, name_of, read_record, write_end
from src.launch.slurm import ACTIVE, attempts_of, descendants, process_starts


def only_run(command, argv):
    """The run that is the command's only word."""
    if len(argv) != 1 or argv[0].startswith("-"):
        sys.exit(f"{command} takes one run: python run.py {command} RUN; python run.py list names them")
    return find_run(argv[0])


def ids_of(records):
    """The Slurm job ids in these records."""
    return [submission["id"] for record in records for submission in record["submissions"] if "id" in submission]


def outcome_of(folder, submission, tasks):
    """How a run ended that Slurm knows nothing about: by what its processes, so many as tasks, have left."""
    if "outcome" in submission:
        return submission["outcome"]
    # Each is a pickled pair: "success" or "error", and what the process returned or said.
    files = folder.glob(f"{submission.get('id') or submission.get('pid')}_*_result.pkl")
    succeeded = [pickle.loads(file.read_bytes())[0] == "success" for file in files]
    if len(succeeded) == tasks and all(succeeded):
        return "COMPLETED"
    host = submission.get("host", "Slurm")
    return "FAILED" if host == socket.gethostname() else f"UNKNOWN (on {host})"


def describe_run(folder, record, slurm, starts):
    """One run as a dictionary: state, start, elapsed, attempts."""
    last = record["submissions"][-1]
    attempts = sum(len(slurm.get(submission.get("id"), [1])) for submission in record["submissions"])
    if slurm.get(last.get("id")):
        return {**slurm[last["id"]][-1], "attempts": attempts}
    if record["job"]["cluster"] in qsub.CLUSTERS:
        state, attempts = qsub.describe(folder, record)
        end = time.time() if state in ACTIVE else max(path.stat().st_mtime for path in folder.iterdir())
    elif is_running(last, starts):
        state, end = "RUNNING", time.time()
    else:
        state = outcome_of(folder, last, record["job"]["nodes"] * record["job"]["tasks_per_node"])
        end = max(path.stat().st_mtime for path in folder.iterdir())
    if "ended" in last:
        end = datetime.strptime(last["ended"], TIME).timestamp()
    elapsed = clock(max(0, end - datetime.strptime(last["submitted"], TIME).timestamp()))
    return {"state": state, "start": last["submitted"], "elapsed": elapsed, "attempts": attempts}


def clock(seconds):
    """Seconds as HH:MM:SS."""
    return f"{int(seconds) // 3600:02}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def describe_all(folders):
    """folder -> describe_run() of each."""
    records = {folder: read_record(folder) for folder in folders}
    slurm = attempts_of(ids_of(records.values()))
    pids = [
        submission["pid"] for record in records.values() for submission in record["submissions"] if "pid" in submission
    ]
    starts = process_starts(pids)
    return {folder: describe_run(folder, record, slurm, starts) for folder, record in records.items()}


def log_file(folder):
    """The log of the first process of the last job in the folder. It may not be there yet."""
    record = read_record(folder)
    if record["job"]["cluster"] in qsub.CLUSTERS:
        return folder / "log.out"
    last = record["submissions"][-1]
    return folder / f"{last.get('id') or last['pid']}_0_log.out"


def progress(folder):
    """The last epoch's line in the log, else its last line."""
    path = log_file(folder)
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 100_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    epochs = [match[0] for line in lines if (match := re.search(r"epoch: \d+/\d+.*", line))]
    return re.sub(" {2,}", ", ", (epochs or lines or [""])[-1])


def list_(argv):
    """A table of all runs."""
    if argv and argv[0].partition("=")[0] != "--log_path":
        sys.exit("list takes nothing but --log_path FOLDER")
    parent = Path(argv[0].partition("=")[2] or argv[-1]).resolve() if argv else log_path()
    runs = [path.parent for pattern in ("*/run.json", "*/*/run.json") for path in parent.glob(pattern)]
    described = describe_all(sorted(runs, key=lambda folder: (len(folder.name), folder)))  # trial 10 comes after 9
    if not described:
        print(f"no runs in {parent}")
        return
    rows = [("run", "state", "name", "command", "processes", "started", "elapsed", "attempts", "progress")]
    records = {folder: read_record(folder) for folder in described}
    for folder, record in sorted(records.items(), key=lambda item: item[1]["submissions"][0]["submitted"]):
        seen = described[folder]
        job = record["job"]
        processes = f"{job['nodes']} x {job['tasks_per_node']}"
        rows.append((name_of(folder), seen["state"], job["name"], record["command"], processes, seen["start"],
                     seen["elapsed"], str(seen["attempts"]), progress(folder)))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    columns = shutil.get_terminal_size((240, 24)).columns if sys.stdout.isatty() else 10_000
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()[:columns])
    print("\nwhat a run used, and what to ask for next time: python run.py report RUN")


def log_(argv):
    """Print the log of a run's first process; -f follows it."""
    follow = "-f" in argv
    folder = only_run("log", [word for word in argv if word != "-f"])
    path = log_file(folder)
    if read_record(folder)["job"]["cluster"] == "debug":
        sys.exit(f"{folder.name} ran in its own terminal (--cluster debug): it has no log file")
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            subprocess.run(["tail", "-n", "+1", "-F", path])  # it waits for a file that is not there yet
        return
    if not path.exists():
        sys.exit(f"{folder.name} has no log yet: it waits in the queue, see   python run.py list")
    sys.stdout.write(path.read_text(errors="replace"))
    errors = path.with_suffix(".err")
    if errors.exists() and errors.stat().st_size:
        print(f"there are messages in {os.path.relpath(errors)}", file=sys.stderr)


def cancel_(argv):
    """End a run, by Slurm or here."""
    folder = only_run("cancel", argv)
    record = read_record(folder)
    last = record["submissions"][-1]
    state = describe_all([folder])[folder]["state"]
    if state not in ACTIVE:
        print(f"{folder.name} does not run: {state}")
        return
    if "id" in last:
        done = subprocess.run(["scancel", last["id"]], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"Slurm did not cancel job {last['id']}: {done.stderr.strip()}")
        print(f"cancelled job {last['id']}, which was {state}")
        return
    if record["job"]["cluster"] in qsub.CLUSTERS:
        qsub.cancel(folder)
        write_end(folder, "CANCELLED")
        print(f"cancelled {folder.name}, which was {state}")
        return
    # The process submitit started, and under it one for each task, each perhaps with its data workers.
    for pid in descendants(last["pid"]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    write_end(folder, "CANCELLED")
    print(f"cancelled {folder.name}: ended process {last['pid']} and those it had started")


def refuse_while_running(folder):
    """resume: two jobs in one folder would overwrite each other's checkpoints."""
    state = describe_all([folder])[folder]["state"]
    if state in ACTIVE:
        sys.exit(f"{folder.name} is {state}: wait until it has ended, or type   python run.py cancel {folder.name}")
    if state.startswith("UNKNOWN"):
        sys.exit(f"whether {folder.name} still runs cannot be seen from here: its state is {state}")
