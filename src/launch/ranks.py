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


def first_set(names):
    """The whole number in the first of these variables that is set, else None."""
    return next((int(os.environ[name]) for name in names if is_number(os.environ.get(name, ""))), None)


def is_number(text):
    return re.fullmatch("[0-9]{1,9}", text) is not None


def started_by(launcher):
    """(rank, processes, rank on the node, processes on the node) if this launcher started the process, else None."""
    rank, size, local_rank, local_size = (first_set(names) for names in launcher)
    if rank is None or size is None or local_rank is None:
        return None
    return rank, size, local_rank, local_size or size


def started_by_srun():
    """The same for a process of srun. SLURM_STEP_NUM_TASKS is srun's own: a batch script has SLURM_PROCID too."""
    rank, size = first_set(["SLURM_PROCID"]), first_set(["SLURM_STEP_NUM_TASKS"])
    if rank is None or size is None:
        return None
    node, local_rank = first_set(["SLURM_NODEID"]), first_set(["SLURM_LOCALID"])
    # How many processes on each node: "2(x3),1" is 2,2,2,1.
    counts = []
    for part in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part):
            counts += [int(match[1])] * int(match[2] or 1)
    if node is None or local_rank is None or node >= len(counts):
        sys.exit(
            "SLURM_PROCID is set, and SLURM_NODEID, SLURM_LOCALID or SLURM_STEP_TASKS_PER_NODE is missing or wrong: "
            "start the processes with srun, which sets them all, or unset SLURM_PROCID"
        )
    return rank, size, local_rank, counts[node]


def first_host(nodes):
    """The first of gpu[03-05,9],login1. In a container there may be no scontrol: then the list is read here."""
    try:
        names = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, timeout=60)
        if names.returncode == 0 and names.stdout:
            return names.stdout.split()[0]
    except (OSError, subprocess.TimeoutExpired):
        pass
    first = re.match(r"(?:[^,\[\]]|\[[^\]]+\])+", nodes)
    if not first:
        sys.exit(f"Slurm's list of nodes, {nodes!r}, cannot be read: set MASTER_ADDR to the name of the first node")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])  # of each [03-05,9] the first number


def port_of(job):
    """A port for this text, the same for all who ask: between 20000 and 32000, where Linux gives none to others."""
    return 20000 + zlib.crc32(job.encode()) % 12000


def export_ranks():
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK, MASTER_ADDR, MASTER_PORT where they are not set.

    Exits with one sentence when several nodes have no MASTER_ADDR and nobody to ask for it.
    """
    if "RANK" in os.environ and "LOCAL_RANK" not in os.environ:
        sys.exit("RANK is set and LOCAL_RANK is not: torchrun sets both, so unset RANK, or set all that torchrun sets")
    mpi = started_by(OPEN_MPI) or started_by(MPICH)
    told = started_by(TORCHRUN) or started_by(SUBMITIT_LOCAL) or mpi
    srun = None if told else started_by_srun()
    if not told and not srun and "WORLD_SIZE" in os.environ and "RANK" not in os.environ:
        sys.exit("WORLD_SIZE is set and RANK is not: torchrun sets both, so unset WORLD_SIZE, or start with torchrun")
    if told and told == mpi:
        refuse_uneven(*mpi)
    rank, size, local_rank, local_size = told or srun or (0, 1, 0, 1)
    found = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": local_rank,
        "LOCAL_WORLD_SIZE": local_size,
        "GROUP_RANK": os.environ["SLURM_NODEID"] if srun else rank // local_size,
    }

    if size == local_size:
        found["MASTER_ADDR"] = "127.0.0.1"  # needs no name to be looked up
    elif srun:
        found["MASTER_ADDR"] = first_host(os.environ.get("SLURM_STEP_NODELIST", ""))
    elif "SLURM_JOB_NODELIST" in os.environ:  # mpirun in a Slurm job
        found["MASTER_ADDR"] = first_host(os.environ["SLURM_JOB_NODELIST"])
    elif "MASTER_ADDR" not in os.environ:
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
    refuse_impossible()


def refuse_uneven(rank, size, local_rank, local_size):
    """The number of a node is known only where MPI places the processes node by node, as many on each."""
    if size != local_size and (size % local_size or rank % local_size != local_rank):
        sys.exit(
            f"process {rank} of {size} is number {local_rank} of {local_size} on its node: place the processes node by "
            f"node, as many on each, such as --map-by ppr:{local_size}:node (Open MPI) or -ppn {local_size} (others)"
        )


def refuse_impossible():
    """Exit with one sentence if the variables contradict each other: some may have been set by hand."""
    texts = {name: os.environ[name] for name in OURS if name != "MASTER_ADDR"}
    if all(map(is_number, texts.values())):
        numbers = {name: int(text) for name, text in texts.items()}
        if (
            numbers["RANK"] < numbers["WORLD_SIZE"]
            and numbers["LOCAL_RANK"] < numbers["LOCAL_WORLD_SIZE"] <= numbers["WORLD_SIZE"]
            and numbers["MASTER_PORT"] < 65536
        ):
            return
    shown = ", ".join(f"{name}={text[:40]}" for name, text in texts.items())
    sys.exit(f"{shown} cannot be right: unset them, or set all that torchrun sets")
