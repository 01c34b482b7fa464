"""Lesson 9: kill a run in every way; it ends with the weights of one that was left alone."""

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import Cluster
from lesson import SLOW, Root, until
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NAME = "09-surviving-preemption"
CONFIG = f"lessons/{NAME}/long.yaml"

ALONE = f"python run.py --config {CONFIG} --name alone"
KILLED = "python run.py repeat 1 --partition low --name killed"
LIMITED = "python run.py repeat 1 --time 00:03:00 --name limited"
USR2 = "scancel --signal=USR2 2"
REQUEUE = "scontrol requeue 2"
URGENT = 'sbatch --partition=urgent --nodes=4 --exclusive --wrap="sleep 20"'
CRASH = "python3 lessons/00-practice-cluster/cluster.py crash node2"
BOOT = "python3 lessons/00-practice-cluster/cluster.py boot node2"
KILL_9 = "scancel --signal=KILL 2.0"
RESUME = "python run.py resume 2"
COMPARE = f"python lessons/{NAME}/compare.py 1 2"
ATTEMPTS = "sacct -X -D --format=JobID,JobName,Partition,NodeList,State,Elapsed"
HERE = f"python run.py --config {CONFIG} --cluster debug --nodes 1 --tasks_per_node 1"

# 28 steps an epoch; checkpoints and validations in the middle of one; dropout draws random numbers in every step.
SHORT = "--batch_size 2000 --max_epochs 2 --checkpoint_every 7 --validate_every 10 --model.dropout 0.2"
SLOWLY = "--callbacks+=src.callbacks.slow.Slow --callbacks.seconds"


@pytest.fixture
def root(tmp_path):
    root = Root(NAME, tmp_path)
    (root.folder / "src/callbacks/slow.py").write_text(SLOW)
    return root


def for_run(command: str, run: str, before: str = "2") -> str:
    """The README's command for another run than its run 2 (or 1)."""
    return re.sub(rf"\b{before}(\.0)?$", rf"{run}\1", command)


def start(root: Root, cluster: Cluster, command: str, flags: str = "") -> Path:
    """Submit a run; its folder. Its name is the job's id."""
    done = cluster.run(f"{command} {flags}", root.folder, timeout=600, check=True)
    return root.folder / "logs" / re.search(r"^run (\S+) ", done.stdout, re.MULTILINE)[1]


def log_of(run: Path, rank: int = 0) -> str:
    path = run / f"{run.name}_{rank}_log.out"
    return path.read_text() if path.exists() else ""


