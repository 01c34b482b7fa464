#!/bin/bash
# Fill the folder that travels to a GPU machine without network:
#
#     bash tests/gpu/prepare.sh DIR [FILE ...]
#
# Each FILE is copied into DIR: an archive of CIFAR-10 as image files, NAME.tar.xz (train/CLASS/*, test/CLASS/*), or a
# published speed run, NAME.py. Neither is part of this repository.
# The wheels are for Python 3.12 on x86-64. PYTHON_VERSION=3.13 selects a different Python.
set -euo pipefail
limit=45 # MiB
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
fail() {
    echo "$1" >&2
    exit 2
}
[ $# -gt 0 ] && [ "${1#-}" = "$1" ] || fail "usage: bash tests/gpu/prepare.sh DIR [FILE ...]"
folder=$1
shift
[ -z "$(ls -A "$folder" 2>/dev/null)" ] || fail "$folder is not empty: name a new folder"
for file in "$@"; do
    case $file in
    *.tar.xz | *.py) [ -f "$file" ] || fail "$file does not exist" ;;
    *) fail "$file is neither an archive of images (.tar.xz) nor a speed run (.py)" ;;
    esac
done

# The packages that a machine with PyTorch usually lacks, in the versions of requirements.txt, and their dependencies.
mapfile -t packages < <(grep -E '^(submitit|jsonargparse|optuna)\b' "$root/requirements.txt" | sed 's/\[[a-z]*\]//')
packages+=(docstring-parser typeshed-client importlib-resources alembic mako colorlog sqlalchemy)
mkdir -p "$folder"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest "$folder/wheels" \
    --implementation cp --python-version "${PYTHON_VERSION:-3.12}" --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 "${packages[@]}"
[ $# = 0 ] || cp "$@" "$folder"

bytes=$(find "$folder" -type f -printf '%s\n' | awk '{sum += $1} END {print sum}')
wheels=$(find "$folder/wheels" -name '*.whl' | wc -l)
echo "$folder: $wheels wheels and $# files, $(awk "BEGIN {printf \"%.1f\", $bytes / 2^20}") MiB"
if [ "$bytes" -gt $((limit * 2 ** 20)) ]; then
    echo "$folder is too large to travel: the limit is $limit MiB" >&2
    exit 1
fi
