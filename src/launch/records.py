"""A run's folder, and run.json in it: what was asked for, when, and which job or process it became."""

import dataclasses
import itertools
import json
import os
import re
import socket
import sys
import types
import typing
from datetime import datetime
from pathlib import Path

from src.launch.files import Unreadable, log_path, nearest, path_or_exit, read_text
from src.launch.job import Job, megabytes, minutes
from src.launch.slurm import process_starts
from src.settings import shortened

TIME = "%Y-%m-%d %H:%M:%S"
JOB_TYPES = typing.get_type_hints(Job)


def make_folder(job):
    """Make the folder of a run without a job id: <time>_<name>, with _2, _3 ... where that is there already.

    Not the process's number: the system gives it again to another, and two runs would share a folder.
    """
    name = Path(job.log_path) / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{job.name}"
    for number in itertools.count(1):
        folder = name if number == 1 else name.with_name(f"{name.name}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue


def is_trial(folder):
    """Whether a run is a trial of a hyperparameter search: then its folder is in that of the study."""
    return (folder.parent / "study.yaml").is_file()


def name_of(folder):
    """What find_run() finds: 12, or lr/3 for trial 3 of study lr."""
    return f"{folder.parent.name}/{folder.name}" if is_trial(folder) else folder.name


def parent_of(folder):
    """The folder of the runs in which a run lies: logs/, also for a trial."""
    return folder.parent.parent if is_trial(folder) else folder.parent


def typed(folder, *parts):
    """How a run or a study, or a part of it, is named in a command."""
    known = folder.parent == log_path()
    return "/".join([folder.name if known else os.path.relpath(folder), *map(str, parts)])


def list_typed(folder):
    """The command that lists the runs among which this folder lies."""
    known = folder.parent == log_path()
    return "list" if known else f"list --log_path {os.path.relpath(folder.parent)}"


def refuse_trial(folder):
    """resume: what a trial is worth has to be told to its study."""
    trial = folder / "trial.json"
    if is_trial(folder) and not (trial.exists() and "state" in read_json(trial)):
        study = folder.parent.name
        sys.exit(f"{name_of(folder)} is a trial that is not finished: python run.py resume {study} goes on with it")


def find_study(name):
    """The folder of a hyperparameter search: its path, or its name in logs/. None if it is something else."""
    folders = (path_or_exit(name, "the run"), path_or_exit(log_path() / name, "the run"))
    return next((folder for folder in folders if (folder / "study.yaml").is_file()), None)


def find_run(name):
    """The folder of a run: its path, or its name in logs/."""
    folders = (path_or_exit(name, "the run"), path_or_exit(log_path() / name, "the run"))
    for file in ("run.json", "config.yaml"):  # a run that run.py has not started has no run.json
        for folder in folders:
            if os.path.lexists(folder / file) and not (folder / "study.yaml").is_file():
                return folder
    if find_study(name):
        sys.exit(f"{name} is a search: its runs are {name}/0, {name}/1, ...; python run.py search {name} shows them")
    near = nearest(name[:255], [path.parent.name for path in log_path().glob("*/run.json")])
    hint = f"did you mean {near}?" if near else "python run.py list names those there are"
    sys.exit(f"there is no run {shortened(name)}: {hint}")


def config_of(folder):
    """The path of a run's configuration."""
    path = folder / "config.yaml"
    if not path.is_file():
        sys.exit(f"{folder} holds no config.yaml: it is not a run that can be gone on with")
    return path


def read_record(folder):
    """The record in run.json: command, job, submissions. Exits with one sentence if it cannot be read."""
    try:
        return record_of(folder)
    except Unreadable as error:
        sys.exit(str(error))


def record_of(folder):
    """The record in run.json. Its values have the types that the rest of this program relies on.

    Raises:
        Unreadable: with one sentence
    """
    path = folder / "run.json"
    if not os.path.lexists(path):
        raise Unreadable(f"{folder} has no run.json: run.py did not start this run, so nothing is known of its job")
    record = parsed_json(path)
    if reason := why_wrong(record):
        raise Unreadable(f"{path} is no record of a run: {reason}")
    return record


def read_json(path):
    """The dictionary in a JSON file. Ends with one sentence if there is none."""
    try:
        return parsed_json(path)
    except Unreadable as error:
        sys.exit(str(error))


def parsed_json(path):
    """The dictionary in a JSON file.

    Raises:
        Unreadable: with one sentence
    """
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError):
        raise Unreadable(f"{path} is empty or damaged: it is not JSON") from None
    if not isinstance(content, dict):
        raise Unreadable(f"{path} is damaged: it does not hold a dictionary")
    return content


