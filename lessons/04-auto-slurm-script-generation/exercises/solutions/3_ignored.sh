#!/bin/bash
# Solution: all lines of sbatch stand before the first command. What comes after it is a comment to Slurm, too.
#
# bash exercises/solutions/3_ignored.sh

#SBATCH --job-name=ignored
#SBATCH --time=00:05:00
#SBATCH --cpus-per-task=2
#SBATCH --output=slurm.%j.out

set -e
NAME=first

echo "experiment $NAME: ${SLURM_CPUS_PER_TASK:-no} CPUs asked for"
