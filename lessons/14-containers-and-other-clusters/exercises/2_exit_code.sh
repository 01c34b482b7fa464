#!/bin/bash
# This job is COMPLETED, also when its training has failed.
#
# bash lessons/14-containers-and-other-clusters/exercises/2_exit_code.sh python no_such_file.py; echo "exit code: $?"
#
# Repair it: the exit code of the job is that of its command. Output still goes to log.txt, too, and the last line is
# written after a failure as well.

"$@" 2>&1 | tee log.txt
echo "ended: $(date)" | tee -a log.txt
