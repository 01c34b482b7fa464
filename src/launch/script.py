"""The script for sbatch, and what each of its lines means."""

import re
import shlex
import shutil
import sys

from submitit.slurm.slurm import _make_sbatch_string

from src.launch.job import ROOT, minutes
from src.settings import shortened

REQUEUE_NOTE = ".requeue"  # in the run's folder

# What the beginning of a line means. Of two that fit, the first.
MEANINGS = {
    "#SBATCH --account=": "whose share of the cluster pays",
    "#SBATCH --array=": "a task for each of these numbers; behind %: how many at the same time",
    "#SBATCH --begin=": "not yet: when run.py has filled the run's folder, it says that the job may start",
    "#SBATCH --constraint=": "features that the nodes must have",
    "#SBATCH --cpus-per-task=": "CPUs of each process",
    "#SBATCH --error=": "messages of this script; %j becomes the job id",
    "#SBATCH --gpus-per-node=": "GPUs on each node",
    "#SBATCH --job-name=": "the name in the queue",
    "#SBATCH --mem=": "memory of each node",
    "#SBATCH --nodes=": "machines",
    "#SBATCH --ntasks-per-node=": "processes on each machine",
    "#SBATCH --open-mode=append": "a job that is queued again writes on behind its first log",
    "#SBATCH --output=": "output of this script",
    "#SBATCH --partition=": "the part of the cluster",
    "#SBATCH --qos=": "the quality of service",
    "#SBATCH --requeue": "queue the job again when it is preempted or a node fails",
    "#SBATCH --signal=": "the signal that comes so many seconds before the time is up: the job saves, and queues again",
    "#SBATCH --time=": "the limit, in minutes",
    "#SBATCH --wckey=": "a label for the accounting",
    "module load ": "software of this cluster",
    "export SRUN_CPUS_PER_TASK=": "srun does not take it from above by itself, and would give each process one CPU",
    "export PYTHONPATH=": "where Python finds src/, and not another in the folder where it starts",
    "export SUBMITIT_EXECUTOR=": "submitit, which has written this script, asks later what started it",
    "rm -f ": "a note that an attempt before this one may have left",
    "code=$?": "how the training has ended",
    "if rm ": "in its container it has no scontrol: it leaves a note that it wants to be queued again",
    "exit ": "the exit code of the job is that of the training",
    "srun ": "start the processes on all nodes; when one fails, end the others",
}


def container_program(job):
    """The program that runs containers. On a login node it may be missing: then apptainer."""
    return job.container_program or next(filter(shutil.which, ["apptainer", "singularity"]), "apptainer")


def bound_folders(job):
    """The folders that are seen in the container, besides those of --container_binds."""
    return sorted({str(ROOT), str((ROOT / "data").resolve()), job.log_path})


def container_variables(job):
    """--container_env as apptainer and singularity read it from the environment: they would split it behind --env."""
    return [f"{prefix}_{variable}" for variable in job.container_env for prefix in ("APPTAINERENV", "SINGULARITYENV")]


def container_command(job):
    """What stands before a command that runs in the job's container: nothing without one."""
    if not job.container:
        return []
    nvidia = ["--nv"] if job.gpus_per_node else []  # with the driver of the GPUs
    bind = ",".join(dict.fromkeys(bound_folders(job) + job.container_binds))
    # Of the home folder, which apptainer shows, the packages of another Python must not be seen.
    command = [container_program(job), "exec", *nvidia, "--bind", bind, "--env=PYTHONNOUSERSITE=1", job.container]
    return ["env", *container_variables(job), *command] if job.container_env else command


def python_command(job):
    """The Python that runs the training: this one, or the container's."""
    return [*container_command(job), "python" if job.container else sys.executable]


def slurm_python(job):
    """The same behind srun, as a text."""
    return shlex.join([*IGNORE_USR2, *python_command(job)])


