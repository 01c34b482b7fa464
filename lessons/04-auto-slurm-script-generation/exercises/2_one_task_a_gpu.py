"""Two nodes with four GPUs each, one process for each GPU. Four processes come, and each of them has one CPU.

python exercises/2_one_task_a_gpu.py

Repair describe(). The srun in the script starts the processes.
"""

from submitit.slurm.slurm import _make_sbatch_string


def describe(nodes, gpus_per_node, cpus_per_task):
    """The job in the names of sbatch."""
    return {
        "job_name": "two-nodes",
        "nodes": nodes,
        "additional_parameters": {"ntasks": gpus_per_node},
        "gpus_per_node": gpus_per_node,
        "cpus_per_task": cpus_per_task,
        "mem": "16G",
        "time": "00:10:00",
    }


if __name__ == "__main__":
    print(_make_sbatch_string(command="python train.py", folder="logs", **describe(2, 4, cpus_per_task=6)))
