"""Start a run: hand it to Slurm, to background processes, or run it in this process."""

import atexit
import dataclasses
import itertools
import json
import os
import shlex
import socket
import subprocess
import sys
import uuid
from datetime import datetime
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from src.launch import provenance
from src.launch.flags import log_path
from src.launch.job import ROOT, minutes
from src.launch.ranks import export_ranks, strays
from src.launch.script import python_command, sbatch_parameters
from src.launch.slurm import process_starts


class Run:
    """What each process of the job runs. It is pickled: all that must survive a restart is in the run's folder."""

    def __init__(self, command, config, folder=None, port=None):
        """
        Args:
            command: fit, validate, test or predict
            config: the whole configuration, as YAML: editing files while the job waits changes nothing
            folder: of the run; None: submitit's, which holds the job id
            port: where local processes meet
        """
        self.command = command
        self.config = config
        self.folder = folder
        self.port = port
        self.token = uuid.uuid4().hex
        self.finished = False

    def __call__(self):
        job = submitit.JobEnvironment()
        # What an attempt before this one has left: submitit would take it for this one's.
        job.paths.result_pickle.unlink(missing_ok=True)
        if self.port is not None:
            os.environ["MASTER_PORT"] = str(self.port)
        export_ranks()
        if int(os.environ["WORLD_SIZE"]) > 1:
            atexit.register(leave, self)  # registered first, so called last
        from src.train import train  # torch is imported only here: describing a job does not need it

        train(self.command, self.config, Path(self.folder or job.paths.folder))
        self.finished = True

    def checkpoint(self):
        """What submitit calls when the time is up: the same again, it goes on from what the run's folder holds."""
        return DelayedSubmission(self)


def leave(run):
    """End a process whose run has finished, at once.

    The threads of gloo, which carries the data between processes without GPUs, sometimes abort the process when Python
    takes everything down ("terminate called without an active exception"). Slurm would call a good run FAILED.
    """
    if run.finished:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def free_port():
    """A port that nobody listens on. The processes of a local run meet there."""
    with socket.socket() as listener:
        listener.bind(("", 0))  # 0: the system chooses
        return listener.getsockname()[1]


