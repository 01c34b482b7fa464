"""What can go wrong with a job, known before it is submitted. --dry_run shows the checks, a submission asks them.

A check is a function of a Request that returns (level, sentence): OK, WARNING or ERROR. An ERROR is not submitted.
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from src.launch import qsub
from src.launch.files import data_class, divides_batches
from src.launch.job import ROOT, megabytes, minutes
from src.launch.ranks import strays
from src.launch.script import bound_folders, container_program, slurm_directives
from src.settings import indivisible, path_of, shortened

OK, WARNING, ERROR = "ok", "WARNING", "ERROR"
FREE_DISK = 5 * 1024**3  # bytes; a checkpoint of a large network alone has some gigabytes


def check_place(request):
    job = request.job
    if job.cluster in ("local", "debug") and job.nodes > 1:
        return ERROR, f"--nodes {job.nodes} needs Slurm: --cluster {job.cluster} has this machine only"
    if job.cluster == "debug" and job.processes > 1:
        default = "--cluster debug (the default without Slurm)"
        return ERROR, f"{default} is one process, not {job.processes}: take --cluster local"
    if job.cluster == "slurm" and not request.dry_run and not shutil.which("sbatch"):
        return ERROR, "--cluster slurm needs sbatch, which is not found here: take --cluster local"
    if job.cluster in qsub.CLUSTERS and not request.dry_run and not shutil.which("qsub"):
        return ERROR, f"--cluster {job.cluster} needs qsub, which is not found here: --dry_run shows the script"
    if job.directives and job.cluster in ("local", "debug"):
        return ERROR, f"--directives are for --cluster slurm, pbs and sge, not for {job.cluster}"
    if job.cluster == "slurm":
        try:
            slurm_directives(job)
        except ValueError as error:
            return ERROR, str(error)
    return OK, f"{job.nodes} x {job.tasks_per_node} = {job.processes} processes on --cluster {job.cluster}"


def check_devices(request):
    job = request.job
    if job.gpus_per_node and job.tasks_per_node != job.gpus_per_node:
        return ERROR, (
            f"--tasks_per_node {job.tasks_per_node} does not go with --gpus_per_node {job.gpus_per_node}: "
            "each process takes one GPU, so leave --tasks_per_node away"
        )
    if request.settings.accelerator == "gpu" and not job.gpus_per_node:
        return ERROR, "--accelerator gpu needs GPUs: ask for them with --gpus_per_node"
    return OK, "one process a GPU" if job.gpus_per_node else "no GPUs: the processes train on CPUs"


def check_cpus(request):
    cpus, workers = request.job.cpus_per_task, request.settings.num_workers
    if workers > cpus:
        return ERROR, f"--num_workers {workers} is more than --cpus_per_task {cpus}: they would wait for each other"
    if workers == cpus:
        return WARNING, f"--num_workers {workers} leaves no CPU of --cpus_per_task {cpus} to the training itself"
    return OK, f"--cpus_per_task {cpus} are enough for the training and --num_workers {workers}"


def check_memory(request):
    job = request.job
    share = megabytes(job.mem) // job.tasks_per_node
    level = WARNING if share < 1024 else OK  # torch and Lightning alone take half a gigabyte
    return level, f"--mem {job.mem} for each node is {share} MB for each of its {job.tasks_per_node} processes"


def check_time(request):
    limit = minutes(request.job.time)
    hours = f"{limit} minutes" if limit < 120 else f"{limit / 60:.1f} hours"
    if limit <= 2:
        return WARNING, f"--time {request.job.time} is {hours}: 90 seconds before the end the job is told to save"
    return OK, f"--time {request.job.time} is {hours}; then the job is saved and queued again"


def check_batch(request):
    batch_size, processes = request.settings.batch_size, request.job.processes
    data = data_class(request.arguments)
    if data and not divides_batches(data):
        name = data.rpartition(".")[2]
        return OK, f"the batch size of {name} is per process: the global batch is {processes} times as large"
    if sentence := indivisible(batch_size, processes):
        return ERROR, sentence
    return OK, f"--batch_size {batch_size} is {batch_size // processes} for each process"


def check_precision(request):
    precision, accelerator = request.settings.precision, request.settings.accelerator
    if precision == "16-mixed" and accelerator != "gpu":
        return ERROR, "--precision 16-mixed needs GPUs (--gpus_per_node): on CPUs take bf16-mixed"
    return OK, f"--precision {precision} on the {accelerator}"


def check_environment(request):
    """Variables of a job around this shell, and those by which sbatch lets itself be talked out of the script."""
    sbatch = sorted(key for key in os.environ if key.startswith("SBATCH_"))
    if sbatch and request.job.cluster == "slurm":
        return WARNING, f"{', '.join(sbatch)} in your environment: sbatch heeds them more than this script"
    found = strays(os.environ)
    if found:
        names = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        return WARNING, f"this shell is in a job of its own ({names}): the new job will not see these variables"
    return OK, "no variables of another job in your environment"


def check_container(request):
    job = request.job
    image, program = job.container, container_program(job)
    if not image:
        return OK, "no container"
    for folder in bound_folders(job):
        if found := re.search("[,:]", folder):
            return ERROR, f"{folder} holds {found[0]}, so it cannot be bound in a container: use another folder"
    for bind in job.container_binds:
        if "," in bind or bind.count(":") > 2:
            return ERROR, f"--container_binds {shortened(bind)} is not one FOLDER, FOLDER:INSIDE or FOLDER:INSIDE:ro"
        try:
            path_of(bind.split(":")[0], "--container_binds")
        except ValueError as error:
            return ERROR, str(error)
    if job.cluster == "debug":
        return ERROR, f"--container {image} needs another --cluster: debug runs in this Python"
    if "://" not in image and not Path(image).exists():
        return ERROR, f"--container {shortened(image)}: there is no such image"
    if not shutil.which(program):
        missing = f"--container {image} needs {program}, which is not found here"
        if job.cluster == "local" or not importlib.util.find_spec("torch"):
            return ERROR, f"{missing}: load its module first"
        return WARNING, f"{missing}: this Python checks the training and gets the data; the nodes need {program}"
    for bind in job.container_binds:
        if not Path(bind.split(":")[0]).exists():
            return WARNING, f"--container_binds {bind}: there is no such folder here; the nodes need it"
    return OK, f"the training runs in {image}"


# The name of a variable whose value is not for others, and that value, unless it is read from elsewhere.
SECRET = re.compile(
    r"\b(\w*(?:TOKEN(?!IZ|S)|SECRET|PASSWORD|PASSWD|CREDENTIAL)\w*|(?:\w*_|\w*API|\w*ACCESS|\w*PRIVATE)?KEY(?:S|_ID)?)"
    r"""=(?!["']?\$|["']?\s*$)(?!["']?[~./])""",
    re.IGNORECASE,
)


def check_secrets(request):
    job = request.job
    flags = {name: getattr(job, name) for name in ("setup", "container_env", "directives")} | {"mpirun": [job.mpirun]}
    for flag, texts in flags.items():
        for text in texts:
            if found := SECRET.search(text):
                name = found[1]
                inside = f"APPTAINERENV_{name}" if flag == "container_env" else name
                return ERROR, (
                    f"--{flag} holds the value of {name}, which would be in files that others can read: put it into a "
                    f"file of your own, and set --setup '[export {inside}=$(cat FILE)]'"
                )
    return OK, "no passwords or keys in --setup and --container_env"


def check_disk(request):
    folder = Path(request.job.log_path)
    try:
        existing = next(path for path in [folder, *folder.parents] if path.exists())
        tempfile.TemporaryFile(dir=existing).close()  # an OSError if it is somebody else's, or no folder
    except OSError as error:
        return ERROR, f"cannot write to {folder}: {error.strerror}. Name another folder with --log_path"
    free = shutil.disk_usage(existing).free
    if free < FREE_DISK:
        return WARNING, f"{free / 1024**3:.1f} GiB are free in {folder}: checkpoints may not fit"
    return OK, f"{free / 1024**3:.0f} GiB are free in {folder}"


def check_git(request):
    try:
        status = subprocess.run(
            ["git", "-C", ROOT, "status", "--porcelain"], capture_output=True, text=True, errors="replace"
        )
    except OSError:  # no git
        return OK, "there is no git to say which code this is"
    if "dubious ownership" in status.stderr:
        return WARNING, (
            "git refuses this repository because it belongs to another user, so nothing is kept to say which code this "
            f"is: git config --global --add safe.directory {ROOT}"
        )
    if status.returncode:
        return OK, "the code is not in git: nothing is kept to say which code this was"
    if changed := len(status.stdout.splitlines()):
        return WARNING, f"{changed} files differ from the last commit: the run keeps the difference in changes.patch"
    return OK, "the code is that of the last commit"


CHECKS = [
    check_place,
    check_devices,
    check_cpus,
    check_memory,
    check_time,
    check_batch,
    check_precision,
    check_environment,
    check_container,
    check_secrets,
    check_disk,
    check_git,
]


def run_checks(request):
    """The (level, sentence) of every check."""
    return [check(request) for check in CHECKS]


def heed(results, dry_run):
    """Print what run_checks() has found, all of it or the warnings. Ends where there is an error."""
    if dry_run:
        print("\nThe checks:")
        for level, sentence in results:
            print(f"{level:7}  {sentence}")
        print("\nThis was a dry run: nothing was submitted.")
    errors = [sentence for level, sentence in results if level == ERROR]
    if errors:
        sys.exit(1 if dry_run else "\n".join(errors))
    for level, sentence in results:
        if level != OK and not dry_run:
            print(f"{level}: {sentence}", file=sys.stderr)
