"""What several test files share."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster, unavailable
from lesson import Lesson, cannot_run

pytest_plugins = ["leftovers"]  # a run that leaves a process, a mount or a file behind fails

# `python` in a command of a README is the Python that runs the tests, on the nodes of the practice cluster too.
os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
# Two processes of pytest share the cores: a thread that waits for another must not spin. It changes no digit.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Files that take long are the first, so that no process of pytest has one left when the other has nothing more to do.
# Lesson 1 is the very first, because others wait for what it prints.
FIRST = """
    test_01 test_14 test_resume test_projects test_gpu_run test_08 test_09 test_launch test_05 test_06 test_11 test_12
    test_07 test_outputs test_doctor test_04 test_train test_exercises test_10
""".split()  # noqa: SIM905


def pytest_configure(config):
    """Tests without the mark gpu are for CPUs, also on a machine with a GPU."""
    if config.option.markexpr != "gpu" and Path("/dev/nvidiactl").exists():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session):
    session.environment = dict(os.environ)


@pytest.fixture(autouse=True)
def the_same_environment(request):
    """Each test begins with the variables of pytest. src.train, for one, notes this process's rank in them."""
    pytests = {name: value for name, value in os.environ.items() if name.startswith("PYTEST_")}
    os.environ.clear()
    os.environ.update(request.session.environment | pytests)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(FIRST)}

    def place(item):
        return next((place for name, place in places.items() if item.path.name.startswith(name)), len(FIRST))

    items.sort(key=place)


@pytest.fixture(scope="session")
def namespaces():
    """Mounts, networks and the practice cluster are for root, on Linux: what asks for them cannot run without."""
    if reason := unavailable():
        cannot_run(reason)


@pytest.fixture(scope="session")
def cluster(namespaces):
    """A running practice cluster (see cluster.py), one for the whole session."""
    with Cluster() as running:
        yield running


@pytest.fixture
def own_cluster(namespaces):
    """One for a single test, in which nodes crash."""
    with Cluster() as running:
        yield running


@pytest.fixture(scope="session")
def lesson_1(tmp_path_factory):
    """What the first command of lesson 1 printed, all ten epochs: later lessons print the same numbers.

    One training for all processes of pytest: the first that needs it trains.
    """
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    kept = folder / "lesson-1.json"
    with open(folder / "lesson-1.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            lesson = Lesson("01-simple-model-training", tmp_path_factory.mktemp("lesson-1"))
            done = lesson.run("bash ./run.sh", real=True)
            kept.write_text(json.dumps([done.returncode, done.stdout, done.stderr]))
    return subprocess.CompletedProcess("bash ./run.sh", *json.loads(kept.read_text()))
