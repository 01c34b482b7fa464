"""What a job asks for: nodes, processes, memory, time. Slurm's words, checked before Slurm sees them."""

import math
import re
import shutil
import subprocess
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from src.settings import clock_seconds, path_of, shortened

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Job:
    """The job.

    Args:
        cluster: local: background processes here; debug: this process; auto: slurm where it is found, else debug;
            pbs, sge: a job script for qsub
        nodes: machines
        gpus_per_node: GPUs on each node
        tasks_per_node: processes on each node; default: one a GPU, without GPUs one
        cpus_per_task: CPUs of each process, those that load its data included
        mem: memory of each node, such as 500M or 4G
        time: limit, HH:MM:SS or D-HH:MM:SS; a job that reaches it is saved and queued again
        partition: default: the cluster's
        account: default: yours
        qos: quality of service, where the cluster has several
        constraint: features that the nodes must have, such as a100
        wckey: label for the accounting, where the cluster asks for one
        modules: modules to load, such as [gcc/12.2, cuda/12.4]
        setup: shell commands that run before the training
        container: image in which the training runs, by apptainer
        container_program: default: apptainer, or singularity where only that is found
        container_binds: more folders that are seen in it, such as [/scratch, /archive/images:/images:ro]
        container_env: more variables in it, such as [NCCL_DEBUG=INFO]
        mpirun: pbs and sge: what starts the processes, such as "aprun -n {processes} -N {tasks_per_node}"
        parallel_environment: sge: where the slots of the job come from
        directives: more lines for the head of the script, such as [--reservation=course, --gres=gpu:a100:2] for
            slurm, ["-l rt_F=2"] for pbs and sge
        requeues: how often a job that reaches its time limit goes on
        log_path: folder of the runs; default: logs/ beside run.py
        name: in the queue; default: the command
    """

    cluster: Literal["auto", "slurm", "local", "debug", "pbs", "sge"] = "auto"
    nodes: PositiveInt = 1
    gpus_per_node: NonNegativeInt = 0
    tasks_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt = 2
    mem: str = "4G"
    time: str = "00:10:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    wckey: str | None = None
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    container: str | None = None
    container_program: str | None = None
    container_binds: list[str] = field(default_factory=list)
    container_env: list[str] = field(default_factory=list)
    mpirun: str = "mpirun -n {processes} --hostfile {hostfile}"
    parallel_environment: str = "mpi"
    directives: list[str] = field(default_factory=list)
    requeues: NonNegativeInt = 100
    log_path: str | None = None
    name: str | None = None

    def __post_init__(self):
        for each in fields(self):
            check_text(each.name, getattr(self, each.name))
        megabytes(self.mem)
        minutes(self.time)
        if self.name is not None:
            check_name(self.name)
        for module in self.modules:
            if re.search(r"\s", module) or not module:
                raise ValueError(f"--modules {shortened(module)!r} is not one module: separate them, as in [gcc, cuda]")
        for variable in self.container_env:
            if not re.match(r"[A-Za-z_][A-Za-z0-9_]*=", variable):
                raise ValueError(f"--container_env {shortened(variable)!r} is not NAME=VALUE")
        if self.container and "://" not in self.container:  # a job may start in another folder
            self.container = str(path_of(self.container, "--container"))
        self.tasks_per_node = self.tasks_per_node or max(1, self.gpus_per_node)
        if re.search("[{}]", self.filled_mpirun("file")):
            known = ", ".join(f"{{{word}}}" for word in self.words("file"))
            raise ValueError(f"--mpirun {shortened(self.mpirun)!r} may name {known}, and nothing else in braces")
        self.log_path = str(path_of(self.log_path or ROOT / "logs", "--log_path"))
        check_text("log_path", self.log_path)
        if found := re.search(r"[%\\]", self.log_path):  # Slurm replaces %j and the like in the names of logs
            raise ValueError(
                f"--log_path {shortened(self.log_path)} holds {found[0]}, which Slurm would replace: name another"
            )
        if self.cluster in ("pbs", "sge"):
            self.check_head()

    def check_head(self):
        """PBS and SGE have no quotes in the head of a script: what holds a blank would be two options.

        Raises:
            ValueError: with one sentence
        """
        for name in ("partition", "account", "parallel_environment"):
            if found := re.search(r"[\s'\"\\$`;#]", getattr(self, name) or ""):
                raise ValueError(
                    f"--{name} {shortened(getattr(self, name))!r} holds {found[0]!r}, which --cluster {self.cluster} "
                    "does not accept there"
                )
        if found := re.search(r"[\s'\"\\$`;#:,^]", self.log_path):
            raise ValueError(
                f"--log_path {shortened(self.log_path)} holds {found[0]!r}, which --cluster {self.cluster} does not "
                "accept in a path: name another folder"
            )

    @property
    def processes(self):
        """Of all nodes together."""
        return self.nodes * self.tasks_per_node

    def filled_mpirun(self, hostfile):
        """--mpirun with values in place of the words in braces."""
        known = self.words(hostfile)
        return re.sub(r"\{(\w+)\}", lambda found: str(known.get(found[1], found[0])), self.mpirun)

    def words(self, hostfile):
        """What --mpirun may name in braces."""
        names = ("nodes", "tasks_per_node", "cpus_per_task", "processes")
        return {name: getattr(self, name) for name in names} | {"hostfile": hostfile}


def check_text(name, value):
    """Refuse control characters, which end a line of the script or are commands to a terminal, and invalid Unicode.

    Raises:
        ValueError: with one sentence
    """
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text):
            shown = ascii(text) if len(text) < 80 else f"{ascii(text[:60])}..."
            raise ValueError(f"--{name} {shown} may not hold line breaks or other control characters")


def check_name(name):
    """The name of a job is part of the name of a folder.

    Raises:
        ValueError: with one sentence
    """
    if not re.fullmatch(r"(?![.]+$|-)[\w.=-]+", name):
        raise ValueError(f"--name {shortened(name)!r} may hold only letters, digits and _ . = -, and not begin with -")
    if len(name.encode()) > 100:
        raise ValueError(f"--name {shortened(name)} is too long: at most 100 characters (bytes) are allowed")


def megabytes(text):
    """500M or 4G in MB. Slurm takes a number without a unit for megabytes, so one is asked for.

    Raises:
        ValueError: it has no unit, or is no number
    """
    match = re.fullmatch(r"([1-9][0-9]{0,11})([MGT])", text)
    if not match:
        raise ValueError(f"--mem {shortened(text)!r} is not a number with a unit, such as 500M or 4G")
    return int(match[1]) * {"M": 1, "G": 1024, "T": 1024**2}[match[2]]


def minutes(text):
    """HH:MM:SS or D-HH:MM:SS in minutes, rounded up. A single number is refused: Slurm reads minutes, few mean that.

    Raises:
        ValueError: it is neither
    """
    total = clock_seconds(text)
    if total is None:
        raise ValueError(f"--time {shortened(text)!r} is not HH:MM:SS or D-HH:MM:SS, such as 00:10:00")
    return math.ceil(total / 60)


def find_cluster():
    """Slurm where sbatch is found and knows a cluster (it may be installed without one); otherwise here."""
    if shutil.which("sbatch") is None:
        return "debug"
    answer = subprocess.run(["sinfo"], capture_output=True, text=True)
    return "debug" if "Could not establish a configuration source" in answer.stderr else "slurm"
