"""A run's folder, and run.json in it: what was asked for, when, and which job or process it became."""

import dataclasses
import itertools
import json
import os
import socket
import sys
from datetime import datetime
from pathlib import Path

from src.launch.files import log_path, nearest
from src.launch.slurm import process_starts

TIME = "%Y-%m-%d %H:%M:%S"


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
    if is_trial(folder) and not (trial.exists() and "state" in json.loads(trial.read_text())):
        study = folder.parent.name
        sys.exit(f"{name_of(folder)} is a trial that is not finished: python run.py resume {study} goes on with it")


def find_study(name):
    """The folder of a hyperparameter search: its path, or its name in logs/. None if it is something else."""
    folders = (Path(name).expanduser(), log_path() / name)
    return next((folder.resolve() for folder in folders if (folder / "study.yaml").is_file()), None)


def find_run(name):
    """The folder of a run: its path, or its name in logs/."""
    for folder in (Path(name).expanduser(), log_path() / name):
        if (folder / "run.json").is_file():
            return folder.resolve()
    if find_study(name):
        sys.exit(f"{name} is a search: its runs are {name}/0, {name}/1, ...; python run.py search {name} shows them")
    near = nearest(name, [path.parent.name for path in log_path().glob("*/run.json")])
    hint = f"did you mean {near}?" if near else "python run.py list names those there are"
    sys.exit(f"there is no run {name}: {hint}")


def config_of(folder):
    """The path of a run's configuration."""
    path = folder / "config.yaml"
    if not path.is_file():
        sys.exit(f"{folder} holds no config.yaml: it is not a run that can be gone on with")
    return path


def read_record(folder):
    """What run.json says: command, job, submissions."""
    return json.loads((folder / "run.json").read_text())


def write_json(path, content):
    """All of it or nothing: run.py list may be reading."""
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps(content, indent=2) + "\n")
    new.replace(path)


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
