"""PBS and SGE: the script for qsub, and what becomes of the job.

The script starts src/train.py with mpirun, in the run's folder. There it also leaves what `run.py list` and `run.py
cancel` ask for: `job_id` of the last job, a line in `attempts` when one begins, `exit_code` when one ends.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys

from src.launch.files import Unreadable, read_text
from src.launch.job import ROOT, megabytes, minutes
from src.launch.script import python_command
from src.settings import printable

CLUSTERS = ("pbs", "sge")
WARNING_TIME = 90  # seconds from the request to save until the time is up
TIME_IS_UP = 138  # how a training ends that was asked to save by USR1: 128 + the signal's number


def clock(job):
    """The time limit as HH:MM:SS, without days."""
    return f"{minutes(job.time) // 60:02}:{minutes(job.time) % 60:02}:00"


def pbs_head(job):
    cpus = job.tasks_per_node * job.cpus_per_task
    gpus = f":ngpus={job.gpus_per_node}" if job.gpus_per_node else ""
    select = f"select={job.nodes}:ncpus={cpus}:mpiprocs={job.tasks_per_node}{gpus}:mem={megabytes(job.mem)}mb"
    yield "machines, and of each the CPUs, processes, GPUs and memory", f"-l {select}"
    yield "each of these on a machine of its own", "-l place=scatter"
    yield "the limit", f"-l walltime={clock(job)}"
    if job.partition:
        yield "the queue", f"-q {job.partition}"
    if job.account:
        yield "whose share of the cluster pays", f"-A {job.account}"
    yield "output and messages of this script, what comes before its first command", "-j oe"


def sge_head(job):
    yield "the shell", "-S /bin/bash"
    slots = job.processes * job.cpus_per_task
    yield "CPUs; this parallel environment divides them among machines", f"-pe {job.parallel_environment} {slots}"
    yield "the limit", f"-l h_rt={clock(job)}"
    # Not h_vmem: that limits addresses, of which torch takes many times more than memory.
    yield "only machines with so much free memory", f"-l mem_free={job.mem}"
    if job.gpus_per_node:
        yield "GPUs", f"-l gpu={job.gpus_per_node}"
    if job.partition:
        yield "the queue", f"-q {job.partition}"
    if job.account:
        yield "whose share of the cluster pays", f"-P {job.account}"
    yield "output and messages of this script, what comes before its first command", "-j y"


def script_lines(job, command, folder):
    """The job's script, as pairs of what a line means and the line."""
    pbs = job.cluster == "pbs"
    mark, job_id, here = ("#PBS", "PBS_JOBID", "PBS_O_WORKDIR") if pbs else ("#$", "JOB_ID", "SGE_O_WORKDIR")
    yield "", "#!/bin/bash"
    yield "the name in the queue", f"{mark} -N {job.name}"
    for meaning, line in (pbs_head if pbs else sge_head)(job):
        yield meaning, f"{mark} {line}"
    yield "and where they are written", f"{mark} -o {folder}/job.out"
    yield "start the job again when a node fails, or a more urgent job has taken its nodes", f"{mark} -r y"
    for line in job.directives:
        yield "from your directives", f"{mark} {line}"

    yield "the folder of the run", f"run={shlex.quote(str(folder))}"
    yield "what follows goes into the log, at once, and behind that of an attempt before", 'exec >> "$run/log.out" 2>&1'
    yield "what run.py list shows: how the job has ended, and its attempts", 'rm -f "$run/exit_code"'
    yield "", f'echo "${job_id}" >> "$run/attempts"'
    yield "", 'attempts=$(wc -l < "$run/attempts")'
    yield "where you have typed the command", f'cd "${here}" || exit'
    for module in job.modules:
        yield "software of this cluster", f"module load {shlex.quote(module)}"
    for line in job.setup:
        yield "from your setup", line
    if pbs:
        yield "the machines, each as often as it has processes", "hostfile=$PBS_NODEFILE"
    else:
        loop = f"{{for (i = 0; i < {job.tasks_per_node}; i++) print $1}}"
        yield "the machines, each as often as it has processes; SGE's own file counts CPUs", "hostfile=$TMPDIR/hostfile"
        yield "", f"""awk '{loop}' "$PE_HOSTFILE" > "$hostfile\""""
    yield "the processes meet on the first machine", 'MASTER_ADDR=$(head -n 1 "$hostfile")'
    number = "${PBS_JOBID%%[!0-9]*}" if pbs else "JOB_ID"
    yield (
        "at a port that the job before and the attempt before do not have",
        f"MASTER_PORT=$((20000 + ({number} * 7 + attempts) % 12000))",
    )
    yield (
        "else Open MPI and Intel MPI keep a process, its threads and its data workers on one CPU",
        "export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none I_MPI_PIN=0",
    )
    processes = job.filled_mpirun('"$hostfile"')
    training = shlex.join([*python_command(job), "-u", str(ROOT / "src/train.py"), command])
    seconds = max(minutes(job.time) * 60 - WARNING_TIME, minutes(job.time) * 30)
    yield (
        "start the processes on all nodes; before the time is up, ask them to save and to end",
        # USR1: Open MPI would hand on USR2 as well, but MPICH's mpirun ends at it, and the processes with it.
        f"timeout --preserve-status --signal=USR1 {seconds} {processes} "
        'env MASTER_ADDR="$MASTER_ADDR" MASTER_PORT="$MASTER_PORT" '
        f"PYTHONPATH={shlex.quote(str(ROOT))} PYTHONSAFEPATH=1 "
        f'{training} --config "$run/config.yaml" --run_folder "$run"',
    )
    yield "how the training has ended", "code=$?"
    again = f'if [ "$code" = {TIME_IS_UP} ] && [ "$attempts" -le {job.requeues} ]; then'
    if pbs:
        meaning, line = "", f'{again} qsub "$run/job.sh" > "$run/job_id" && exit "$code"; fi'
    else:
        meaning, line = ": SGE does so with a job that ends with 99", f"{again} exit 99; fi"
    yield f"it was saved because the time was up: queue it again, but not for ever{meaning}", line
    yield "the exit code of the job is that of the training", 'echo "$code" > "$run/exit_code"'
    yield "", 'exit "$code"'


