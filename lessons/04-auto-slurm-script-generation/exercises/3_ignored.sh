#!/bin/bash
# The log of this job is not where it should be, and the job has other limits than those written here.
#
# bash exercises/3_ignored.sh
#
# Repair the order of the lines: sbatch reads them as long as they are its own or comments.

#SBATCH --job-name=ignored
set -e
NAME=first

#SBATCH --time=00:05:00
#SBATCH --cpus-per-task=2
#SBATCH --output=slurm.%j.out

echo "experiment $NAME: ${SLURM_CPUS_PER_TASK:-no} CPUs asked for"
