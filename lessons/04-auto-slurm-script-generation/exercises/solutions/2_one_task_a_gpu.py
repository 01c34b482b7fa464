"""Solution: ntasks counts the processes of the whole job, ntasks_per_node those of a node.

python exercises/solutions/2_one_task_a_gpu.py

And srun does not inherit --cpus-per-task from sbatch (Slurm 22.05 and later): it is told by a variable.
"""

from submitit.slurm.slurm import _make_sbatch_string


def describe(nodes, gpus_per_node, cpus_per_task):
    """The job in the names of sbatch."""
    return {
        "job_name": "two-nodes",
        "nodes": nodes,
        "ntasks_per_node": gpus_per_node,
        "gpus_per_node": gpus_per_node,
        "cpus_per_task": cpus_per_task,
        "mem": "16G",
        "time": "00:10:00",
        "setup": ["export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"],
    }


if __name__ == "__main__":
    print(_make_sbatch_string(command="python train.py", folder="logs", **describe(2, 4, cpus_per_task=6)))
