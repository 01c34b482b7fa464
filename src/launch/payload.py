"""What each process of a job runs."""

import atexit
import os
import shutil
import sys
import uuid
from pathlib import Path

import submitit
from submitit.core.logger import get_logger
from submitit.helpers import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

from src.launch import provenance
from src.launch.progress import no_progress
from src.launch.ranks import export_ranks
from src.launch.records import name_of
from src.launch.script import REQUEUE_NOTE


class Run:
    """One training or evaluation. It is pickled: all that must survive a restart is in the run's folder."""

    def __init__(self, command, config, folder=None, port=None):
        """
        Args:
            command: fit, validate, test or predict
            config: the whole configuration, as YAML: editing files while the job waits changes nothing
            folder: of the run; None: submitit's, which holds the job id
            port: where local processes meet; on Slurm export_ranks() knows
        """
        self.command = command
        self.config = config
        self.folder = folder
        self.port = port
        self.token = uuid.uuid4().hex  # by which this pickle is found again
        self.finished = False

    def __call__(self):
        job = submitit.JobEnvironment()
        # What an attempt before this one has left: submitit would take it for this one's, or refuse to write it.
        for stale in job.paths.folder.glob(f"{job.paths.result_pickle.name}*"):
            stale.unlink(missing_ok=True)
        if isinstance(job, SlurmJobEnvironment) and not shutil.which("scontrol"):  # in a container
            SlurmJobEnvironment._requeue = requeue_from_outside
        if self.port is not None:
            os.environ["MASTER_PORT"] = str(self.port)
        export_ranks()
        if int(os.environ["WORLD_SIZE"]) > 1:
            atexit.register(leave, self)  # registered first, so called last
        folder = Path(self.folder or job.paths.folder)
        if os.environ["RANK"] == "0":
            self.note_changes(folder, f"{job.job_id}-{os.environ.get('SLURM_RESTART_COUNT', '0')}")
        self.train(folder)
        self.finished = True

    def note_changes(self, folder, attempt):
        """Say what has been edited since the submission, so that the folder holds what runs now."""
        config = folder / "config.yaml"
        if self.config is not None and config.is_file() and config.read_text(errors="replace") != self.config:
            edited = config.with_name(f"config-edited-{attempt}.yaml")
            config.rename(edited)
            config.write_text(self.config)
            get_logger().warning(f"config.yaml was edited while the job waited: it has no effect and is {edited.name}")
        try:
            if provenance.store_if_changed(folder, attempt):
                get_logger().warning(f"the code was edited while the job waited: see git-{attempt}.txt")
        except OSError as error:  # the training itself will say what cannot be written
            get_logger().warning(f"whether the code was edited while the job waited is not known: {error}")

    def train(self, folder):
        from src.train import train  # torch is imported only here: describing a job does not need it

        train(self.command, self.config, folder)

    def checkpoint(self):
        """submitit calls this when the time is up. The same job is submitted again and resumes from the run's folder.

        None if that is of no use: then submitit does not requeue the job.
        """
        folder = Path(self.folder or submitit.JobEnvironment().paths.folder)
        if self.command == "fit" and (reason := no_progress(folder)):
            get_logger().error(f"{reason}. Resume it with: python run.py resume {name_of(folder).split('/')[0]}")
            return None
        return DelayedSubmission(self)


def requeue_from_outside(environment, countdown):
    """In place of `scontrol requeue`: the job's script, outside of the container, does it when we have left."""
    (environment.paths.folder / REQUEUE_NOTE).touch()
    get_logger().info(f"Asked for job {environment.job_id} to be queued again ({countdown} remaining timeouts)")


def leave(run):
    """End a process whose run has finished, at once.

    The threads of gloo, which carries the data between processes without GPUs, sometimes abort the process when Python
    takes everything down ("terminate called without an active exception"). Slurm would call a good run FAILED.
    train() ends them with the process group. With fsdp torch keeps the group, and with it the threads.
    """
    if run.finished:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
