"""torchrun starts four processes in an interactive Slurm job. All four believe that they are alone.

python lessons/14-containers-and-other-clusters/exercises/1_rank.py

Repair rank_and_size(). Variables of the shell that everything was typed in are still there.
"""


def rank_and_size(environ):
    """The number of this process and how many there are, from the variables of whatever has started it."""
    if "SLURM_PROCID" in environ:
        return int(environ["SLURM_PROCID"]), int(environ["SLURM_NTASKS"])
    if "OMPI_COMM_WORLD_RANK" in environ:
        return int(environ["OMPI_COMM_WORLD_RANK"]), int(environ["OMPI_COMM_WORLD_SIZE"])
    if "RANK" in environ:
        return int(environ["RANK"]), int(environ["WORLD_SIZE"])
    return 0, 1


if __name__ == "__main__":
    shell = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}  # srun --pty bash
    for rank in range(4):
        print(rank_and_size(shell | {"RANK": str(rank), "WORLD_SIZE": "4"}))
