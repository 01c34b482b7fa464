"""Which process of how many is this? Whoever started it said so in the environment, each in words of its own.

export_ranks() says it again in the words that torch and Lightning read, torchrun's: RANK, WORLD_SIZE, LOCAL_RANK,
LOCAL_WORLD_SIZE, GROUP_RANK (the node's number), and MASTER_ADDR, MASTER_PORT, where the processes find each other.
"""

import os
import re
import subprocess
import sys
import zlib

# Variables that hold a process's number, how many there are, and both for its node alone. The first that is set counts.
TORCHRUN = ["RANK"], ["WORLD_SIZE"], ["LOCAL_RANK"], ["LOCAL_WORLD_SIZE"]
OPEN_MPI = (
    ["OMPI_COMM_WORLD_RANK"],
    ["OMPI_COMM_WORLD_SIZE"],
    ["OMPI_COMM_WORLD_LOCAL_RANK"],
    ["OMPI_COMM_WORLD_LOCAL_SIZE"],
)
# MPICH and Intel MPI (Hydra), Cray (PALS)
MPICH = (
    ["PMI_RANK", "PALS_RANKID", "PMIX_RANK"],
    ["PMI_SIZE", "PALS_SIZE"],
    ["MPI_LOCALRANKID", "PALS_LOCAL_RANKID", "PMI_LOCAL_RANK"],
    ["MPI_LOCALNRANKS", "PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"],
)
SUBMITIT_LOCAL = (
    ["SUBMITIT_LOCAL_GLOBALID"],
    ["SUBMITIT_LOCAL_NTASKS"],
    ["SUBMITIT_LOCAL_LOCALID"],
    ["SUBMITIT_LOCAL_NTASKS"],
)
# What one run of mpirun calls itself, the same in all its processes.
MPI_JOB = ["PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "PALS_APID", "PMI_JOBID"]

OURS = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"]
# What a launcher leaves in a shell. Processes that are started from it must not take it for their own.
LAUNCHERS = ("SLURM_", "SUBMITIT_", "OMPI_COMM_WORLD_", "PMI_", "PMIX_", "PALS_", "MPI_LOCAL", "TORCHELASTIC_")
KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")  # which cluster, not which job


def strays(environment):
    """The names of variables that belong to the job or the launcher around this shell."""
    return sorted(key for key in environment if key in OURS or (key.startswith(LAUNCHERS) and key not in KEPT))


def drop_strays():
    """Take these variables out of this process's environment, before it starts others."""
    for name in strays(os.environ):
        del os.environ[name]


def cpu_numbers() -> list[int]:
    """The CPUs that this process may use. macOS does not say which, so there it is all of the machine."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(cpu_numbers())


def number_in(name: str) -> int:
    """The whole number in this variable. Exits with one sentence if it holds something else."""
    value = os.environ[name]
    if not re.fullmatch(r"[0-9]{1,9}", value):
        sys.exit(f"{name} is {value[:40]!r}, not a whole number: unset it, or set it to what the launcher sets")
    return int(value)


def first_set(names: list[str]) -> int | None:
    """The whole number in the first of these variables that is set, else None."""
    return next((number_in(name) for name in names if os.environ.get(name)), None)


def started_by(launcher) -> tuple[int, int, int, int] | None:
    """(rank, processes, rank on the node, processes on the node) if this launcher started the process, else None."""
    rank, size, local_rank, local_size = (first_set(names) for names in launcher)
    if rank is None or size is None or local_rank is None:
        return None
    return rank, size, local_rank, size if local_size is None else local_size


def started_by_srun() -> tuple[int, int, int, int] | None:
    """The same for a process of srun. SLURM_STEP_NUM_TASKS is srun's own: a batch script has SLURM_PROCID too."""
    rank, size = first_set(["SLURM_PROCID"]), first_set(["SLURM_STEP_NUM_TASKS"])
    if rank is None or size is None:
        return None
    needed = ["SLURM_NODEID", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"]
    lacking = [name for name in needed if not os.environ.get(name)]
    if lacking:
        sys.exit(f"SLURM_PROCID is set and {lacking[0]} is not: srun sets both; start with srun, or unset SLURM_PROCID")
    # How many processes on each node: "2(x3),1" is 2,2,2,1.
    counts, told = [], os.environ["SLURM_STEP_TASKS_PER_NODE"]
    for part in told.split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", part)
        counts += [int(match[1])] * int(match[2] or 1) if match else []
    node = number_in("SLURM_NODEID")
    if sum(counts) != size or node >= len(counts):
        sys.exit(
            f"SLURM_STEP_TASKS_PER_NODE={told[:40]} does not fit SLURM_STEP_NUM_TASKS={size} and SLURM_NODEID={node}: "
            "start with srun, or unset the variables of Slurm"
        )
    return rank, size, number_in("SLURM_LOCALID"), counts[node]


def first_host(nodes: str) -> str:
    """The first of gpu[03-05,9],login1. In a container there may be no scontrol: then the list is read here."""
    try:
        names = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60)
        if names.returncode == 0 and names.stdout:
            return names.stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired):
        pass
    first = re.match(r"(?:[^,\[\]\s]|\[[0-9][0-9,-]*\])+(?=,|$)", nodes)  # a comma in brackets does not end a name
    if not first:
        sys.exit(f"{nodes[:80]!r} is not a list of hosts, such as node[1-4]: set MASTER_ADDR to the first host")
    return re.sub(r"\[([0-9]+)[^\]]*\]", r"\1", first[0])


