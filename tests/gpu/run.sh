#!/bin/bash
# Test and measure on a machine with one GPU, without network:
#
#     bash tests/gpu/run.sh OUT
#
# OUT is the folder for the results. tests/gpu/README.md describes the steps and the options.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=$root/env/bin/python
[ -x "$python" ] || python=python3
exec "${PYTHON:-$python}" "$root/tests/gpu/run.py" "$@"
