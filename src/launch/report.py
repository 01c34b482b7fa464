"""What a job asked for and what it used, so that the next one asks for less and waits less."""

import math
import re
import sys

from src.launch.job import megabytes, minutes
from src.launch.records import read_record
from src.launch.runs import clock
from src.launch.slurm import ask

FIELDS = ["JobIDRaw", "State", "ElapsedRaw", "TotalCPU", "MaxRSS", "AllocCPUS", "TimelimitRaw", "ReqMem", "NTasks"]
HEADROOM = 1.2


def cpu_seconds(text):
    """sacct's [D-][HH:]MM:SS[.mmm] in seconds."""
    days, _, rest = text.rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = seconds * 60 + float(part or 0)
    return int(days or 0) * 86400 + seconds


def rss_megabytes(text):
    """sacct's 123456K, 12.5M, 1G in MB; 0 where it has measured nothing."""
    match = re.fullmatch(r"([\d.]+)([KMGT]?)", text)
    return float(match[1]) * {"": 1 / 1024**2, "K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[match[2]] if match else 0


def as_mem(size):
    """Megabytes as a value for --mem, rounded up: to whole gigabytes from 2G on, to 100M below."""
    return f"{math.ceil(size / 1024)}G" if size > 1900 else f"{math.ceil(size / 100) * 100}M"


def as_time(seconds):
    """Seconds as a value for --time, rounded up to 5 minutes."""
    total = math.ceil(seconds / 300) * 5
    return (
        f"{total // 60:02}:{total % 60:02}:00"
        if total < 1440
        else f"{total // 1440}-{total // 60 % 24:02}:{total % 60:02}:00"
    )


def print_report(folder):
    """Requested against used, of all attempts of a run; one sentence each on what to ask for next time."""
    record = read_record(folder)
    job = record["job"]
    ids = [submission["id"] for submission in record["submissions"] if "id" in submission]
    if not ids:
        sys.exit(f"{folder.name} ran without Slurm: nobody has counted its CPUs and memory, there is no accounting")
    sacct = ["sacct", "-D", "--noheader", "--parsable2", f"--format={','.join(FIELDS)}", f"--jobs={','.join(ids)}"]
    rows = [dict(zip(FIELDS, line.split("|"), strict=True)) for line in ask(*sacct)]
    jobs = [row for row in rows if "." not in row["JobIDRaw"]]
    if not jobs:
        sys.exit(f"Slurm has no accounting of job {ids[-1]}: of a new job it comes late, and not every cluster has one")

    steps = [row for row in rows if re.search(r"\.\d+$", row["JobIDRaw"])]  # srun's: not the batch script
    elapsed = sum(int(row["ElapsedRaw"]) for row in jobs)
    longest = max(int(row["ElapsedRaw"]) for row in jobs)
    cpu_time = sum(cpu_seconds(row["TotalCPU"]) for row in steps)
    step_elapsed = sum(int(row["ElapsedRaw"]) for row in steps if cpu_seconds(row["TotalCPU"]) > 0)
    rss = max((rss_megabytes(row["MaxRSS"]) for row in steps), default=0)
    processes = job["nodes"] * job["tasks_per_node"]
    busy = cpu_time / step_elapsed / processes if step_elapsed else 0  # CPUs of a process that were busy
    memory = rss * job["tasks_per_node"]
    states = ", ".join(row["State"].split()[0] for row in jobs)

    print(f"run {folder.name}: {len(jobs)} attempt{'s' * (len(jobs) > 1)} ({states}), {processes} processes")
    print(f"{'':20}{'asked for':>14}{'used':>14}")
    print(f"{'CPUs of a process':20}{job['cpus_per_task']:>14}{busy:>14.1f}")
    print(f"{'memory of a node':20}{job['mem']:>14}{f'{memory:.0f}M':>14}")
    print(f"{'time':20}{job['time']:>14}{clock(longest):>14}   (the longest attempt; all together {clock(elapsed)})")
    print(f"\nNext time, with {HEADROOM - 1:.0%} to spare:")
    print(f"- {cpu_advice(job, busy)}")
    print(f"- {memory_advice(job, memory)}")
    print(f"- {time_advice(job, jobs, longest)}")


def cpu_advice(job, busy):
    if not busy:
        return "CPUs: nothing was measured, the job was too short or did not end by itself."
    wanted = max(1, math.ceil(busy * HEADROOM))
    if wanted < job["cpus_per_task"]:
        return f"--cpus_per_task {wanted}: {busy:.1f} of {job['cpus_per_task']} CPUs were busy."
    if busy > 0.9 * job["cpus_per_task"]:
        return f"--cpus_per_task {2 * job['cpus_per_task']} may be faster: all {job['cpus_per_task']} CPUs were busy."
    return f"--cpus_per_task {job['cpus_per_task']} was right: {busy:.1f} were busy."


def memory_advice(job, memory):
    if not memory:
        return "Memory: nothing was measured, the job was shorter than Slurm's interval."
    wanted = as_mem(memory * HEADROOM)
    if memory * HEADROOM > megabytes(job["mem"]):
        return f"--mem {wanted}: {memory:.0f} MB of {job['mem']} were used, that is close to the limit."
    if megabytes(wanted) >= megabytes(job["mem"]):
        return f"--mem {job['mem']} was right: {memory:.0f} MB were used."
    return f"--mem {wanted}: {memory:.0f} MB of {job['mem']} were used."


def time_advice(job, jobs, longest):
    if jobs[-1]["State"].split()[0] != "COMPLETED":
        return f"--time: it has not come to its end, so {job['time']} says nothing yet."
    if len(jobs) > 1:
        return f"--time {job['time']}: it took {len(jobs)} attempts; a longer time may save the restarts."
    wanted = as_time(longest * HEADROOM)
    if minutes(wanted) >= minutes(job["time"]):
        return f"--time {job['time']} was right: it took {clock(longest)}."
    return f"--time {wanted}: it took {clock(longest)}; short jobs wait less."
