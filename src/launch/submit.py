"""Start a run: hand it to Slurm, to background processes, or run it in this process."""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import submitit

from src.launch import provenance, qsub
from src.launch.files import Unreadable, read_bytes
from src.launch.job import ROOT, minutes
from src.launch.payload import Run
from src.launch.ranks import drop_strays, export_ranks
from src.launch.records import list_typed, make_folder, this_process, typed, write_end, write_record
from src.launch.script import container_program, python_command, sbatch_parameters, slurm_python
from src.settings import printable, shortened


def free_port():
    """A port that nobody listens on. The processes of a local run meet there."""
    with socket.socket() as listener:
        listener.bind(("", 0))  # 0: the system chooses
        return listener.getsockname()[1]


def clean_environment():
    """For the processes that are started from here: nothing of another job."""
    drop_strays()
    os.environ["PYTHONSAFEPATH"] = "1"  # as the script for Slurm has it: no modules of the folder where one is


def as_noted(job):
    """The job as the configuration of its run holds it, a dictionary."""
    noted = dataclasses.asdict(job)
    if job.cluster in ("local", "debug"):  # nobody gives out CPUs: the processes share those of this machine
        noted["cpus_per_task"] = max(1, min(job.cpus_per_task, os.cpu_count() // job.tasks_per_node))
    return noted


def python_here(job):
    """The Python of the job. Where no containers can run, as on some login nodes: this one."""
    if job.container and not shutil.which(container_program(job)):
        return [sys.executable]
    Path(job.log_path).mkdir(parents=True, exist_ok=True)  # what is shown in a container has to be there
    return python_command(job)


def prepare(command, request, folder=None):
    """Have src/train.py check what needs torch, and get the data: compute nodes often have no internet.

    Args:
        folder: of the run that is resumed, if any
    Returns:
        the whole configuration as YAML
    """
    arguments = [command, *request.arguments, "--job", json.dumps(as_noted(request.job))]
    if request.job.cluster == "debug":  # the process that trains: torch is imported once
        from src.train import prepare

        try:
            return prepare(command, arguments[1:], folder)
        except (ValueError, FileNotFoundError) as error:
            sys.exit(str(error))
    train = [*python_here(request.job), str(ROOT / "src/train.py"), *arguments, "--prepare"]
    train += [f"--run_folder={folder}"] if folder else []
    done = subprocess.run(train, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def print_config(command, request):
    """Print the whole configuration as YAML: what is the default, what the files say, what the flags say."""
    job = json.dumps(dataclasses.asdict(request.job))
    train = [*python_here(request.job), str(ROOT / "src/train.py"), command, *request.arguments, "--job", job]
    sys.exit(subprocess.run([*train, "--print_config"]).returncode)


def submit(command, request, folder=None):
    """Start the run and say what to type next. folder: of the run that goes on; None: a new one."""
    job = request.job
    clean_environment()
    config = prepare(command, request, folder)
    Path(job.log_path).mkdir(parents=True, exist_ok=True)
    if job.cluster == "slurm":
        return submit_to_slurm(command, config, request, folder)
    if job.cluster == "local":
        visible_gpus(job)  # before anything is written
    goes_on = folder is not None
    folder = folder or make_folder(job)
    (folder / "config.yaml").write_text(config)
    if job.cluster in qsub.CLUSTERS:
        return submit_to_qsub(command, job, folder, goes_on)
    if job.cluster == "local":
        return submit_here(command, config, request, folder, goes_on)

    print(f"run {folder.name}    {os.path.relpath(folder)}", flush=True)
    provenance.store(folder, os.getpid() if goes_on else "")
    write_record(folder, command, job, **this_process(os.getpid()))
    export_ranks()
    from src.train import train

    outcome = "FAILED"
    try:
        train(command, config, folder)
        outcome = "COMPLETED"
    finally:
        write_end(folder, outcome)


class Executor(submitit.SlurmExecutor):
    """submitit's, which remembers where it has written the script, and reads sbatch's answer behind a greeting."""

    def _make_submission_command(self, submission_file_path):
        self.script = submission_file_path
        return super()._make_submission_command(submission_file_path)

    @staticmethod
    def _get_job_id_from_submission_command(string):
        text = string if isinstance(string, str) else string.decode(errors="replace")
        ids = re.findall(r"Submitted batch job ([0-9]+)", text)
        if not ids:
            sys.exit(
                f"sbatch has answered {shortened(text)!r}, and not with a job id: look for the job with squeue --me"
            )
        return ids[-1]


@contextlib.contextmanager
def quietly():
    """Inside, submitit prints no messages of Slurm: they are in the error that it raises."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def refusal(error):
    """Slurm's reason, in one line."""
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in str(error).splitlines()]
    return printable("; ".join(line for line in lines if line))[:500] or "it gave no reason"


def submit_to_slurm(command, config, request, folder):
    """Submit with sbatch. The job waits until its folder is there: without a place for its log it would fail.

    It waits by --begin and not by --hold, because sbatch does not check whether a held job can ever run.
    """
    job = request.job
    target = folder or Path(job.log_path) / "%j"
    parent = folder or Path(job.log_path)
    run = Run(command, config, folder and str(folder))
    executor = Executor(target, max_num_timeout=job.requeues, python=slurm_python(job))
    executor.update_parameters(**sbatch_parameters(job, target))
    try:
        with quietly():
            submitted = executor.submit(run)
    except submitit.core.utils.FailedJobError as error:
        executor.script.unlink()  # what submitit had written for the job
        for path in parent.glob("*.pkl"):
            with contextlib.suppress(Unreadable):  # not a file of ours
                if run.token.encode() in read_bytes(path):
                    path.unlink()
        sys.exit(f"Slurm did not take the job, nothing was submitted: {refusal(error)}")
    finally:
        remove_links(parent)
    job_id, new_folder = submitted.job_id, submitted.paths.folder
    if not folder and (new_folder / "run.json").exists():
        subprocess.run(["scancel", job_id])
        sys.exit(f"job {job_id} would go on with the old run in {new_folder}: Slurm counts anew, so move it away")
    with held_back(job_id):
        (new_folder / "config.yaml").write_text(config)
        provenance.store(new_folder, job_id if folder else "", container=job.container)
        write_record(new_folder, command, job, id=job_id)
    print_next(new_folder)


def remove_links(folder):
    """Remove what submitit leaves behind in a folder: links to the scripts."""
    for link in folder.glob(".submission_file_*"):
        if link.is_symlink():
            link.unlink(missing_ok=True)


@contextlib.contextmanager
def held_back(job_id):
    """Inside, the folder of a job is filled. Then it may start; if that fails it is cancelled."""
    try:
        yield
    except BaseException:  # Ctrl-C too
        subprocess.run(["scancel", job_id])
        raise
    subprocess.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now"])  # if it fails: in a minute


def submit_to_qsub(command, job, folder, goes_on):
    """Submit to PBS or SGE."""
    try:
        job_id = qsub.hand_in(job, command, folder)
    except ValueError as error:
        if not goes_on:
            shutil.rmtree(folder)  # it holds nothing yet but what was asked for
        sys.exit(f"qsub did not take the job, nothing was submitted: {error}")
    write_record(folder, command, job)
    provenance.store(folder, job_id if goes_on else "", container=job.container)
    print_next(folder)


@contextlib.contextmanager
def in_the_background():
    """Processes started here outlive the terminal, and hold none of its streams open."""
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sys.stdout.flush()
    streams = [os.dup(number) for number in range(3)]
    with open(os.devnull, "r+") as nothing:
        for number in range(3):
            os.dup2(nothing.fileno(), number)
    try:
        yield
    finally:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        signal.signal(signal.SIGHUP, hangup)


def submit_here(command, config, request, folder, goes_on):
    """Start processes in the background of this machine."""
    job, gpus = request.job, visible_gpus(request.job)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    executor = submitit.LocalExecutor(folder, max_num_timeout=job.requeues, python=shlex.join(python_command(job)))
    executor.update_parameters(
        tasks_per_node=job.tasks_per_node, gpus_per_node=job.gpus_per_node, timeout_min=minutes(job.time)
    )
    executor.parameters["visible_gpus"] = gpus  # update_parameters() refuses all that are not numbers
    with in_the_background():
        submitted = executor.submit(Run(command, config, str(folder), free_port()))
    pid = int(submitted.job_id)
    write_record(folder, command, job, **this_process(pid))
    provenance.store(folder, pid if goes_on else "", container=job.container)
    print_next(folder)


def visible_gpus(job):
    """The GPUs that you let this shell see, numbers or names; an empty tuple if you have not said so.

    Exits with one sentence when they are too few.
    """
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is None or not job.gpus_per_node:
        return ()
    gpus = [gpu.strip() for gpu in said.split(",") if gpu.strip()]
    gpus = gpus[: gpus.index("-1")] if "-1" in gpus else gpus  # CUDA ignores what follows
    if wrong := [gpu for gpu in gpus if not re.fullmatch(r"[0-9]{1,4}|(GPU|MIG)-[\w/-]+", gpu)]:
        sys.exit(f"CUDA_VISIBLE_DEVICES={shortened(said)}: {shortened(wrong[0])} is no GPU, such as 0 or GPU-8932f937")
    if len(set(gpus)) < job.gpus_per_node:
        sys.exit(
            f"--gpus_per_node {job.gpus_per_node}, but with CUDA_VISIBLE_DEVICES={shortened(said)} there are "
            f"{len(set(gpus))}"
        )
    return tuple(int(gpu) if gpu.isdecimal() else gpu for gpu in gpus)


def print_next(folder):
    """What to type next."""
    print(f"run {folder.name}    {os.path.relpath(folder)}")
    print(f"follow the log      python run.py log {typed(folder)} -f")
    print(f"see all runs        python run.py {list_typed(folder)}")
    print(f"open TensorBoard    tensorboard --logdir {os.path.relpath(folder.parent)}")