def weights(run: Path) -> str:
    """The checksum of the final weights, which both processes have logged."""
    checksums = [set(re.findall(r"the weights are (\w{16})$", log_of(run, rank), re.M)) for rank in range(2)]
    [checksum] = set.union(*checksums)
    assert all(len(found) == 1 for found in checksums)
    return checksum


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """All curves as TensorBoard shows them: (step, value). No step stands there twice."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag, points in found.items():
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps)), f"{tag} of {run}: {steps}"
    return found


def test_every_command_of_the_readme_is_tested(tmp_path):
    """Here or, in the order of the README and with what it shows, by test_outputs.py."""
    commands = [ALONE, KILLED, USR2, REQUEUE, URGENT, CRASH, BOOT, KILL_9, RESUME, ATTEMPTS, COMPARE, LIMITED]
    here = [HERE, "python run.py list", "python run.py resume RUN", f"python lessons/{NAME}/compare.py RUN RUN"]
    assert Root(NAME, tmp_path).commands == [*commands, *here, f"python lessons/check.py {NAME[:2]}"]


@pytest.mark.slow
def test_ctrl_c_and_cancel_without_slurm(root):
    """A run in the terminal: Ctrl-C, resumed, killed at once, resumed."""
    flags = f"{SHORT} --log_path {root.folder / 'logs'}"
    alone = root.shell(f"{HERE} {flags}")
    assert alone.returncode == 0, alone.stderr
    [checksum] = re.findall(r"the weights are (\w{16})$", alone.stdout, re.MULTILINE)
    before = set((root.folder / "logs").iterdir())
    command = f"{HERE} {flags} {SLOWLY} 0.15"
    output = ""
    for number, kill in enumerate([signal.SIGINT, signal.SIGKILL, None]):
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=root.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if kill:
            for line in process.stdout:
                output += line
                if "epoch: 01/02" in line or "going on from" in line:
                    break
            time.sleep(1.5)
            process.send_signal(kill)
        output += process.communicate(timeout=300)[0]
        [run] = set((root.folder / "logs").iterdir()) - before
        assert process.returncode == {0: 128 + signal.SIGINT, 1: -signal.SIGKILL, 2: 0}[number], output
        command = f"python run.py resume {run.name}"
    assert re.findall(r"the weights are (\w{16})$", output, re.MULTILINE) == [checksum]
    assert "SIGINT: saving at step" in output
    assert f"Resume it with: python run.py resume {run.name}\n" in output
    [other] = before
    assert curves(run) == curves(other)
    done = root.shell(f"python lessons/{NAME}/compare.py {other.name} {run.name}")
    assert f"the weights of {run.name} are those of {other.name}, to the last bit" in done.stdout, done.stderr


def preempt(cluster, run, moment):
    """By an urgent job that takes all CPUs of the run's nodes."""
    nodes = cluster.run(f"squeue --noheader --jobs={run.name} --format=%N", "/").stdout.strip()
    wanted = URGENT.replace("--nodes=4", f"--nodes=2 --nodelist={nodes}").replace("sleep 20", "sleep 1")
    cluster.run(f"{wanted} --output=/dev/null", "/", check=True)


def requeue(cluster, run, moment):
    cluster.run(for_run(REQUEUE, run.name), "/", check=True)


def crash(cluster, run, moment):
    """One of the two nodes, at random; it is booted again when Slurm has noticed."""
    nodes = cluster.run(f"scontrol show hostnames $(squeue --noheader --jobs={run.name} --format=%N)", "/").stdout
    if not nodes:
        return  # too late, it has ended: the row says so
    node = moment.choice(nodes.split())
    assert cluster.cluster_py(*CRASH.split()[2:-1], node).returncode == 0
    until(lambda: "R" not in cluster.run(f"squeue --noheader --jobs={run.name} --format=%t", "/").stdout)
    # A node that does not answer is told again, after a minute, to end the job. Who is back by then would end the next
    # attempt of the job. A real node takes longer to boot.
    time.sleep(70)
    assert cluster.cluster_py(*BOOT.split()[2:-1], node).returncode == 0


def kill_9(cluster, run, moment):
    """All processes of the training; Slurm calls the job FAILED. Then it is resumed, as a job of its own."""
    cluster.run(for_run(KILL_9, run.name), "/")


TIMES = int(os.environ.get("CAMPAIGN", 1))  # CAMPAIGN=5 python -m pytest -m campaign stops five runs in each way
ALONE_ON_ITS_NODES = ["preempted", "node crashed", "kill -9"]  # at a time two of these runs, on two nodes each
WAYS = {"preempted": preempt, "time limit": None, "requeued": requeue, "node crashed": crash, "kill -9": kill_9}


