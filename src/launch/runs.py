"""The runs in logs/: list them, read their logs, cancel them."""

import contextlib
import fcntl
import os
import pickle
import pickletools
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
from src.launch.files import Unreadable, log_path, open_regular, path_or_exit, read_bytes
from src.launch.records import TIME, find_run, is_running, name_of, read_record, record_of, write_end
from src.launch.slurm import ACTIVE, attempts_of, command_line, descendants, output_files, process_starts
from src.settings import printable

# All that is in a pickle of a pair of texts. Other instructions make objects and call functions, and the folder of a
# run may be a stranger's.
PLAIN = {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "SHORT_BINUNICODE", "BINUNICODE", "NONE", "TUPLE2", "STOP"}


def only_run(command, argv):
    """The run that is the command's only word."""
    if len(argv) != 1 or argv[0].startswith("-"):
        sys.exit(f"{command} takes one run: python run.py {command} RUN; python run.py list names them")
    return find_run(argv[0])


def ids_of(records):
    """The Slurm job ids in these records."""
    return [submission["id"] for record in records for submission in record["submissions"] if "id" in submission]


def outcome_of(folder, submission, tasks, ended=False):
    """How a run ended that Slurm knows nothing about: by what its processes, so many as tasks, have left.

    Args:
        ended: whether it is known that it has ended
    """
    if "outcome" in submission:
        return submission["outcome"]
    files = folder.glob(f"{submission.get('id') or submission.get('pid')}_*_result.pkl")
    succeeded = [has_succeeded(file) for file in files]
    if len(succeeded) == tasks and all(succeeded):
        return "COMPLETED"
    if ended:
        return "ENDED"
    host = submission.get("host", "Slurm")
    return "FAILED" if host == socket.gethostname() else f"UNKNOWN (on {host})"


def has_succeeded(file):
    """Whether a process has left a pickled pair whose first text is "success". The other is what it returned or said.

    Anything else in the file counts as a failure, and nothing of it is executed.
    """
    try:
        content = read_bytes(file)
        if not all(operation.name in PLAIN for operation, _, _ in pickletools.genops(content)):
            return False
        result = pickle.loads(content)
    except (Unreadable, ValueError, IndexError, pickle.UnpicklingError, EOFError):
        return False
    return isinstance(result, tuple) and len(result) == 2 and result[0] == "success"


def last_change(folder):
    """When something in the folder was changed for the last time, in seconds."""
    times = [0.0]
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # it has just been removed
            times.append(path.lstat().st_mtime)
    return max(times)


def describe_run(folder, record, slurm, starts):
    """One run as a dictionary: state, start, elapsed, attempts."""
    last = record["submissions"][-1]
    attempts = sum(len(slurm.get(submission.get("id"), [1])) for submission in record["submissions"])
    ended = False
    if slurm.get(last.get("id")):
        seen = slurm[last["id"]][-1]
        if seen["state"] != "ENDED":
            return {**seen, "attempts": attempts}
        ended = folder.stat().st_uid == os.getuid()  # the queue was asked for our jobs alone
    if record["job"]["cluster"] in qsub.CLUSTERS:
        state, attempts = qsub.describe(folder, record)
        end = time.time() if state in ACTIVE else last_change(folder)
    elif is_running(last, starts):
        state, end = "RUNNING", time.time()
    else:
        state = outcome_of(folder, last, record["job"]["nodes"] * record["job"]["tasks_per_node"], ended)
        end = last_change(folder)
    if "ended" in last:
        end = datetime.strptime(last["ended"], TIME).timestamp()
    elapsed = clock(max(0, end - datetime.strptime(last["submitted"], TIME).timestamp()))
    return {"state": state, "start": last["submitted"], "elapsed": elapsed, "attempts": attempts}


def clock(seconds):
    """Seconds as HH:MM:SS."""
    return f"{int(seconds) // 3600:02}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"


