"""Solution: the innermost launcher comes first. Its variables are the last that were set.

python lessons/14-containers-and-other-clusters/exercises/solutions/1_rank.py

Slurm is asked last: its variables are in everything that runs in a job. And torchrun may be started by mpirun, once a
node, never the other way round.
"""


def rank_and_size(environ):
    """The number of this process and how many there are, from the variables of whatever has started it."""
    if "RANK" in environ:
        return int(environ["RANK"]), int(environ["WORLD_SIZE"])
    if "OMPI_COMM_WORLD_RANK" in environ:
        return int(environ["OMPI_COMM_WORLD_RANK"]), int(environ["OMPI_COMM_WORLD_SIZE"])
    if "SLURM_PROCID" in environ:
        return int(environ["SLURM_PROCID"]), int(environ["SLURM_NTASKS"])
    return 0, 1


if __name__ == "__main__":
    shell = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}  # srun --pty bash
    for rank in range(4):
        print(rank_and_size(shell | {"RANK": str(rank), "WORLD_SIZE": "4"}))
