"""Are the exercises of this lesson right? See lessons/check.py."""

import re
import subprocess

from submitit.slurm.slurm import _make_sbatch_string

SHORT = {"-t": "--time", "-c": "--cpus-per-task", "-o": "--output", "-J": "--job-name"}


def options(lines):
    """What sbatch reads: --name=value in its lines, up to the first command."""
    found = {}
    for line in lines:
        if line.startswith("#SBATCH "):
            for name, value in re.findall(r"(--?[\w-]+)[ =]*(\S*)", line.partition(" ")[2]):
                found[SHORT.get(name, name)] = value
        elif line.strip() and not line.startswith("#"):
            break
    return found


def script(job):
    """The script that submitit makes of the job: its options, and all of its text."""
    text = _make_sbatch_string(command="python train.py", folder="logs", **job)
    return options(text.splitlines()), text


def minutes(time):
    """A time limit as Slurm reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:
        parts.insert(0, 0)  # no hours
    hours, mins, secs = (parts + [0, 0])[:3]
    return int(days or 0) * 1440 + hours * 60 + mins + secs / 60


def two_hours(exercise):
    found, _ = script(exercise.describe())
    if minutes(found["--time"]) != 120:
        return (
            f"--time={found['--time']} is {minutes(found['--time']):g} minutes to Slurm. In which unit is one number?"
        )
    number, unit = re.fullmatch(r"(\d+)([KMGT]?)B?", found["--mem"]).groups()
    megabytes = int(number) * {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}[unit]
    if megabytes not in (4000, 4096):
        return f"--mem={found['--mem']} is {megabytes:g} megabytes to Slurm"


def one_task_a_gpu(exercise):
    for nodes, gpus in ((2, 4), (3, 1)):
        found, text = script(exercise.describe(nodes, gpus, 6))
        tasks = int(found["--ntasks"]) if "--ntasks" in found else nodes * int(found.get("--ntasks-per-node", 1))
        if tasks != nodes * gpus:
            return f"{nodes} nodes with {gpus} GPUs each need {nodes * gpus} processes, Slurm would start {tasks}"
        if found.get("--ntasks-per-node") != str(gpus):
            return "there are as many processes as GPUs now. What says that they are spread evenly over the nodes?"
        if found.get("--nodes") != str(nodes) or found.get("--gpus-per-node") != str(gpus):
            return f"--nodes and --gpus-per-node have to stay {nodes} and {gpus}"
        if found.get("--cpus-per-task") != "6":
            return "each process has to get the 6 CPUs that were asked for"
        before_srun = text[: re.search("^srun", text, re.MULTILINE).start()]
        if "export SRUN_CPUS_PER_TASK=" not in before_srun:
            return "the processes are there, with one CPU each. How does run.py tell srun about --cpus-per-task?"


def ignored(script):
    """script: its path"""
    text = script.read_text()
    wanted = {"--job-name": "ignored", "--time": "00:05:00", "--cpus-per-task": "2", "--output": "slurm.%j.out"}
    missing = [name for name, value in wanted.items() if options(text.splitlines()).get(name) != value]
    if missing:
        return f"sbatch does not see {', '.join(missing)}. Up to which line does it read?"
    done = subprocess.run(["bash", script], capture_output=True, text=True)
    if done.returncode or not done.stdout.startswith("experiment first: "):
        return f"the script itself has to do what it did before: {(done.stdout + done.stderr).strip()}"