def describe_all(folders):
    """folder -> describe_run() of each. The state of one whose record cannot be read is UNREADABLE; it has a reason."""
    records, unreadable = {}, {}
    for folder in folders:
        try:
            records[folder] = record_of(folder)
        except Unreadable as error:
            state = "UNREADABLE" if os.path.lexists(folder / "run.json") else "UNKNOWN"
            unreadable[folder] = not_described(error) | {"state": state}
    slurm = attempts_of(ids_of(records.values()))
    pids = [
        submission["pid"] for record in records.values() for submission in record["submissions"] if "pid" in submission
    ]
    starts = process_starts(pids)
    described = {}
    for folder, record in records.items():
        try:
            described[folder] = describe_run(folder, record, slurm, starts)
        except (OSError, Unreadable) as error:  # another user's, or it has just been removed
            unreadable[folder] = not_described(error)
    return described | unreadable


def not_described(reason):
    """In place of what describe_run() says."""
    return {"state": "UNREADABLE", "start": "-", "elapsed": "-", "attempts": "-", "reason": str(reason)}


def log_file(folder, record):
    """The log of the first process of the last job in the folder. It may not be there yet."""
    if record["job"]["cluster"] in qsub.CLUSTERS:
        return folder / "log.out"
    last = record["submissions"][-1]
    return folder / f"{last.get('id') or last['pid']}_0_log.out"


def progress(folder, record):
    """The last epoch's line in the log, else its last line."""
    try:
        file = open_regular(log_file(folder, record))
    except (OSError, Unreadable):
        return ""
    with file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 100_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    epochs = [match[0] for line in lines if (match := re.search(r"epoch: \d+/\d+.*", line))]
    return re.sub(" {2,}", ", ", (epochs or lines or [""])[-1])


def list_(argv):
    """A table of all runs."""
    if argv and argv[0].partition("=")[0] != "--log_path":
        sys.exit("list takes nothing but --log_path FOLDER")
    words = argv[0].split("=", 1) + argv[1:] if argv else ["", log_path()]
    if len(words) != 2 or not words[1]:
        sys.exit("--log_path needs a value: list takes nothing but --log_path FOLDER")
    parent = path_or_exit(words[1], "--log_path")
    if argv and not parent.is_dir():
        sys.exit(f"--log_path {words[1]}: there is no such folder")
    try:
        with os.scandir(parent) if parent.exists() else contextlib.nullcontext():
            pass
    except OSError as error:
        sys.exit(f"cannot read {parent}: {error.strerror}")
    runs = []
    for folder in folders_in(parent):
        trials = [trial for trial in folders_in(folder) if os.path.lexists(trial / "run.json")]
        runs += trials
        # A run that run.py has not started has no run.json. A study has none either.
        if os.path.lexists(folder / "run.json") or (
            os.path.lexists(folder / "config.yaml") and not trials and not os.path.lexists(folder / "study.yaml")
        ):
            runs.append(folder)
    described = describe_all(sorted(runs, key=lambda folder: (len(folder.name), folder)))  # trial 10 comes after 9
    if not described:
        print(f"no runs in {parent}")
        return
    rows = [("run", "state", "name", "command", "processes", "started", "elapsed", "attempts", "progress")]
    for folder, seen in described.items():
        if "reason" in seen:
            rows.append((name_of(folder), seen["state"], *"------", seen["reason"]))
    records = {}
    for folder, seen in described.items():
        with contextlib.suppress(Unreadable):  # or it is a row already
            if "reason" not in seen:
                records[folder] = record_of(folder)
    for folder, record in sorted(records.items(), key=lambda item: item[1]["submissions"][0]["submitted"]):
        seen = described[folder]
        job = record["job"]
        processes = f"{job['nodes']} x {job['tasks_per_node']}"
        rows.append((name_of(folder), seen["state"], job.get("name") or "-", record["command"], processes,
                     seen["start"], seen["elapsed"], str(seen["attempts"]), progress(folder, record)))  # fmt: skip
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    columns = shutil.get_terminal_size((240, 24)).columns if sys.stdout.isatty() else 10_000
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()[:columns])
    print("\nwhat a run used, and what to ask for next time: python run.py report RUN")


