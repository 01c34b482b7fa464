"""Blows that hit runs on a cluster: each ends with the weights of a run that was left alone, or with one sentence."""

import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from lesson import SLOW, Root, until
from test_09_surviving_preemption import CONFIG, NAME, SHORT, SLOWLY, curves, log_of, start, weights
from training import steps

RUN = f"python run.py --config {CONFIG} {SHORT} --tasks_per_node 1"
LIMIT = 300  # seconds

# A signal before the first step of each attempt, as from a time limit that is shorter than the start.
EARLY = """
import os
import signal

import lightning as L


class Early(L.Callback):
    def on_train_start(self, *args):
        os.kill(os.getpid(), signal.SIGUSR2)
"""


def make_root(folder):
    root = Root(NAME, folder)
    (root.folder / "src/callbacks/slow.py").write_text(SLOW)
    (root.folder / "src/callbacks/early.py").write_text(EARLY)
    return root


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path)


def left_alone(cluster, folder):
    """A run that nothing hits."""
    run = start(make_root(folder), cluster, RUN)
    assert cluster.wait(run.name, LIMIT) == "COMPLETED", said(run)
    return run


@pytest.fixture(scope="module")
def alone(cluster, tmp_path_factory):
    return left_alone(cluster, tmp_path_factory.mktemp("alone"))


def said(run):
    """All that the run's processes have printed."""
    return "\n".join(path.read_text() for path in sorted(run.glob("*_log.*")))


def state_of(cluster, run):
    return cluster.run(f"squeue --noheader --jobs={run.name} --format=%T", "/").stdout.strip()


def until_training(run, step=1):
    """Wait until there is a checkpoint."""
    until(lambda: any(found >= step for found in steps(run)), LIMIT)


def nodes_of(cluster, run):
    command = f"scontrol show hostnames $(squeue --noheader --jobs={run.name} --format=%N)"
    return cluster.run(command, "/", check=True).stdout.split()


