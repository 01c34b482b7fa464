#!/bin/bash
# Solution: the exit code of a pipe is that of its last command, and that of a script, too. PIPESTATUS has them all.
#
# bash lessons/14-containers-and-other-clusters/exercises/solutions/2_exit_code.sh python no_such_file.py

"$@" 2>&1 | tee log.txt
code=${PIPESTATUS[0]}
echo "ended: $(date)" | tee -a log.txt
exit "$code"