def why_wrong(record):
    """The fault of a record, in words; None if there is none."""
    job, submissions = record.get("job"), record.get("submissions")
    if record.get("command") not in ("fit", "validate", "test", "predict"):
        return "command is not fit, validate, test or predict"
    if not isinstance(job, dict):
        return "job is not a dictionary"
    for name, value in job.items():
        if name in JOB_TYPES and not fits(value, JOB_TYPES[name]):
            return f"job: {name} has the wrong type"
    if missing := [name for name in ("cluster", "nodes", "tasks_per_node", "cpus_per_task") if job.get(name) is None]:
        return f"job: {missing[0]} is missing"
    try:
        megabytes(job.get("mem", ""))
        minutes(job.get("time", ""))
    except ValueError:
        return "job: mem or time is missing or wrong"
    if not isinstance(submissions, list) or not submissions:
        return "submissions is not a list, or it is empty"
    for submission in submissions:
        if not isinstance(submission, dict) or (reason := wrong_in(submission)):
            return f"submissions: {reason if isinstance(submission, dict) else 'one is not a dictionary'}"
    if job["cluster"] not in ("pbs", "sge") and not {"id", "pid"} & set(submissions[-1]):
        return "submissions: there is neither a job id nor the number of a process"
    return None


def wrong_in(submission):
    """Which value of a submission cannot be right; None if all can be."""
    for name in ("submitted", "ended"):
        try:
            if name in submission or name == "submitted":
                datetime.strptime(submission[name], TIME).timestamp()
        except (KeyError, TypeError, ValueError, OverflowError):
            return f"{name} is not a time"
    for name, expression in {
        "id": r"[0-9]{1,20}(_[0-9]{1,20})?",
        "host": r"[\w.-]{1,255}",
        "outcome": r"[A-Z_]{1,30}",
    }.items():
        if name in submission and not (
            isinstance(submission[name], str) and re.fullmatch(expression, submission[name])
        ):
            return f"{name} is wrong"
    if "pid" in submission:
        pid, started = submission["pid"], submission.get("started")
        if type(pid) is not int or not 1 < pid < 2**31 or type(started) not in (int, float, type(None)):
            return "pid or started is wrong"
    return None


def fits(value, kind):
    """Whether a value from JSON is of the type of a field of Job."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        return any(fits(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is typing.Literal:
        return value in typing.get_args(kind)
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)
    if issubclass(kind, int):  # PositiveInt, NonNegativeInt
        return type(value) is int and 0 <= value < 10**9 and (value > 0 or kind.__name__ != "PositiveInt")
    return isinstance(value, kind)


def write_json(path, content):
    """All of it or nothing, also after a power cut or on a full disk: run.py list may be reading."""
    new = path.with_suffix(f".{os.getpid()}")
    try:
        new.unlink(missing_ok=True)
        with open(new, "x") as file:  # not through a link that somebody has put there
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name is on the disk too
    except OSError:  # a file system that cannot do this
        pass
    finally:
        os.close(folder)


def write_record(folder, command, job, **submission):
    """Note a submission.

    Args:
        job: what is asked for, a Job
        submission: id of the Slurm job, or this_process()
    """
    path = folder / "run.json"
    record = read_record(folder) if path.exists() else {"command": command, "submissions": []}
    record["job"] = dataclasses.asdict(job)
    record["submissions"].append({"submitted": f"{datetime.now():{TIME}}", **submission})
    write_json(path, record)


def write_end(folder, outcome):
    """Note how the last submission ended, where nobody else does."""
    record = read_record(folder)
    record["submissions"][-1] |= {"ended": f"{datetime.now():{TIME}}", "outcome": outcome}
    write_json(folder / "run.json", record)


def this_process(pid):
    """What tells this process from another with its number, later or on another machine."""
    return {"pid": pid, "started": process_starts([pid]).get(pid), "host": socket.gethostname()}


def is_running(submission, starts):
    """Whether the process that was started then runs still.

    Args:
        starts: what process_starts() has found
    """
    if submission.get("host") != socket.gethostname() or "outcome" in submission:
        return False
    started = starts.get(submission["pid"])
    if started is None or submission["started"] is None:
        return False
    return abs(started - submission["started"]) < 3  # ps counts from now backwards, and may be a second off