def process_of(run, rank):
    """The process that trains, and none of its data workers, which have its words and its environment."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            variables = (folder / "environ").read_bytes().decode(errors="replace").split("\0")
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            wanted = {f"SLURM_JOB_ID={run.name}", f"SLURM_PROCID={rank}"}
            if wanted <= set(variables) and "submitit.core._submit" in words[:6] and f"{run.parent}/%j" in words:
                parents[int(folder.name)] = int(re.search(r"PPid:\s+(\d+)", (folder / "status").read_text())[1])
    [pid] = [pid for pid, parent in parents.items() if parent not in parents]
    return pid


def ends_as_alone(cluster, run, alone):
    """The run completes, with the weights and the curves of the one that was left alone."""
    assert cluster.wait(run.name, LIMIT) == "COMPLETED", said(run)
    assert weights(run) == weights(alone)
    assert curves(run) == curves(alone)
    assert [path.name for path in run.parent.iterdir()] == [run.name]  # nothing is written elsewhere


# ---- hyperparameter search


@pytest.mark.slow
@pytest.mark.parametrize("cancelled", ["{job}_1", "{job}"], ids=["one waiting trial", "the whole array"])
def test_a_study_whose_waiting_trials_were_cancelled_is_resumed(cancelled, cluster, root):
    """The accounting has no row of a task that was cancelled while it waited, and one row of a whole array."""
    flags = "--trials 2 --at_once 1 --cpus_per_task 1 --mem 2G --model.arch mlp --max_epochs 1 --limit_train_batches 2"
    blocker = cluster.submit("--nodes=4 --exclusive --output=/dev/null --wrap='sleep 600'", root.folder)
    try:
        command = f"python run.py search --name st --search.optimizer.lr log:1e-4..1e-1 {flags}"
        cluster.run(command, root.folder, timeout=LIMIT, check=True)
        job = cluster.run("squeue --noheader --states=PD --format=%F", "/", check=True).stdout.split()[0]
        cluster.run(f"scancel {cancelled.format(job=job)}", "/", check=True)
    finally:
        cluster.run(f"scancel {blocker}", "/", check=True)
    until(lambda: not cluster.run("squeue --noheader", "/").stdout.strip(), LIMIT)
    done = cluster.run("python run.py resume st", root.folder, timeout=LIMIT)
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: not cluster.run("squeue --noheader", "/").stdout.strip(), LIMIT)
    rows = cluster.run("python run.py list", root.folder, check=True).stdout
    assert len(re.findall(r"^st/\d+ +COMPLETED ", rows, re.MULTILINE)) == 2, rows


# ---- signals and the controller


@pytest.mark.slow
def test_usr2_in_the_first_second_of_an_attempt(cluster, root, alone):
    """Python has not started yet, and has no handler."""
    run = start(root, cluster, RUN)
    until(lambda: state_of(cluster, run) == "RUNNING", LIMIT)
    until(lambda: f"{run.name}.0" in cluster.run(f"squeue --steps --noheader --jobs={run.name}", "/").stdout, 60)
    cluster.run(f"scancel --signal=USR2 {run.name}", "/", check=True)
    ends_as_alone(cluster, run, alone)


@pytest.mark.campaign
def test_no_controller_when_the_job_asks_to_be_requeued(own_cluster, root, tmp_path):
    cluster, alone = own_cluster, left_alone(own_cluster, tmp_path / "alone")
    run = start(root, cluster, f"{RUN} {SLOWLY} 0.3")
    until_training(run)
    controller = (cluster.dir / "run/slurmctld.pid").read_text().strip()  # its number on head
    assert cluster.cluster_py("exec", "head", "kill", "-KILL", controller).returncode == 0
    os.kill(process_of(run, 0), signal.SIGUSR2)
    until(lambda: "SIGUSR2: saving at step" in log_of(run), 60)
    time.sleep(15)
    assert cluster.cluster_py("up").returncode == 0
    ends_as_alone(cluster, run, alone)


@pytest.mark.campaign
def test_attempts_without_a_step_come_to_an_end(cluster, root):
    run = start(root, cluster, f"{RUN} --nodes 1 --callbacks+=src.callbacks.early.Early")
    until(lambda: len(re.findall("SIGUSR2: saving at step 0", log_of(run))) > 0, LIMIT)
    try:
        assert cluster.wait(run.name, 10 * 40) == "FAILED"
        assert re.search(r"(without|no|not one|not a) (a )?(single )?(step|progress)", said(run)), said(run)
    finally:
        cluster.run(f"scancel {run.name}", "/")


# ---- processes and nodes that are lost


@pytest.mark.campaign
def test_a_stopped_process_is_named_and_the_job_requeued(cluster, root, alone):
    run = start(root, cluster, f"{RUN} {SLOWLY} 0.2")
    until_training(run)
    node = nodes_of(cluster, run)[1]
    pid = process_of(run, 1)
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: re.search(rf"\b(rank|process) 1\b.*\b{node}\b|\b{node}\b.*\b(rank|process) 1\b", said(run)), 150)
        until(lambda: len(cluster.sacct(run.name, "State", "-X -D")) == 2, 60)
        ends_as_alone(cluster, run, alone)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        cluster.run(f"scancel {run.name}", "/")


@pytest.mark.campaign
def test_a_node_that_is_given_up_while_its_processes_live(own_cluster, root, tmp_path):
    """Its cable is pulled: Slurm starts the job elsewhere, while the first process still holds the run's folder."""
    cluster, alone = own_cluster, left_alone(own_cluster, tmp_path / "alone")
    run = start(root, cluster, f"{RUN} {SLOWLY} 0.5")
    until_training(run)
    node = nodes_of(cluster, run)[0]
    cluster.cluster_py("exec", "head", "ip", "link", "set", node, "down")
    try:
        until(lambda: len(cluster.sacct(run.name, "State", "-X -D")) == 2, 120)
        until(lambda: state_of(cluster, run) == "RUNNING", 60)
        time.sleep(30)
    finally:
        cluster.cluster_py("exec", "head", "ip", "link", "set", node, "up")
    ends_as_alone(cluster, run, alone)


