"""No text in a flag of a job becomes a command, a directive or a word of its own: see injections.py."""

import json
import os
import subprocess
import sys

import pytest
from lesson import REPOSITORY

RUN = """
import json, sys
from pathlib import Path

from injections import run_all

cases, executed, faults = run_all(Path(sys.argv[1]))
print(json.dumps({"refused": sum(bool(case.refused) for case in cases), "executed": executed, "faults": faults}))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """All cases, in a process of their own: they change the folder and what src.launch.flags holds."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RUN_SITE")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, tmp_path_factory.mktemp("injections")],
        env=environment | {"PYTHONPATH": str(REPOSITORY / "tests")},
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_each_text_arrives_exactly_or_is_refused(outcome):
    assert not outcome["faults"], "\n".join(outcome["faults"])


def test_the_texts_are_executed(outcome):
    """A refusal of everything would be right as well, above."""
    assert outcome["executed"] > 400 and outcome["refused"] > 100