def requeue_outside(folder):
    """The beginning and the end of a script whose processes are in a container, and cannot reach Slurm from there.

    Args:
        folder: of the run, with %j for the job id, %a for the number of a task
    """
    names = {"%j": '"$SLURM_JOB_ID"', "%a": '"$SLURM_ARRAY_TASK_ID"'}
    parts = re.split("(%[ja])", f"{folder}/{REQUEUE_NOTE}")
    note = "".join(names.get(part) or shlex.quote(part) for part in parts if part)
    end = [
        "code=$?",
        f'if rm {note} 2> /dev/null; then scontrol requeue "$SLURM_JOB_ID" || code=1; fi',
        'exit "$code"',
    ]
    return [f"rm -f {note}"], end


# A process that gets USR2 before Python has set up its answer would end, and its job would have failed. So USR2 is
# ignored until then. bash can do that everywhere, and env --ignore-signal only where it is new.
IGNORE_USR2 = ["bash", "-c", 'trap "" USR2; exec "$@"', "bash"]

# Options that the script sets itself, or that this program relies on.
OURS = {
    *("job_name", "nodes", "ntasks", "ntasks_per_node", "cpus_per_task", "time", "wckey", "begin", "hold"),
    *("output", "error", "open_mode", "chdir", "array", "signal", "requeue", "no_requeue"),
    *("wrap", "parsable", "test_only", "wait"),
}


def slurm_directives(job):
    """--directives in the names of sbatch: {"reservation": "course", "exclusive": True}.

    Raises:
        ValueError: one of them is no flag of sbatch, or a flag that is set in another way
    """
    found = {}
    for directive in job.directives:
        match = re.fullmatch(r"--([a-z][a-z-]*)(?:=(.+))?", directive)
        if not match:
            raise ValueError(f"--directives {shortened(directive)!r} is not --flag=value, as sbatch has it")
        name = match[1].replace("-", "_")
        if name in OURS:
            raise ValueError(f"--directives {shortened(directive)} cannot be set: the script sets --{match[1]} itself")
        found[name] = match[2] or True
    return found


def sbatch_parameters(job, folder):
    """The job in the names of sbatch, as submitit takes them. folder: of the run, with %j for the job id."""
    begin, end = requeue_outside(folder) if job.container else ([], None)
    more = slurm_directives(job)
    gpus = None if "gpu" in str(more.get("gres")) else job.gpus_per_node or None  # they would be asked for twice
    # What the user has on PYTHONPATH is for the Python outside.
    python_path = shlex.quote(str(ROOT)) + ("" if job.container else "${PYTHONPATH:+:$PYTHONPATH}")
    return {
        "job_name": job.name,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "gpus_per_node": gpus,
        "cpus_per_task": job.cpus_per_task,
        "mem": None if {"mem_per_cpu", "mem_per_gpu"} & set(more) else job.mem,
        "time": minutes(job.time),
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "wckey": job.wckey,  # said in any case: submitit's own default is refused by some clusters
        "additional_parameters": {"requeue": True, "begin": "now+60", **more},
        "setup": [
            *(f"module load {shlex.quote(module)}" for module in job.modules),
            *job.setup,
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
            f"export PYTHONPATH={python_path} PYTHONSAFEPATH=1",
            *begin,
        ],
        "teardown": end,
        "srun_args": ["--kill-on-bad-exit=1"],
    }


def explained_script(job, folder, **array):
    """The script that would be submitted, a comment above each line.

    Args:
        folder: of the run, with %j for the job id, or %a for the number of a task
        array: of a job array, map_count and array_parallelism
    """
    script = _make_sbatch_string(
        command=f"{slurm_python(job)} -u -m submitit.core._submit {shlex.quote(str(folder))}",
        folder=folder,
        **sbatch_parameters(job, folder),
        **array,
    )
    lines = []
    for line in script.removesuffix("\n").split("\n"):
        if line in ("# Parameters", "# setup", "# command", "# teardown"):
            continue
        meaning = next((text for start, text in MEANINGS.items() if line.startswith(start)), None)
        if meaning is None and line.startswith("#SBATCH"):
            meaning = "from your directives"
        if line in job.setup:
            meaning = "from your setup"
        if meaning:
            lines.append(f"# {meaning}")
        lines.append(line)
    return "\n".join(lines)