def port_of(job):
    """A port for this text, the same for all who ask: between 20000 and 32000, where Linux gives none to others."""
    return 20000 + zlib.crc32(job.encode()) % 12000


def export_ranks() -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR, MASTER_PORT where they are not set.

    Exits with one sentence when these numbers cannot be, or when several nodes have no MASTER_ADDR and nobody to ask.
    """
    of_torchrun = ["RANK", "LOCAL_RANK", "WORLD_SIZE"]
    given = [name for name in of_torchrun if os.environ.get(name)]
    if given and given != of_torchrun:
        lacking = next(name for name in of_torchrun if name not in given)
        sys.exit(
            f"{given[0]} is set and {lacking} is not: torchrun sets both, so unset {given[0]}, "
            "or set all that torchrun sets"
        )
    for name in OURS:  # an empty variable is as good as none
        if not os.environ.get(name, "-"):
            del os.environ[name]
    for name in ("LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_PORT"):
        if name in os.environ:
            number_in(name)
    if not 0 < int(os.environ.get("MASTER_PORT", 1)) < 65536:
        sys.exit(f"MASTER_PORT is {os.environ['MASTER_PORT']}, not a port: take a number from 1 to 65535")
    told = started_by(TORCHRUN) or started_by(SUBMITIT_LOCAL) or started_by(OPEN_MPI) or started_by(MPICH)
    srun = None if told else started_by_srun()
    rank, size, local_rank, local_size = told or srun or (0, 1, 0, 1)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", local_size))
    if not (rank < size and local_rank < local_size <= size):
        sys.exit(
            f"a process cannot be number {rank} of {size}, and {local_rank} of {local_size} on its node "
            "(the first is 0): unset RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, or set them as torchrun does"
        )
    if told and "GROUP_RANK" not in os.environ and (size % local_size or rank % local_size != local_rank):
        sys.exit(
            f"process {rank} of {size} is number {local_rank} of {local_size} on its node: give each node equally many "
            "processes, numbered node by node, with mpirun --map-by slot (Open MPI) or -ppn (others)"
        )
    found = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": local_size,
        "GROUP_RANK": os.environ["SLURM_NODEID"] if srun else rank // local_size,
    }

    if size == local_size:
        found["MASTER_ADDR"] = "127.0.0.1"  # needs no name to be looked up
    elif "MASTER_ADDR" in os.environ:
        pass
    elif srun:
        found["MASTER_ADDR"] = first_host(os.environ.get("SLURM_STEP_NODELIST", ""))
    elif "SLURM_JOB_NODELIST" in os.environ:  # mpirun in a Slurm job
        found["MASTER_ADDR"] = first_host(os.environ["SLURM_JOB_NODELIST"])
    else:
        sys.exit(
            f"{size} processes on several nodes do not know where to meet: set MASTER_ADDR to the name of the first "
            "node in all of them, such as mpirun -x MASTER_ADDR=node1 (Open MPI) or -genv MASTER_ADDR node1 (others)"
        )
    if srun:
        # Another for each step and each restart: the port of the one before may not be free yet.
        parts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        found["MASTER_PORT"] = port_of(" ".join(os.environ.get(part, "0") for part in parts))
    else:
        found["MASTER_PORT"] = port_of(
            next((os.environ[name] for name in MPI_JOB if name in os.environ), str(os.getppid()))
        )
    for name, value in found.items():
        os.environ.setdefault(name, str(value))