def explained_script(job, command, folder):
    """The script with comments."""
    lines = script_lines(job, command, folder)
    return "\n".join(f"# {meaning}\n{line}" if meaning else line for meaning, line in lines)


def hand_in(job, command, folder):
    """Write the script into the run's folder and give it to qsub; returns the job's id.

    Raises:
        ValueError: qsub's reason not to take it
    """
    (folder / "job.sh").write_text("".join(f"{line}\n" for _, line in script_lines(job, command, folder)))
    for name in ("attempts", "exit_code"):  # of a run that goes on
        (folder / name).unlink(missing_ok=True)
    terse = ["-terse"] if job.cluster == "sge" else []
    command = ["qsub", *terse, str(folder / "job.sh")]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        reason = "; ".join((done.stderr or done.stdout).strip().splitlines())
        raise ValueError(printable(reason)[:500] or "it gave no reason")
    sys.stderr.write(done.stderr)
    (folder / "job_id").write_text(done.stdout)
    return id_of(folder)


def id_of(folder):
    """The id of the last job of the run. A requeued job may have a new one. A greeting may precede it.

    Ends with one sentence if there is none.
    """
    lines = text_of(folder / "job_id").splitlines()
    ids = [line.strip() for line in lines if re.fullmatch(r"[0-9]+(\[\])?(\.[A-Za-z0-9_.-]+)?", line.strip())]
    if not ids:
        raise Unreadable(f"{folder / 'job_id'} holds no job id, but {printable(' '.join(lines))[:80]!r}")
    return ids[-1]


def text_of(path):
    """The text that the job's script has written into a file; an empty text if it is not there.

    Raises:
        Unreadable: it is no text
    """
    return read_text(path) if os.path.lexists(path) else ""


def about(cluster, job):
    """The answer of qstat about a job; None if it does not know the job."""
    command = ["qstat", "-j", job] if cluster == "sge" else ["qstat", "-f", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def writes_into(cluster, folder):
    """Whether the job whose number is noted in a folder has its output there."""
    told = about(cluster, id_of(folder)) or ""
    return f"{folder}/job.out" in told.replace("\n\t", "")  # PBS breaks long lines


def describe(folder, record):
    """State and attempts of a run. record: its run.json"""
    last = record["submissions"][-1]
    attempts = text_of(folder / "attempts").split()
    code = text_of(folder / "exit_code").strip()
    if "outcome" in last:
        state = last["outcome"]
    elif code:
        state = "COMPLETED" if code == "0" else "FAILED"
    elif not shutil.which("qstat"):
        state = "UNKNOWN (qstat is not found here)"
    else:
        waits_or_runs = about(record["job"]["cluster"], id_of(folder)) is not None
        running = id_of(folder) in attempts
        state = ("RUNNING" if running else "PENDING") if waits_or_runs else "FAILED"
    return state, max(1, len(attempts))


def cancel(folder):
    done = subprocess.run(["qdel", id_of(folder)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"qdel did not cancel job {id_of(folder)}: {(done.stderr or done.stdout).strip()}")
