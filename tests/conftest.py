"""What several test files share."""

import os
import sys
from pathlib import Path

import pytest
from cluster import Cluster, unavailable
from lesson import Lesson

# `python` in a command of a README is the Python that runs the tests, on the nodes of the practice cluster too.
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture(scope="session")
def cluster():
    """A running practice cluster (see cluster.py), one for the whole session."""
    if reason := unavailable():
        # In CI a Slurm test that is skipped would be a Slurm test that nobody ever runs.
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    with Cluster() as running:
        yield running


@pytest.fixture(scope="session")
def lesson_1(tmp_path_factory):
    """What the first command of lesson 1 printed, all ten epochs: lessons 2 to 4 print the same numbers."""
    return Lesson("01-simple-model-training", tmp_path_factory.mktemp("lesson-1")).run("bash ./run.sh")
