"""Lesson 0: the practice cluster behaves like a Slurm, and leaves nothing behind."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster import SCRIPT, Cluster
from lesson import cannot_run

README = SCRIPT.with_name("README.md")


def wait_for(condition, what: str, timeout: float = 60):
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.3)
    return result


# ---- Slurm


def test_a_job_over_two_nodes(cluster, tmp_path):
    job = cluster.submit("--nodes=2 --output=hello.txt --wrap='srun hostname'", tmp_path)
    assert cluster.wait(job) == "COMPLETED"
    assert len(set((tmp_path / "hello.txt").read_text().split())) == 2  # written where sbatch was typed
    assert cluster.sacct(job, "State,Account,NNodes,ExitCode") == [
        {"State": "COMPLETED", "Account": "research", "NNodes": "2", "ExitCode": "0:0"}
    ]


def test_host_names_have_real_addresses(cluster, tmp_path):
    """Training across nodes needs it: a name that means 127.0.0.1 on its own node breaks the rendezvous."""
    done = cluster.run("srun --nodelist=node3 getent hosts head node3", tmp_path, check=True)
    assert done.stdout.split() == ["10.77.0.1", "head", "10.77.0.13", "node3"]


def test_a_gpu_request_gets_gpus(cluster, tmp_path):
    line = "srun --partition=gpu --nodes=2 --gpus-per-node=2 sh -c 'echo $CUDA_VISIBLE_DEVICES'"
    assert cluster.run(line, tmp_path, check=True).stdout.split() == ["0,1", "0,1"]


@pytest.mark.parametrize(
    "request_, answer",
    [
        ("--partition=nope", "invalid partition specified: nope"),
        ("--account=nobody", "Invalid account or account/partition combination specified"),
        ("--partition=gpu --gpus-per-node=5", "Requested node configuration is not available"),
        ("--partition=gpu --gpus-per-node=h100:1", "Requested node configuration is not available"),
        ("--mem=9G", "Requested node configuration is not available"),
        ("--nodes=5", "Node count specification invalid"),
        ("--time=2-0", "Requested time limit is invalid"),
    ],
)
def test_slurm_refuses_what_can_never_run(cluster, tmp_path, request_, answer):
    done = cluster.run(f"sbatch {request_} --wrap hostname", tmp_path)
    assert done.returncode != 0
    assert answer in done.stderr


def test_an_array(cluster, tmp_path):
    job = cluster.submit("--array=1-3 --wrap='exit $((SLURM_ARRAY_TASK_ID == 3))'", tmp_path)
    assert cluster.wait(job) == "FAILED"
    states = {row["JobID"]: row["State"] for row in cluster.sacct(job, "JobID,State")}
    assert states == {f"{job}_1": "COMPLETED", f"{job}_2": "COMPLETED", f"{job}_3": "FAILED"}


def test_scancel(cluster, tmp_path):
    job = cluster.submit("--wrap='sleep 100'", tmp_path)
    wait_for(lambda: "RUNNING" in cluster.run(f"squeue -h -j {job} -o %T", tmp_path).stdout, "the job runs")
    cluster.run(f"scancel {job}", tmp_path, check=True)
    assert cluster.wait(job) == "CANCELLED"


def test_start_times_of_waiting_jobs(cluster, tmp_path):
    first = cluster.submit("--nodes=4 --exclusive --time=10 --wrap='sleep 100'", tmp_path)
    second = cluster.submit("--nodes=4 --exclusive --time=10 --wrap='sleep 100'", tmp_path)
    try:
        estimate = ["squeue", "--start", "--noheader", f"--jobs={second}", "--format=%S"]
        wait_for(lambda: cluster.run(" ".join(estimate), tmp_path).stdout.startswith("20"), "an estimate", timeout=20)
    finally:
        cluster.run(f"scancel {first} {second}", tmp_path)
        cluster.wait(first), cluster.wait(second)


@pytest.mark.slow
def test_urgent_preempts_low_which_is_queued_again(cluster, tmp_path):
    low = cluster.submit("--partition=low --nodes=4 --exclusive --wrap='sleep 300'", tmp_path)
    wait_for(lambda: "RUNNING" in cluster.run(f"squeue -h -j {low} -o %T", tmp_path).stdout, "the job in low runs")
    urgent = cluster.submit("--partition=urgent --nodes=4 --exclusive --wrap='sleep 5'", tmp_path)
    assert cluster.wait(urgent) == "COMPLETED"
    again = f"scontrol show job {low} | grep -E 'JobState=RUNNING|Restarts=1'"
    wait_for(lambda: len(cluster.run(again, tmp_path).stdout.splitlines()) == 2, "the job in low runs again")
    cluster.run(f"scancel {low}", tmp_path, check=True)
    assert cluster.wait(low) == "CANCELLED"
    assert [row["State"].split()[0] for row in cluster.sacct(low, "State", "-X -D")] == ["PREEMPTED", "CANCELLED"]


@pytest.mark.slow
def test_a_job_survives_the_crash_of_its_node(cluster, tmp_path):
    command = "hostname >> hosts.txt; test $SLURM_RESTART_COUNT && exit; sleep 300"
    job = cluster.submit(f"--nodes=2 --wrap='{command}'", tmp_path)
    hosts = tmp_path / "hosts.txt"
    crashed = wait_for(lambda: hosts.exists() and hosts.read_text().strip(), "the job runs")
    try:
        assert cluster.cluster_py("crash", crashed).returncode == 0
        assert cluster.wait(job) == "COMPLETED"
        assert [row["State"] for row in cluster.sacct(job, "State", "-X -D")] == ["NODE_FAIL", "COMPLETED"]
        assert hosts.read_text().split()[1] != crashed
    finally:
        assert cluster.cluster_py("boot", crashed).returncode == 0


# ---- cluster.py


def test_exec_is_transparent(cluster, tmp_path):
    words = [sys.executable, str(SCRIPT), "--dir", str(cluster.dir), "exec", "node2"]

    def run(*command: str, **options) -> subprocess.CompletedProcess:
        return subprocess.run([*words, *command], cwd=tmp_path, capture_output=True, text=True, **options)

    assert run("sh", "-c", "exit 7").returncode == 7
    assert run("no-such-program").returncode == 127
    assert run("pwd").stdout.strip() == str(tmp_path)
    assert run("cat", input="through\nthe pipe").stdout == "through\nthe pipe"
    assert run("echo", "two words", "$HOME", "--dir").stdout == "two words $HOME --dir\n"
    environment = os.environ | {"MINE": "kept", "SLURM_JOB_ID": "7"}
    names = dict(line.split("=", 1) for line in run("env", env=environment).stdout.splitlines() if "=" in line)
    assert names["MINE"] == "kept"
    assert names["SLURM_CONF"] == f"{cluster.dir}/etc/slurm.conf"
    assert "SLURM_JOB_ID" not in names


def test_up_twice_at_once(cluster):
    """The second waits for the first; and both find the cluster up."""
    words = [sys.executable, str(SCRIPT), "--dir", str(cluster.dir), "up"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for one in both:
        assert "is already up" in one.communicate(timeout=60)[0]
        assert one.returncode == 0


def test_errors_are_one_sentence(cluster, tmp_path):
    for arguments, expected in [
        (["crash", "node9"], "there is no node9 to crash: take one of node1 node2 node3 node4"),
        (["exec", "node9", "ls"], "there is no node9 to exec: take one of head node1 node2 node3 node4"),
        (["--dir", str(tmp_path / ("x" * 80)), "up"], "cannot be the state folder"),
        (["--dir", "/etc", "up"], "/etc holds other files"),
        (["--dir", str(cluster.dir / "no"), "exec", "head", "ls"], "no practice cluster runs in"),
    ]:
        done = cluster.cluster_py(*arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert expected in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_without_root():
    command = ["python3", "-", "up"]  # given through stdin, as `nobody` may not be allowed to read this folder
    if os.geteuid() == 0:
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *command]
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, input=SCRIPT.read_text(), capture_output=True, text=True, env=environment, cwd="/")
    assert done.returncode == 1
    assert done.stderr == "cluster.py: the practice cluster needs root: type `sudo python3 cluster.py up`\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_without_packages(tmp_path):
    environment = os.environ | {"PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, SCRIPT, "up"], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert apt_line() in done.stderr


def apt_line() -> str:
    return re.search(r"sudo apt-get install --no-install-recommends slurmctld.*", README.read_text()).group()


# The practice cluster with the packages of another release, in a root of its own, which `unshare` needs as a mount.
OTHER_ROOT = """
mount --bind {root} {root}
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
mount -t sysfs sysfs {root}/sys
mount -t tmpfs tmpfs {root}/tmp
cd {root}
pivot_root . old
umount --lazy /old
export PATH=/usr/sbin:/usr/bin
python3 /root/cluster.py up
python3 /root/cluster.py exec head sbatch --wait --nodes=2 --output=/root/hello.txt --wrap='srun hostname'
python3 /root/cluster.py exec head sacct --noheader --parsable2 --format=JobID,State
python3 /root/cluster.py exec head sinfo --version
python3 /root/cluster.py down
"""


@pytest.mark.slow
def test_debian_13(namespaces, tmp_path):
    """Slurm 24.11 instead of 22.05."""
    sources = Path("/etc/apt/sources.list.d/debian.sources")
    if not shutil.which("mmdebstrap") or not sources.exists():
        cannot_run("there is no mmdebstrap on this machine, or it is not a Debian")
    (tmp_path / "trixie.sources").write_text(re.sub(r"\b(bookworm|trixie)\b", "trixie", sources.read_text()))
    packages = f"{apt_line().split('recommends ')[1]} python3 util-linux".replace(" ", ",")
    root = tmp_path / "root"
    command = ["mmdebstrap", "--variant=minbase", f"--include={packages}", "trixie", root, tmp_path / "trixie.sources"]
    try:
        made = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert made.returncode == 0, made.stderr[-3000:]
        (root / "old").mkdir()
        shutil.copy(SCRIPT, root / "root")
        done = subprocess.run(
            ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "bash", "-ec"]
            + [OTHER_ROOT.format(root=root)],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "The practice cluster is up." in done.stdout
        assert "1|COMPLETED\n1.batch|COMPLETED\n1.0|COMPLETED\n" in done.stdout
        assert re.search(r"^slurm-wlm 2[4-9]\.", done.stdout, re.MULTILINE)
        assert sorted((root / "root/hello.txt").read_text().split()) == ["node1", "node2"]
    finally:
        shutil.rmtree(root, ignore_errors=True)


# ---- the README


def readme_session() -> list[tuple[str, str, str]]:
    """(prompt, command, output) of all that the README types: "$" on the machine, "[head]$" on the login host."""
    blocks = re.findall(r"^```console\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    return re.findall(r"^(\$|\[head\]\$) (.*)\n((?:(?!\$ |\[head\]\$ ).*\n)*)", "".join(blocks), re.MULTILINE)


def comparable(output: str) -> list[str]:
    """Lines, in any order, without the times of `up` and without differences in white space."""
    return sorted(" ".join(re.sub(r"^ *[0-9.]+ s ", "", line).split()) for line in output.splitlines())


def traces(state: Path) -> list[str]:
    """Processes of a cluster, and all that see a mount of it. (Numbers of namespaces are used again: no good here.)"""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            cmdline, environ, mounts = ((process / name).read_text() for name in ["cmdline", "environ", "mountinfo"])
        except OSError:  # it ended while we looked
            continue
        if state.name in cmdline + environ + mounts:
            found.append(f"{process.name} {cmdline}")
    return found


@pytest.mark.slow
def test_the_readme_from_up_to_nothing_left(cluster, tmp_path):
    """Type the README, on a cluster of our own beside `cluster`: it shows what the README shows, and leaves nothing."""
    (tmp_path / "cluster.py").write_bytes(SCRIPT.read_bytes())
    devices = sorted(os.listdir("/sys/class/net"))
    session = readme_session()
    assert (session[0][1], session[-1][1]) == ("python3 cluster.py up", "python3 cluster.py down")
    own = Cluster()

    def type_(prompt: str, command: str) -> str:
        if prompt == "[head]$":
            command = f"python3 cluster.py exec head bash -c {shlex.quote(command)}"
        environment = os.environ | {"PRACTICE_CLUSTER_DIR": str(own.dir)}
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, text=True, capture_output=True
        )
        return (done.stdout + done.stderr).replace(str(own.dir), "/var/lib/practice-cluster")

    try:
        for prompt, command, expected in session:
            patience = 60 if re.search(r"sinfo|sacct|^cat", command) else 0  # what a reader would look at again
            deadline = time.monotonic() + patience
            while comparable(shown := type_(prompt, command)) != comparable(expected):
                assert time.monotonic() < deadline, f"{command}\n--- shows\n{shown}--- README\n{expected}"
                time.sleep(0.3)
            if command == session[0][1]:
                assert "is already up" in type_(prompt, command)
                assert len(traces(own.dir)) > 10
        wait_for(lambda: not traces(own.dir), f"no trace of the cluster: {traces(own.dir)}", timeout=5)
        assert sorted(os.listdir("/sys/class/net")) == devices
        assert "is not running" in type_(*session[-1][:2])
    finally:
        own.__exit__()