def log_(argv):
    """Print the log of a run's first process; -f follows it."""
    follow = "-f" in argv
    folder = only_run("log", [word for word in argv if word != "-f"])
    record = read_record(folder)
    path = log_file(folder, record)
    if record["job"]["cluster"] == "debug":
        sys.exit(f"{folder.name} ran in its own terminal (--cluster debug): it has no log file")
    if os.path.lexists(path) and not path.is_file():
        sys.exit(f"{path} is not a regular file, so it is no log")
    if follow:
        with contextlib.suppress(KeyboardInterrupt):
            subprocess.run(["tail", "-n", "+1", "-F", path])  # it waits for a file that is not there yet
        return
    if not path.exists():
        sys.exit(f"{folder.name} has no log yet: it waits in the queue, see   python run.py list")
    try:
        with open_regular(path) as file:
            for line in file:
                sys.stdout.write(line.decode(errors="replace"))
    except (OSError, Unreadable) as error:
        sys.exit(f"cannot read {path}: {getattr(error, 'strerror', None) or error}")
    errors = path.with_suffix(".err")
    if errors.is_file() and errors.stat().st_size:
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
    refuse_foreign_job(folder, record, last)
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
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:
            sys.exit(f"process {pid} of {folder.name} belongs to another user: only that user can cancel the run")
    write_end(folder, "CANCELLED")
    print(f"cancelled {folder.name}: ended process {last['pid']} and those it had started")


def refuse_foreign_job(folder, record, submission):
    """cancel: run.json may be somebody else's, or older than the job that has this number now."""
    if record["job"]["cluster"] in qsub.CLUSTERS:
        job, works_here = qsub.id_of(folder), qsub.writes_into(record["job"]["cluster"], folder)
    elif "id" in submission:
        job = submission["id"]
        logs = [Path(file).parent for file in output_files(job)]
        if "_" in job:  # a task that waits has no folder of its own yet
            logs, own = [log.parent for log in logs], folder.parent
        else:
            own = folder
        works_here = bool(logs) and all(log.resolve() == own for log in logs)
    else:
        job = f"of process {submission['pid']}"
        line = command_line(submission["pid"])
        # With --cluster debug the process is that in which the command was typed.
        works_here = str(folder) in line or (record["job"]["cluster"] == "debug" and "run.py" in line)
    if not works_here:
        sys.exit(f"job {job} does not write into {folder}: it is another job that has this number now")


def folders_in(parent):
    """The folders in a folder; an empty list if it cannot be read."""
    try:
        with os.scandir(parent) as entries:
            return [parent / entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def refuse_while_locked(folder):
    """The same for a run without run.json. The lock is seen on this machine, and on others where the disk has locks."""
    try:
        number = os.open(folder / ".taken", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # nobody has trained there
        return
    try:
        fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        sys.exit(f"{folder.name} is in use by a training: wait until it has ended")
    except OSError:  # a file system without locks
        pass
    finally:
        os.close(number)


def refuse_while_running(folder):
    """resume: two jobs in one folder would overwrite each other's checkpoints."""
    if not os.path.lexists(folder / "run.json"):  # torchrun or mpirun started it; the training locks its folder
        refuse_while_locked(folder)
        return
    seen = describe_all([folder])[folder]
    state = seen["state"]
    if "reason" in seen:
        sys.exit(seen["reason"])
    if state == "ENDED":
        print(
            f"the queue no longer holds the last job of {folder.name}, and nothing says how it ended: the run resumes",
            file=sys.stderr,
        )
    if state in ACTIVE:
        sys.exit(f"{folder.name} is {state}: wait until it has ended, or type   python run.py cancel {folder.name}")
    if state.startswith("UNKNOWN"):
        sys.exit(f"whether {folder.name} still runs cannot be seen from here: its state is {state}")
