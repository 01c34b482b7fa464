"""Are the exercises of this lesson right? See lessons/check.py."""

import subprocess
from pathlib import Path


def rank(exercise):
    slurm = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "5", "SLURM_NTASKS": "8"}
    shell = {"SLURM_JOB_ID": "12", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
    torchrun = {"RANK": "3", "WORLD_SIZE": "4"}
    mpirun = {"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "6"}
    once_a_node = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}
    for case, environ, expected in (
        ("torchrun in the shell of a job", shell | torchrun, (3, 4)),
        ("srun", slurm, (5, 8)),
        ("mpirun in the script of a job", shell | mpirun, (2, 6)),
        ("torchrun alone", torchrun, (3, 4)),
        ("mpirun alone", mpirun, (2, 6)),
        ("torchrun, started on each node by mpirun", shell | once_a_node | torchrun, (3, 4)),
        ("no launcher at all", {"HOME": "/home/you"}, (0, 1)),
    ):
        found = tuple(exercise.rank_and_size(environ))
        if found != expected:
            return f"{case}: {found} instead of {expected}. Whose variables were set last?"


def exit_code(script):
    """script: its path"""
    for code in (0, 3, 77):
        Path("log.txt").unlink(missing_ok=True)
        command = f"echo to stdout; echo to stderr >&2; exit {code}"
        done = subprocess.run(["bash", script, "bash", "-c", command], capture_output=True, text=True)
        if done.returncode != code:
            return f"the command ends with {code}, the job with {done.returncode}. Whose exit code is that?"
        log = Path("log.txt").read_text() if Path("log.txt").exists() else ""
        for text in (log, done.stdout):
            if not all(line in text for line in ("to stdout", "to stderr", "ended: ")):
                return (
                    f"exit code {code}: the output, with the last line, has to be in the log of the job and in log.txt"
                )