def survive(way, number, root, cluster, reference):
    """One run of the campaign; its row in the table."""
    moment = random.Random(f"{way} {number}")
    memory = "8000M" if way in ALONE_ON_ITS_NODES else "4G"  # of 8: two runs share a node
    flags = f"{SHORT} --tasks_per_node 1 --mem {memory} --name {way.replace(' ', '_')} --num_workers {number % 2}"
    flags += f" {SLOWLY} {1.2 if way == 'time limit' else 0.6}"
    flags += {"time limit": " --time 00:03:00", "preempted": " --partition low"}.get(way, "")
    began = time.monotonic()
    run = start(root, cluster, f"python run.py --config {CONFIG}", flags)
    job = run.name
    until(lambda: cluster.run(f"squeue --noheader --jobs={job} --format=%t", "/").stdout.strip() == "R", 600)
    ran = time.monotonic()
    if WAYS[way]:
        if number % 5:  # in the training, else while Python starts
            until(lambda: "All distributed processes registered" in log_of(run), 300)
        time.sleep(moment.uniform(2, 16))
        ran = time.monotonic() - ran
        WAYS[way](cluster, run, moment)
    state = cluster.wait(job, 600)
    if way == "kill -9" and state == "FAILED":
        cluster.run(for_run(RESUME, job), root.folder, timeout=600, check=True)
        [second] = {path.name.split("_")[0] for path in run.glob("*_submitted.pkl")} - {job}
        state = cluster.wait(second, 600)
        for rank in range(2):  # one log again
            with open(run / f"{job}_{rank}_log.out", "a") as log:
                log.write((run / f"{second}_{rank}_log.out").read_text())
    text = log_of(run)
    saved = re.findall(r"(SIG\w+|a signal in another process): saving at step (\d+)", text)
    resumed = re.findall(r"going on from \S*step=(\d+)", text)
    attempts = [row["State"].split()[0] for row in cluster.sacct(job, "State", "-X -D")]
    # A run that was killed with -9 before its first checkpoint begins anew, as a job of its own.
    problems = [] if attempts != ["COMPLETED"] else ["it was not killed"]
    if state != "COMPLETED":
        problems.append(state)
    else:
        try:
            assert weights(run) == weights(reference), "other weights"
            assert curves(run) == curves(reference), "other curves"
        except (AssertionError, ValueError) as error:
            problems.append(str(error).splitlines()[0][:80])
    return {
        "way": way,
        "run": job,
        "killed after": f"{ran:.0f} s" if WAYS[way] else "-",
        "attempts": ", ".join(attempts),
        "saved at": ", ".join(step for _, step in saved) or "-",
        "went on from": ", ".join(str(int(step)) for step in resumed) or "-",
        "took": f"{time.monotonic() - began:.0f} s",
        "outcome": "; ".join(problems) or "same weights, same curves",
    }


@pytest.mark.parametrize(
    "these",
    [
        pytest.param(["preempted", "kill -9"], id="two ways", marks=pytest.mark.slow),
        pytest.param(list(WAYS), id="all ways", marks=pytest.mark.campaign),
    ],
)
def test_campaign(these, root, own_cluster):
    """Each of these ways, TIMES times, at random moments; a process on each of 2 nodes. Prints a table."""
    cluster = own_cluster
    reference = start(root, cluster, f"python run.py --config {CONFIG}", f"{SHORT} --tasks_per_node 1")
    assert cluster.wait(reference.name) == "COMPLETED"
    rows = []
    alone = [way for way in these if way in ALONE_ON_ITS_NODES]
    others = [way for way in these if way not in ALONE_ON_ITS_NODES]
    for at_once, ways in ((2, alone), (4, others)):  # there are four nodes, and each run takes two
        with ThreadPoolExecutor(at_once) as pool:
            runs = [
                pool.submit(survive, way, number, root, cluster, reference) for number in range(TIMES) for way in ways
            ]
            rows += [run.result() for run in runs]
    rows.sort(key=lambda row: list(WAYS).index(row["way"]))
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    for row in [{name: name for name in widths}, *rows]:
        print("  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip())
    outcomes = Counter((row["way"], row["outcome"]) for row in rows)
    assert outcomes == {(way, "same weights, same curves"): TIMES for way in these}
    folders = [path.name for path in (root.folder / "logs").iterdir()]
    assert sorted(folders) == sorted([reference.name, *(row["run"] for row in rows)])  # one folder a run
