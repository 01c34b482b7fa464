"""The script for sbatch, and what each of its lines means."""

import re
import shlex
import shutil
import sys

from submitit.slurm.slurm import _make_sbatch_string

from src.launch.job import ROOT, minutes

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


def container_command(job):
    """What stands before a command that runs in the job's container: nothing without one."""
    if not job.container:
        return []
    nvidia = ["--nv"] if job.gpus_per_node else []  # with the driver of the GPUs
    folders = sorted({str(ROOT), str((ROOT / "data").resolve()), job.log_path}) + job.container_binds
    # Of the home folder, which apptainer shows, the packages of another Python must not be seen.
    variables = [f"--env={variable}" for variable in ["PYTHONNOUSERSITE=1", *job.container_env]]
    bind = ",".join(dict.fromkeys(folders))
    return [container_program(job), "exec", *nvidia, "--bind", bind, *variables, job.container]


def python_command(job):
    """The Python that runs the training: this one, or the container's."""
    return [*container_command(job), "python" if job.container else sys.executable]


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


def sbatch_parameters(job, folder):
    """The job in the names of sbatch, as submitit takes them. folder: of the run, with %j for the job id."""
    begin, end = requeue_outside(folder) if job.container else ([], None)
    # What the user has on PYTHONPATH is for the Python outside.
    python_path = shlex.quote(str(ROOT)) + ("" if job.container else "${PYTHONPATH:+:$PYTHONPATH}")
    return {
        "job_name": job.name,
        "nodes": job.nodes,
        "ntasks_per_node": job.tasks_per_node,
        "gpus_per_node": job.gpus_per_node or None,
        "cpus_per_task": job.cpus_per_task,
        "mem": job.mem,
        "time": minutes(job.time),
        "partition": job.partition,
        "account": job.account,
        "qos": job.qos,
        "constraint": job.constraint,
        "wckey": job.wckey,  # said in any case: submitit's own default is refused by some clusters
        "additional_parameters": {"requeue": True, "begin": "now+60"},
        "setup": [
            *(f"module load {module}" for module in job.modules),
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
        command=f"{shlex.join(python_command(job))} -u -m submitit.core._submit {shlex.quote(str(folder))}",
        folder=folder,
        **sbatch_parameters(job, folder),
        **array,
    )
    lines = []
    for line in script.splitlines():
        if line in ("# Parameters", "# setup", "# command", "# teardown"):
            continue
        meaning = next((text for start, text in MEANINGS.items() if line.startswith(start)), None)
        if line in job.setup:
            meaning = "from your setup"
        if meaning:
            lines.append(f"# {meaning}")
        lines.append(line)
    return "\n".join(lines)
