"""Start a search, or go on with it: a job array on Slurm, one trial after the other elsewhere."""

import contextlib
import dataclasses
import fcntl
import os
import shlex
import sys
from datetime import datetime

from submitit.core.utils import DelayedSubmission, FailedJobError, JobPaths
from submitit.slurm.slurm import _make_sbatch_string

from src.launch import provenance
from src.launch.payload import Run
from src.launch.ranks import export_ranks
from src.launch.records import list_typed, name_of, this_process, typed, write_end, write_record
from src.launch.runs import describe_all
from src.launch.script import sbatch_parameters, slurm_python
from src.launch.slurm import ACTIVE
from src.launch.submit import Executor, held_back, quietly, refusal, remove_links
from src.search import study
from src.search.table import show


class TrialRun(Run):
    """What each process of a task runs."""

    def __init__(self, folder, number, job):
        super().__init__("fit", None, str(folder / str(number)))
        self.study, self.number, self.job = folder, number, dataclasses.asdict(job)

    def train(self, folder):
        from src.search.trial import run_trial  # torch is imported only here

        run_trial(self.study, self.number, self.job)
        if os.environ["RANK"] == "0" and not study.unfinished(study.load(self.study)):
            show(self.study)


class ArrayExecutor(Executor):
    """submitit counts the tasks of an array from 0. Here the index of a task is the number of its trial."""

    def _make_submission_file_text(self, command, uid):
        return _make_sbatch_string(command=command, folder=self.folder / "%a", **self.parameters)

    def submit_array(self, runs, at_once):
        """Submit {index: run}, at_once of them at the same time; returns the job's id."""
        folder = self.folder / "%a"
        self.parameters["map_count"] = len(runs)  # tells submitit that the names of the logs need the index
        self.parameters["additional_parameters"]["array"] = f"{','.join(map(str, runs))}%{at_once}"
        job = self._submit_command(f"{self.python} -u -m submitit.core._submit {shlex.quote(str(folder))}")
        for index, run in runs.items():
            delayed = DelayedSubmission(run)
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            delayed.dump(JobPaths(folder, f"{job.job_id}_{index}").submitted_pickle)
        return job.job_id


def go_on(folder, job, search):
    """Start all trials that are not finished, and that nobody works on.

    Args:
        folder: of the study
        job: a Job, for each trial
        search: a Search, which may have more trials than the study had until now
    """
    with taken(folder):
        study.extend(folder, search)
        numbers = left(folder)
        if numbers:
            again = f"{datetime.now():%Y-%m-%d_%H-%M-%S}" if (folder / "git.txt").exists() else ""
            provenance.store(folder, again, container=job.container)
            if job.cluster == "slurm":
                submit(folder, job, numbers, min(search.at_once, len(numbers)))
                return
            run_here(folder, job, numbers)
    show(folder)


@contextlib.contextmanager
def taken(folder):
    """Inside, no other process starts the trials of a study."""
    path = folder / ".starting"
    busy = f"another process is about to start the trials of {folder.name}, or trains them: wait for it"
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            sys.exit(busy)
        except OSError:  # a file system without locks
            pass
        if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
            sys.exit(busy)  # who had the lock has just removed the file
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def left(folder):
    """The numbers of the trials that have to be started."""
    # In this order: a trial that ends in between is in the journal then.
    described = describe_all([path.parent for path in folder.glob("*/run.json")])
    numbers = study.unfinished(study.load(folder))
    for run, number in [(folder / str(number), number) for number in numbers]:
        state = described.get(run, {}).get("state", "")
        if state == "UNREADABLE":
            sys.exit(described[run]["reason"])
        if state.startswith("UNKNOWN"):
            sys.exit(f"whether {name_of(run)} still runs cannot be seen from here: it is {state}")
        if state in ACTIVE:
            numbers.remove(number)
        elif any(run.glob("not_finite_*")):  # one of several processes had to end, before the first could say why
            study.end(study.begin(folder, number), failed=True)
            numbers.remove(number)
    return numbers


def run_here(folder, job, numbers):
    """One trial after the other, in this process."""
    export_ranks()
    from src.search.trial import run_trial

    for number in numbers:
        run = folder / str(number)
        run.mkdir(exist_ok=True)
        write_record(run, "fit", job, **this_process(os.getpid()))
        outcome = "FAILED"
        try:
            run_trial(folder, number, dataclasses.asdict(job))
            outcome = "COMPLETED"
        finally:
            write_end(run, outcome)


def submit(folder, job, numbers, at_once):
    """A job array, a task for each trial."""
    for number in numbers:
        (folder / str(number)).mkdir(exist_ok=True)
    executor = ArrayExecutor(folder, max_num_timeout=job.requeues, python=slurm_python(job))
    executor.update_parameters(**sbatch_parameters(job, folder / "%a"))
    try:
        with quietly():
            job_id = executor.submit_array({number: TrialRun(folder, number, job) for number in numbers}, at_once)
    except FailedJobError as error:
        executor.script.unlink()
        sys.exit(f"Slurm did not take the jobs: {refusal(error)}. Then type   python run.py resume {typed(folder)}")
    finally:
        remove_links(folder)
    with held_back(job_id):
        for number in numbers:
            write_record(folder / str(number), "fit", job, id=f"{job_id}_{number}")
    print_next(folder, len(numbers), at_once)


def print_next(folder, trials, at_once):
    """What to type next."""
    jobs = f"{trials} job{'s' * (trials > 1)}, {at_once} at the same time"
    print(f"study {folder.name}    {os.path.relpath(folder)}    {jobs}")
    print(f"see all jobs        python run.py {list_typed(folder)}")
    print(f"what it has found   python run.py search {typed(folder)}")
    print(f"go on, if broken    python run.py resume {typed(folder)}")
    print(f"open TensorBoard    tensorboard --logdir {os.path.relpath(folder)}")