def make_folder(job):
    """Make the folder of a run without a job id: <time>_<name>, with _2, _3 ... where that is there already."""
    name = Path(job.log_path) / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{job.name}"
    for number in itertools.count(1):
        folder = name if number == 1 else name.with_name(f"{name.name}_{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue


def prepare(command, request):
    """Have src/train.py check what needs torch, and get the data: compute nodes often have no internet.

    Returns the whole configuration as YAML.
    """
    arguments = [command, *request.arguments, "--job", json.dumps(dataclasses.asdict(request.job))]
    if request.job.cluster == "debug":  # the process that trains: torch is imported once
        from src.train import prepare

        try:
            return prepare(command, arguments[1:])
        except (ValueError, FileNotFoundError) as error:
            sys.exit(str(error))
    train = [*python_command(request.job), str(ROOT / "src/train.py"), *arguments, "--prepare"]
    done = subprocess.run(train, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def write_record(folder, command, request, **this_time):
    """Keep in run.json what run.py list, resume and repeat need to know."""
    path = folder / "run.json"
    record = json.loads(path.read_text()) if path.exists() else {"command": command, "submissions": []}
    record["job"] = dataclasses.asdict(request.job)
    record["submissions"].append({"submitted": f"{datetime.now():%Y-%m-%d %H:%M:%S}", **this_time})
    write_json(path, record)


def write_end(folder, outcome):
    """Note in run.json how the last submission ended, where nobody else does."""
    record = json.loads((folder / "run.json").read_text())
    record["submissions"][-1] |= {"ended": f"{datetime.now():%Y-%m-%d %H:%M:%S}", "outcome": outcome}
    write_json(folder / "run.json", record)


def write_json(path, content):
    """All of it or nothing: run.py list may be reading."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content, indent=2) + "\n")
    new.replace(path)


def this_process(pid):
    """What tells this process from another with its number, later or on another machine."""
    return {"pid": pid, "started": process_starts([pid]).get(pid), "host": socket.gethostname()}


def submit(command, request, folder=None):
    """Start the run and say what to type next. folder: of the run that goes on; None: a new one."""
    job = request.job
    for name in strays(os.environ):
        del os.environ[name]
    config = prepare(command, request)
    Path(job.log_path).mkdir(parents=True, exist_ok=True)
    if job.cluster == "slurm":
        return submit_to_slurm(command, config, request, folder)
    goes_on = folder is not None
    folder = folder or make_folder(job)
    (folder / "config.yaml").write_text(config)
    if job.cluster == "local":
        return submit_here(command, config, request, folder, goes_on)

    print(f"run {folder.name}    {os.path.relpath(folder)}", flush=True)
    provenance.store(folder, os.getpid() if goes_on else "")
    write_record(folder, command, request, **this_process(os.getpid()))
    export_ranks()
    from src.train import train

    outcome = "FAILED"
    try:
        train(command, config, folder)
        outcome = "COMPLETED"
    finally:
        write_end(folder, outcome)


def submit_to_slurm(command, config, request, folder):
    """Submit with sbatch. The job is held until its folder is complete: it could start before the folder is there."""
    job = request.job
    target = folder or Path(job.log_path) / "%j"
    parent = folder or Path(job.log_path)
    run = Run(command, config, folder and str(folder))
    python = shlex.join(python_command(job)) if job.container else None
    executor = submitit.SlurmExecutor(target, max_num_timeout=job.requeues, python=python)
    executor.update_parameters(**sbatch_parameters(job))
    try:
        submitted = executor.submit(run)
    except submitit.core.utils.FailedJobError as error:
        for path in parent.glob("*.pkl"):  # what submitit had written for the job
            if run.token.encode() in path.read_bytes():
                path.unlink()
        reasons = [line for line in str(error).splitlines() if "sbatch: error:" in line]
        sys.exit("\n".join(["Slurm did not take the job, nothing was submitted", *reasons]))
    finally:
        for link in parent.glob(".submission_file_*"):  # what submitit leaves behind, links to the scripts
            if link.is_symlink():
                link.unlink(missing_ok=True)
    job_id, new_folder = submitted.job_id, submitted.paths.folder
    try:
        (new_folder / "config.yaml").write_text(config)
        provenance.store(new_folder, job_id if folder else "")
        write_record(new_folder, command, request, id=job_id)
        subprocess.run(["scontrol", "release", job_id], check=True)
    except BaseException:  # Ctrl-C too: a job that nobody releases would wait for ever
        subprocess.run(["scancel", job_id])
        raise
    print_next(new_folder)


def submit_here(command, config, request, folder, goes_on):
    """Start processes in the background of this machine."""
    job = request.job
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    executor = submitit.LocalExecutor(folder, max_num_timeout=job.requeues)
    executor.update_parameters(
        tasks_per_node=job.tasks_per_node, gpus_per_node=job.gpus_per_node, timeout_min=minutes(job.time)
    )
    submitted = executor.submit(Run(command, config, str(folder), free_port()))
    pid = int(submitted.job_id)
    write_record(folder, command, request, **this_process(pid))
    provenance.store(folder, pid if goes_on else "")
    print_next(folder)


def print_next(folder):
    """What to type next."""
    known = folder.parent == log_path()
    name = folder.name if known else os.path.relpath(folder)
    print(f"run {folder.name}    {os.path.relpath(folder)}")
    print(f"follow the log      python run.py log {name} -f")
    print(f"see all runs        python run.py list{'' if known else f' --log_path {os.path.relpath(folder.parent)}'}")
    print(f"open TensorBoard    tensorboard --logdir {os.path.relpath(folder.parent)}")
