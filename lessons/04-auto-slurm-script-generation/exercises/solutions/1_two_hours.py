"""Solution: a number without a unit means minutes, or megabytes. Nobody has to know that of what has a unit.

python exercises/solutions/1_two_hours.py
"""

from submitit.slurm.slurm import _make_sbatch_string


def describe():
    """The job in the names of sbatch: two hours, 4 GB of memory on the node."""
    return {"job_name": "long", "nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 2, "mem": "4G", "time": "02:00:00"}


if __name__ == "__main__":
    print(_make_sbatch_string(command="python train.py", folder="logs", **describe()))
