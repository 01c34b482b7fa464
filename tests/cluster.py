"""The practice cluster as the tests use it: the `cluster` fixture in conftest.py gives one of these.

cluster.run("sinfo", cwd=tmp_path)                          a bash line on the login host
job = cluster.submit("--nodes=2 --wrap 'srun hostname'", cwd=tmp_path)
assert cluster.wait(job) == "COMPLETED"
cluster.sacct(job, "JobID,State,NodeList", "--duplicates")  one dict a row
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "lessons/00-practice-cluster/cluster.py"
PREFIX = "practice-cluster-tests-"
FINAL = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
}


def unavailable() -> str | None:
    """Why there can be no practice cluster on this machine, if so."""
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the practice cluster needs Linux and root"
    programs = ["slurmctld", "slurmd", "slurmdbd", "sbatch", "mariadbd", "munged"]
    if not all(shutil.which(program, path=path) for program in programs):
        return "the practice cluster's packages are not installed: see lessons/00-practice-cluster/README.md"
    unshare = ["unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "true"]
    if subprocess.run(unshare, capture_output=True).returncode:
        return "root may not make namespaces on this machine"
    return None


@contextlib.contextmanager
def hosts_that_lead_to_themselves(cluster: "Cluster", folder: Path):
    """The names of node1 and node2 lead to 127.0.1.1 on these nodes, as Debian's installer has it."""
    nodes = {"node1": "10.77.0.11", "node2": "10.77.0.12"}
    for own in nodes:
        others = [f"{address} {node}" for node, address in nodes.items() if node != own]
        hosts = folder / f"hosts-{own}"
        hosts.write_text("\n".join(["127.0.0.1 localhost", f"127.0.1.1 {own}", "10.77.0.1 head", *others, ""]))
        cluster.cluster_py("exec", own, "mount", "--bind", str(hosts), "/etc/hosts")
    try:
        yield
    finally:
        for node in nodes:
            cluster.cluster_py("exec", node, "umount", "/etc/hosts")


class Cluster:
    """A cluster in a folder of its own, beside any other. Use it as `with Cluster() as cluster:`."""

    def __init__(self) -> None:
        # The name holds our pid, so that a later run can clean up after one that was killed.
        temporary = Path(tempfile.gettempdir())
        for left in temporary.glob(f"{PREFIX}*"):
            if not Path("/proc", left.name.removeprefix(PREFIX).split("-")[0]).exists():
                self.dir = left
                self.__exit__()
        self.dir = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))

    def __enter__(self) -> "Cluster":
        up = self.cluster_py("up")
        if up.returncode:
            logs = "".join(f"\n--- {log}\n{log.read_text()[-2000:]}" for log in sorted(self.dir.glob("log/*.log")))
            self.__exit__()
            raise RuntimeError(f"the practice cluster did not start: {up.stdout}{up.stderr}{logs}")
        return self

    def __exit__(self, *_) -> None:
        self.cluster_py("down")
        shutil.rmtree(self.dir, ignore_errors=True)

    def cluster_py(self, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess:
        """`cluster.py ARGUMENTS` for this cluster."""
        command = [sys.executable, str(SCRIPT), "--dir", str(self.dir), *arguments]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)

    def run(self, command: str, cwd, timeout: float = 120, check: bool = False) -> subprocess.CompletedProcess:
        """Run a bash line on the login host, in the folder `cwd`."""
        words = [sys.executable, str(SCRIPT), "--dir", str(self.dir), "exec", "head", "bash", "-c", command]
        done = subprocess.run(words, cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{command}\nexit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def submit(self, arguments: str, cwd) -> str:
        """`sbatch ARGUMENTS`; returns the job id."""
        return self.run(f"sbatch --parsable {arguments}", cwd, check=True).stdout.strip()

    def sacct(self, job_id, fields, options: str = "-X") -> list[dict[str, str]]:
        """What the accounting says, one dict a row. Options: "" adds the steps, "-X -D" shows every attempt."""
        names = fields.split(",") if isinstance(fields, str) else list(fields)
        command = f"sacct {options} --noheader --parsable2 --jobs={job_id} --format={','.join(names)}"
        rows = self.run(command, cwd="/", check=True).stdout.splitlines()
        return [dict(zip(names, row.split("|"), strict=True)) for row in rows]

    def wait(self, job_id, timeout: float = 180) -> str:
        """Wait until the job, and every task of an array, has ended for good; return its state, such as "COMPLETED".

        Of an array whose tasks ended in different ways, the first state that is not COMPLETED.
        """
        deadline = time.monotonic() + timeout
        while True:
            # squeue knows the truth, and ended jobs for five minutes; sacct comes a second later, and for a moment has
            # half of a record, or half of an array. So wait until both say the same.
            shown = self.run(f"squeue --array --states=all --noheader --jobs={job_id} --format='%i %T'", cwd="/").stdout
            queue = dict(line.split() for line in shown.splitlines())
            if all(state in FINAL for state in queue.values()):
                accounting = {row["JobID"]: row["State"].split(" ")[0] for row in self.sacct(job_id, "JobID,State")}
                states = accounting.values()
                if states and all(state in FINAL for state in states) and queue in ({}, accounting):
                    return next((state for state in states if state != "COMPLETED"), "COMPLETED")
            if time.monotonic() > deadline:
                show = self.run(f"squeue --jobs={job_id}; sacct -D --jobs={job_id}; sinfo", cwd="/")
                raise TimeoutError(f"job {job_id} has not ended after {timeout} s:\n{show.stdout}{show.stderr}")
            time.sleep(0.3)
