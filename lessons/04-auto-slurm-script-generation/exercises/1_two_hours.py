"""This job needs two hours and 4 GB of memory. It gets two minutes and 4 MB.

python exercises/1_two_hours.py

Repair describe().
"""

from submitit.slurm.slurm import _make_sbatch_string


def describe():
    """The job in the names of sbatch: two hours, 4 GB of memory on the node."""
    return {"job_name": "long", "nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 2, "mem": 4, "time": 2}


if __name__ == "__main__":
    print(_make_sbatch_string(command="python train.py", folder="logs", **describe()))
