#!/bin/bash
# On a Slurm cluster:    sbatch ./run.sh
# On your own machine:   bash ./run.sh
# Flags go to main.py:   sbatch ./run.sh --max_epochs 3

#SBATCH --job-name=lesson-2
#SBATCH --time=00:10:00
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --output=slurm.%j.out

set -e  # stop at the first command that fails, so that Slurm shows FAILED and not COMPLETED
if [ -f ../../env/bin/activate ]; then source ../../env/bin/activate; fi  # else the python that is active

python ../../data/get_data.py mnist  # unpacks the bundled archives; does nothing the second time
python -u src/main.py "$@"           # -u: each line is in the log as soon as it is printed
