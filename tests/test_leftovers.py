"""A run of the tests that leaves something on the machine fails, and names it."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lesson import REPOSITORY

LEAVES = {
    "nothing": "",
    "tensors of a killed process": "Path('/dev/shm/torch_999999999_1_1').touch()",
    "a process": "subprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "a process of a process": "subprocess.run(['bash', '-c', 'setsid sleep 1000 &'])",
    "a file": "Path('/dev/shm/left-by-a-test').touch()",
    "tensors of a living process": "Path(f'/dev/shm/torch_{os.getppid()}_1_1').touch()",
}
NAMED = {
    "a process": "sleep 1000",
    "a process of a process": "sleep 1000",
    "a file": "/dev/shm: left-by-a-test",
    "tensors of a living process": "/dev/shm: torch_",
}


@pytest.fixture
def suite(tmp_path):
    """Run one test as pytest runs those of this repository; returns the ended process."""
    shutil.copy(REPOSITORY / "tests/leftovers.py", tmp_path)
    (tmp_path / "conftest.py").write_text(
        "import leftovers\n\npytest_plugins = ['leftovers']\nleftovers.PATIENCE = 1\n"
    )

    def run(line):
        code = f"import os, subprocess\nfrom pathlib import Path\n\ndef test_it():\n    {line or 'pass'}\n"
        (tmp_path / "test_it.py").write_text(code)
        command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "test_it.py"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="no /proc")
@pytest.mark.parametrize("what", LEAVES)
def test_what_a_test_leaves_behind_is_named(suite, what):
    done = suite(LEAVES[what])
    try:
        assert "1 passed" in done.stdout
        if what not in NAMED:
            assert done.returncode == 0 and "left behind" not in done.stdout
        else:
            assert done.returncode == 1
            assert NAMED[what] in done.stdout.partition("The tests have left behind:")[2]
    finally:
        for path in (Path("/dev/shm/left-by-a-test"), *Path("/dev/shm").glob("torch_*_1_1")):
            path.unlink(missing_ok=True)
        for line in done.stdout.splitlines():
            if line.strip().startswith("process "):
                os.kill(int(line.split()[1].rstrip(":")), signal.SIGKILL)
