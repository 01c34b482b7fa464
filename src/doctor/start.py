"""python run.py doctor: is all well where a job will run?

python run.py doctor --nodes 2 --tasks_per_node 2    submit a small job with this allocation, and show what it finds
srun python run.py doctor                            in an allocation that you have; also under torchrun and mpirun

It takes the flags of a training. --patience 60: seconds to wait for a process that does not come. Each line that is
not ok says what to do, and where lessons/troubleshooting.md says more. The exit code is 1 if there is an error.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

from submitit.slurm.slurm import _make_sbatch_string

from src.launch import qsub
from src.launch.checks import heed, run_checks
from src.launch.flags import parse
from src.launch.job import ROOT, find_cluster
from src.launch.ranks import MPICH, OPEN_MPI, TORCHRUN, drop_strays, started_by, started_by_srun
from src.launch.script import python_command, sbatch_parameters, slurm_directives
from src.launch.slurm import ACTIVE
from src.launch.submit import free_port


def doctor(argv):
    """Read the flags; be one of the processes that examine, or start them."""
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return
    own, rest = {"--patience": "60", "--code": None}, []
    words = iter(argv)
    for word in words:
        name, has_value, value = word.partition("=")
        if name in own:
            own[name] = value if has_value else next(words, "")
        else:
            rest.append(word)
    own = {name.removeprefix("--"): value for name, value in own.items()}
    if not re.fullmatch(r"0*[1-9][0-9]{0,3}", own["patience"]):
        sys.exit(f"--patience {own['patience'][:40]!r} is not a whole number of seconds from 1 to 9999")
    request = parse(rest)
    job = request.job
    expected = {"code": own["code"]} if own["code"] else {}
    typed = {word.removeprefix("--").partition("=")[0] for word in rest}
    expected |= {name: getattr(job, name) for name in ("nodes", "tasks_per_node") if name in typed}

    if started_by(TORCHRUN) or started_by(OPEN_MPI) or started_by(MPICH) or started_by_srun():
        become_one(request, own, expected)
    if "SLURM_JOB_ID" in os.environ and not rest:  # in an allocation, such as salloc's
        sys.exit(subprocess.run(["srun", sys.executable, str(ROOT / "run.py"), "doctor", *argv]).returncode)
    if request.dry_run or request.print_config:
        sys.exit("doctor takes neither --dry_run nor --print_config: python run.py --dry_run shows the script")
    job.name = job.name or "doctor"
    if job.cluster == "auto":
        job.cluster = find_cluster()
    if job.cluster in qsub.CLUSTERS:
        sys.exit(f"--cluster {job.cluster}: start it in a job instead, as in   mpirun -n 4 python run.py doctor")
    heed(run_checks(request), False)
    if job.processes == 1 and job.cluster != "slurm":
        become_one(request, own, expected)
    drop_strays()
    shape = [f"--nodes={job.nodes}", f"--tasks_per_node={job.tasks_per_node}", f"--patience={own['patience']}"]
    (submit if job.cluster == "slurm" else start_here)(job, [str(ROOT / "run.py"), "doctor", *rest, *shape])


def become_one(request, own, expected):
    """Examine in this process."""
    from src.doctor.examine import examine  # torch is imported only here

    examine(request, int(own["patience"]), expected)


def start_here(job, command):
    """Start the processes on this machine, and end with the exit code of the first."""
    shared = {"WORLD_SIZE": job.processes, "LOCAL_WORLD_SIZE": job.processes, "GROUP_RANK": 0}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    started = []
    for rank in range(job.processes):
        variables = shared | {"RANK": rank, "LOCAL_RANK": rank}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        started.append(subprocess.Popen([sys.executable, *command], env=environment))
    codes = [process.wait() for process in started]
    sys.exit(next((code for code in codes if code), 0))


def job_in(answer):
    """The job id in what `sbatch --parsable` printed: 12, or 12;cluster. Some sites print a banner before it."""
    found = re.findall(r"^([0-9]+)(?:;\S*)?\s*$", answer, re.MULTILINE)
    if not found:
        sys.exit(f"sbatch printed no job id, but {answer.strip()[-80:]!r}: look for the job with   squeue --me")
    return found[-1]


def state_of(job_id):
    """The state of the job in the queue, and why it waits. Not the accounting's: not every cluster has one.

    While squeue does not answer, ask again: then nothing is known of the job.
    """
    while True:
        squeue = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T %r"]
        done = subprocess.run(squeue, capture_output=True, text=True)
        if done.returncode == 0 or "Invalid job id" in done.stderr:
            state, _, reason = "".join(done.stdout.splitlines()[:1]).strip().partition(" ")
            return state or "Slurm does not know it any more", reason
        print(f"squeue does not answer ({' '.join(done.stderr.split())[-100:]}): asking again", flush=True)
        time.sleep(10)


def submit(job, command):
    """Submit a job with the script of a training, wait for it, and show what it found."""
    from src.doctor.code import digest

    folder = Path(job.log_path) / "doctor"
    folder.mkdir(parents=True, exist_ok=True)
    # One process that fails must not end the others: they have something to say.
    parameters = sbatch_parameters(job, folder) | {"additional_parameters": slurm_directives(job), "srun_args": []}
    call = shlex.join([*python_command(job), "-u", *command, f"--code={digest()}"])
    script = _make_sbatch_string(command=call, folder=folder, **parameters)
    done = subprocess.run(["sbatch", "--parsable"], input=script, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("Slurm did not take the job, nothing was submitted: see lessons/troubleshooting.md#slurm")
    job_id = job_in(done.stdout)
    logs = os.path.relpath(folder)
    print(f"job {job_id} writes to {logs}/{job_id}_0_log.out; Ctrl-C leaves it in the queue", flush=True)
    shown = None
    while True:
        state, reason = state_of(job_id)
        if state not in ACTIVE:
            break
        if state == "PENDING" and reason not in (shown, "None"):
            print(f"it waits: {reason}", flush=True)
            shown = reason
        time.sleep(1)
    reports = [(path, path.read_text()) for path in sorted(folder.glob(f"{job_id}_*_log.*"))]
    first = next((text for path, text in reports if path.name == f"{job_id}_0_log.out"), "")
    for path, text in reports:
        if text.strip() and ("doctor: " not in first or path.name == f"{job_id}_0_log.out" or "doctor: " in text):
            print(text, end="")
    if "doctor: " not in first:
        print(f"job {job_id} has ended without a report ({state}): look at its logs in {logs}, and at its nodes")
    sys.exit(0 if "doctor: 0 errors" in first else 1)
