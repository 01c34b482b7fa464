"""Check what needs torch before a search starts: each value that can be searched, one at a time.

run.py calls this in a process of its own; where no job is submitted, in the process that trains.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if sys.path[:1] != [str(ROOT)]:  # the first, because another package may be called src
    sys.path.insert(0, str(ROOT))

from src.train import prepare  # noqa: E402


def prepare_study(arguments, values):
    """The merged configuration, as YAML.

    Args:
        arguments: for src/train.py
        values: {flag: [value]}, as typed
    Raises:
        ValueError, SystemExit: with one sentence that says what is wrong
    """
    config = prepare("fit", arguments)
    for name, tried in values.items():
        for value in tried:
            try:
                prepare("fit", [*arguments, f"--{name}={value}"])
            except (ValueError, SystemExit) as error:
                raise ValueError(f"--search.{name} {value}: {error}") from error
    return config


if __name__ == "__main__":
    try:
        print(prepare_study(**json.loads(sys.argv[1])), end="")
    except ValueError as error:
        sys.exit(str(error))