# ---- files


@pytest.mark.slow
def test_a_folder_that_is_renamed_while_it_is_written(cluster, root):
    """The run ends with one sentence, or goes on in the renamed folder: nothing appears at the old place."""
    run = start(root, cluster, f"{RUN} {SLOWLY} 0.2")
    until_training(run)
    moved = run.with_name("moved")
    run.rename(moved)
    try:
        state = cluster.wait(run.name, LIMIT)
    finally:
        cluster.run(f"scancel {run.name}", "/")
    found = [str(path.relative_to(run)) for path in run.rglob("*")] if run.exists() else []
    assert not found, f"{state}; at the old place: {found}"
    if state == "COMPLETED":
        assert weights_in(moved, run.name)
    else:
        assert re.search(rf"{run}.*(moved|renamed|gone|not there|replaced)", said(moved)), said(moved)


def weights_in(folder, job):
    return re.findall(r"the weights are (\w{16})$", (folder / f"{job}_0_log.out").read_text(), re.MULTILINE)


@pytest.mark.campaign
def test_a_clock_that_is_set_back_between_two_attempts(cluster, root, alone):
    """The files of the first attempt seem to be of tomorrow. TensorBoard reads them in the order of their names."""
    run = start(root, cluster, f"{RUN} {SLOWLY} 0.2")
    until_training(run)
    cluster.run(f"scancel --signal=USR2 {run.name}", "/", check=True)
    until(lambda: len(cluster.sacct(run.name, "State", "-X -D")) == 2 or state_of(cluster, run) == "PENDING", 60)
    tomorrow = time.time() + 86400
    for path in run.rglob("*"):
        if path.is_file() and (match := re.match(r"events\.out\.tfevents\.(\d+)\.", path.name)):
            path = path.rename(path.with_name(path.name.replace(match[1], str(int(match[1]) + 86400))))
        os.utime(path, (tomorrow, tomorrow))
    ends_as_alone(cluster, run, alone)


@pytest.mark.slow
def test_a_configuration_that_is_edited_while_the_job_waits(cluster, root, alone):
    """The folder says what has run."""
    blocker = cluster.submit("--nodes=4 --exclusive --output=/dev/null --wrap='sleep 600'", root.folder)
    try:
        run = start(root, cluster, RUN)
        path = run / "config.yaml"
        submitted = yaml.safe_load(path.read_text())
        path.write_text(path.read_text().replace("max_epochs: 2", "max_epochs: 1"))
        assert yaml.safe_load(path.read_text()) != submitted
    finally:
        cluster.run(f"scancel {blocker}", "/", check=True)
    ends_as_alone(cluster, run, alone)
    assert yaml.safe_load(path.read_text()) == submitted


@pytest.mark.parametrize(
    ("size", "fill"),
    [
        pytest.param("4k", "head --bytes=4096 /dev/zero > /dev/shm/full", id="full", marks=pytest.mark.slow),
        pytest.param("64k", "true", id="too small for a batch", marks=pytest.mark.campaign),
    ],
)
def test_no_shared_memory_is_left_for_data_workers(size, fill, cluster, root):
    """The run ends, and the sentence names /dev/shm, not the run's folder."""
    nodes = ["node1", "node2", "node3", "node4"]
    command = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && {fill}"
    for node in nodes:
        assert cluster.cluster_py("exec", node, "bash", "-c", command).returncode == 0
    try:
        run = start(root, cluster, f"{RUN} --nodes 1 --num_workers 1 --cpus_per_task 2")
        assert cluster.wait(run.name, 180) == "FAILED"
    finally:
        cluster.run("scancel --me", "/")
        for node in nodes:
            cluster.cluster_py("exec", node, "umount", "--lazy", "/dev/shm")
    assert "/dev/shm" in said(run), said(run)
    assert f"{run} could not be written to" not in said(run)
