"""python run.py doctor: each test breaks something for real, and reads what the table says of it."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time

import pytest
import quick_python
import torch
from cluster import hosts_that_lead_to_themselves
from lesson import REPOSITORY, assert_one_sentence, readme_commands
from training import clean, free_port

from src.doctor import node, together
from src.doctor import start as start_doctor

DOCTOR = f"{sys.executable} {REPOSITORY}/run.py doctor"
LINE = re.compile(r"^(ok|WARNING|ERROR) +(\S+) +([\w -]+): (.*)$", re.MULTILINE)
CHECKS = {
    *("host name", "interface", "variables", "CPUs", "memory", "shared memory", "limits", "GPU", "Python", "requeue"),
    *("data", "log path", "TMPDIR", "weights", "processes", "python", "code", "clocks"),
}


def doctor(flags, folder, before="", command="python run.py doctor", **environment):
    """What the command, typed in the repository, prints, and its exit code.

    Args:
        before: what is typed before python
    """
    return subprocess.run(
        ["bash", "-c", f"{before} {command} --log_path {folder}/logs {flags}"],
        cwd=REPOSITORY,
        env=clean(quick_python.environment()) | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def lines(done):
    """check -> [(level, ranks, text)]"""
    found = {}
    for level, ranks, check, text in LINE.findall(done.stdout):
        found.setdefault(check, []).append((level, ranks, text))
    assert found, done.stdout + done.stderr
    return found


def bad(done):
    """Check: text, of all lines that are not ok, as one text."""
    return "\n".join(f"{level} {ranks} {check}: {text}" for level, ranks, check, text in LINE.findall(done.stdout)
                     if level != "ok")  # fmt: skip


def start(rank, size, port, folder, before="", path=REPOSITORY, **environment):
    """A process of several, as torchrun starts it."""
    ranks = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return subprocess.Popen(
        ["bash", "-c", f"{before} {sys.executable} {path}/run.py doctor --patience 25 --log_path {folder}/logs"],
        env=clean(os.environ) | {name: str(value) for name, value in ranks.items()} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_machine_that_is_well(tmp_path):
    done = doctor("--cluster debug", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(lines(done)) == CHECKS
    assert done.stdout.endswith("\ndoctor: 0 errors, 0 warnings\n") or "WARNING" in done.stdout
    assert "ERROR" not in done.stdout
    assert not list((tmp_path / "logs").iterdir())  # what it has measured with is gone


def test_it_imports_torch_in_the_job_only():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "run.py", "doctor", "--nodes", "2", "--cluster", "local"],
        cwd=REPOSITORY,
        env=clean(os.environ),
        capture_output=True,
        text=True,
    )
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "submitit" in imported and "torch" not in imported
    assert "--nodes 2 needs Slurm" in done.stderr


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--nods 2", ["no flag --nods", "--nodes"]),
        ("--patience soon", ["--patience 'soon' is not a whole number of seconds from 1 to 9999"]),
        ("--dry_run", ["--dry_run"]),
        ("--cluster pbs", ["mpirun -n 4 python run.py doctor"]),
    ],
)
def test_a_mistake_gets_one_sentence(flags, says, tmp_path):
    assert_one_sentence(doctor(flags, tmp_path), *says)


@pytest.mark.parametrize("patience", ["0", "-1", "²", "1e3", "9" * 30, "", " ", "+5", "60 s", "00"])
def test_a_wrong_patience(patience):
    with pytest.raises(SystemExit, match="is not a whole number of seconds from 1 to 9999") as end:
        start_doctor.doctor(["--patience", patience])
    assert len(end.value.code) < 120


def test_patience_is_a_flag():
    with pytest.raises(SystemExit, match="'patience' is not expected here"):
        start_doctor.doctor(["patience", "5"])


@pytest.mark.parametrize(
    ("answer", "job"),
    [
        ("12\n", "12"),
        ("12;tinker\n", "12"),
        ("-----\n Welcome to Practice3\n--> Verifying 2 hosts...OK\n4711;cluster1\n", "4711"),
        ("you have 3 jobs\n7\n", "7"),
    ],
)
def test_the_job_id_behind_a_banner(answer, job):
    assert start_doctor.job_in(answer) == job


def test_an_answer_without_a_job_id():
    with pytest.raises(SystemExit, match="sbatch printed no job id, but 'Welcome'"):
        start_doctor.job_in("Welcome\n")


FAKE_SQUEUE = """#!/bin/bash
echo x >> {folder}/asked
[ $(wc -l < {folder}/asked) -gt 1 ] || {{ echo "Unable to contact slurm controller" >&2; exit 1; }}
{last}
"""


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ("echo 'PENDING Resources'", ("PENDING", "Resources")),
        ("echo 'NODE_FAIL NodeDown'", ("NODE_FAIL", "NodeDown")),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", ("Slurm does not know it any more", "")),
        ("", ("Slurm does not know it any more", "")),
    ],
)
def test_a_queue_that_does_not_answer_is_asked_again(last, state, tmp_path, monkeypatch, capsys):
    """No answer is not the end of the job."""
    (tmp_path / "squeue").write_text(FAKE_SQUEUE.format(folder=tmp_path, last=last))
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(start_doctor.time, "sleep", lambda seconds: None)
    assert start_doctor.state_of("7") == state
    assert "squeue does not answer (Unable to contact slurm controller)" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["gloo", "nccl"])
def test_only_nccl_is_told_about_nccl(backend, monkeypatch):
    """A backend that fails at once: there is no store."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    finding = together.all_reduce(backend, None, 0, 2)
    assert finding.level == "ERROR"
    assert f"{backend.upper()}_SOCKET_IFNAME" in finding.text
    assert ("NCCL" in finding.text) == (backend == "nccl"), finding.text


@pytest.mark.parametrize(
    ("visible", "asked", "count", "local_size", "expected"),
    [
        ("", None, 0, 1, "ok: none, the training runs on CPUs"),
        ("NoDevFiles", None, 0, 1, "ok: none, the training runs on CPUs"),
        ("", 1, 0, 1, "ERROR: CUDA_VISIBLE_DEVICES is '', which hides all GPUs"),
        ("-1", 1, 0, 1, "ERROR: CUDA_VISIBLE_DEVICES is '-1', which hides all GPUs"),
        ("2, 3", 2, 0, 1, "ERROR: torch sees none, CUDA_VISIBLE_DEVICES is 2, 3: is there a driver?"),
        ("GPU-5d2a", 1, 0, 1, "ERROR: torch sees none, CUDA_VISIBLE_DEVICES is GPU-5d2a: compare with   nvidia-smi -L"),
        ("MIG-1,MIG-2", 2, 1, 2, "ERROR: 2 processes on this node, but CUDA shows a process one part of a GPU only"),
        ("0,1", 2, 1, 2, "ERROR: 2 processes on this node, but torch sees 1: --gpus_per_node 2"),
    ],
)
def test_gpus_that_are_hidden_or_named(visible, asked, count, local_size, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    finding = node.check_gpu(0, local_size, asked)
    assert f"{finding.level}: {finding.text}".startswith(expected)


def test_two_processes_here(tmp_path):
    done = doctor("--cluster local --tasks_per_node 2", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines(done)
    assert set(found) == CHECKS | {"meeting", "all-reduce gloo", "shared folder"}
    assert found["host name"][0][1] == "all"  # one row for both
    assert re.fullmatch(r"16 MiB in \d+\.\d{3} s, \d+\.\d\d GB/s", found["all-reduce gloo"][0][2])
    assert found["processes"] == [("ok", "0", f"2 on 1 nodes: {socket.gethostname()}")]


def test_one_cpu_strays_and_no_scontrol(tmp_path):
    """One process in a shell that was in a job, bound to one CPU, where Slurm's programs are missing."""
    (tmp_path / "bin").mkdir()
    for program in ("bash", "taskset", "env", "git"):
        (tmp_path / "bin" / program).symlink_to(shutil.which(program))
    done = doctor(
        "--cluster debug",
        tmp_path,
        f"PATH={tmp_path}/bin taskset -c {min(os.sched_getaffinity(0))}",
        f"{sys.executable} run.py doctor",
        SLURM_JOB_ID="12",
        SLURM_CPUS_PER_TASK="4",
        SLURM_NTASKS="4",
        OMP_NUM_THREADS="4",
    )
    assert done.returncode == 1
    for words in (
        "ERROR 0 CPUs: 1 ",
        "for this process, which has asked for",
        "ERROR 0 variables: the allocation has 4 tasks, and this is one process: start it with srun",
        "requeue: there is no scontrol",
    ):
        assert words in bad(done), done.stdout + done.stderr


def test_variables_of_another_job(tmp_path):
    done = doctor("--cluster debug", tmp_path, SLURM_STEP_ID="0", SLURM_PROCID="3")
    assert "variables: left of another job" in bad(done)
    assert "SLURM_PROCID, SLURM_STEP_ID" in bad(done)
    assert "see lessons/troubleshooting.md#variables-left-of-another-job" in bad(done)


def test_disks_that_are_too_small_or_read_only(tmp_path, namespaces):
    mounts = {"logs": "-o size=1M", "data": "-o size=500M", "scratch": "-o ro"}
    commands = ["mount -t tmpfs -o size=1M tmpfs /dev/shm"]
    for name, options in mounts.items():
        (tmp_path / name).mkdir()
        commands.append(f"mount -t tmpfs {options} tmpfs {tmp_path}/{name}")
    done = doctor(
        f"--cluster debug --num_workers 2 --data_dir {tmp_path}/data",
        tmp_path,
        f'unshare -m bash -c \'{" && ".join(commands)}; exec "$0" "$@"\'',
        f"{sys.executable} run.py doctor",
        SLURM_TMPDIR=f"{tmp_path}/scratch",
    )
    assert done.returncode == 1
    for words in (
        f"ERROR 0 log path: {tmp_path}/logs cannot be written to (No space left on device)",
        f"ERROR 0 TMPDIR: {tmp_path}/scratch cannot be written to (Read-only file system)",
        f"WARNING 0 data: {tmp_path}/data writes ",
        "ERROR 0 shared memory: 1 MiB are free in /dev/shm, 2 workers of 1 processes with 2 batches of 64 images",
    ):
        assert words in bad(done), done.stdout + done.stderr


def test_a_wrong_interface_a_low_limit_no_data_no_weights(tmp_path):
    done = doctor(
        f"--cluster debug --data_dir {tmp_path}/nowhere --num_workers 4 --cpus_per_task 5 "
        "--model.arch resnet18 --model.pretrained true",
        tmp_path,
        "ulimit -n 300;",
        f"{sys.executable} run.py doctor",
        GLOO_SOCKET_IFNAME="ib77",
        TORCH_HOME=str(tmp_path),
        OMP_NUM_THREADS="99",
    )
    assert done.returncode == 1
    for words in (
        "ERROR 0 interface: GLOO_SOCKET_IFNAME=ib77, but there are ",
        "WARNING 0 limits: ulimit -n is 300",
        f"ERROR 0 data: there is no {tmp_path}/nowhere",
        "ERROR 0 weights: the weights of resnet18 are not in",
        "for OMP_NUM_THREADS=99 threads",
    ):
        assert words in bad(done), done.stdout + done.stderr
    for line in bad(done).splitlines():
        assert re.search(r"; see lessons/troubleshooting\.md#[\w-]+$", line)


def test_a_gpu_that_torch_does_not_see(tmp_path):
    done = doctor("--cluster debug", tmp_path, CUDA_VISIBLE_DEVICES="0,1")
    assert "ERROR 0 GPU: torch sees none, CUDA_VISIBLE_DEVICES is 0,1" in bad(done)


def test_a_process_that_never_comes(tmp_path):
    port = free_port()
    done = doctor("--patience 3", tmp_path, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2",
                  MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    assert done.returncode == 1
    assert "ERROR 0 meeting: rank 1 has not come in 3 s" in bad(done), done.stdout + done.stderr
    assert "#the-client-socket-has-timed-out-after" in bad(done)

    done = doctor("--patience 3", tmp_path, RANK="1", WORLD_SIZE="2", LOCAL_RANK="1", LOCAL_WORLD_SIZE="2",
                  MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    assert done.returncode == 1
    assert f"cannot connect to 127.0.0.1, port {port}" in bad(done), done.stdout + done.stderr


def test_a_port_that_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = doctor("--patience 3", tmp_path, RANK="0", WORLD_SIZE="2", LOCAL_RANK="0", LOCAL_WORLD_SIZE="2",
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))  # fmt: skip
    assert done.returncode == 1
    assert f"ERROR 0 meeting: port {port} is taken" in bad(done), done.stdout + done.stderr
    assert "\ndoctor: 1 error, " in done.stdout


@pytest.mark.slow
def test_processes_that_differ(tmp_path, namespaces):
    """Another code, another disk under the same name, and both processes on one CPU."""
    other = tmp_path / "other"
    shutil.copytree(REPOSITORY / "src", other / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "run.py", other)
    (other / "data").symlink_to(REPOSITORY / "data")
    (other / "src/new.py").write_text("")  # a file more
    (tmp_path / "logs").mkdir()
    port, bound = free_port(), f"taskset -c {min(os.sched_getaffinity(0))}"
    own_disk = f'unshare -m bash -c \'mount -t tmpfs tmpfs {tmp_path}/logs; exec "$0" "$@"\' {bound}'
    first, second = start(0, 2, port, tmp_path, bound), start(1, 2, port, tmp_path, own_disk, other)
    output = first.communicate(timeout=300)[0] + second.communicate(timeout=300)[0]
    for words in ("CPU sharing: rank", "not the same everywhere", "shared folder: not seen by"):
        assert words in output, output
    assert first.returncode == 1
    assert re.search(r"^ERROR +1 +shared folder", output, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun --nproc_per_node 2", "mpirun --allow-run-as-root --oversubscribe -n 2"])
def test_other_launchers(launcher, tmp_path):
    python = "" if launcher.startswith("torchrun") else sys.executable
    done = doctor("", tmp_path, launcher, f"{python} run.py doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 on 1 nodes" in lines(done)["processes"][0][2]


# On the practice cluster

README_COMMAND = "python run.py doctor --nodes 2 --tasks_per_node 2"


@pytest.mark.slow
def test_a_job_of_four_processes(cluster, tmp_path):
    """The command of the page."""
    assert readme_commands(REPOSITORY / "lessons", "troubleshooting.md") == [README_COMMAND]
    done = cluster.run(f"{README_COMMAND} --log_path {tmp_path}", REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr
    found = lines(done)
    assert set(found) == CHECKS | {"meeting", "all-reduce gloo", "shared folder"}
    assert found["processes"] == [("ok", "0", "4 on 2 nodes: node1, node2")]
    assert found["data"][0][1] == "0,2"  # once on each node
    assert "CPUs" in found and found["requeue"] == [("ok", "all", "scontrol is found")]


@pytest.mark.campaign
def test_names_that_lead_to_the_node_itself(cluster, tmp_path):
    with hosts_that_lead_to_themselves(cluster, tmp_path):
        done = cluster.run(f"{README_COMMAND} --log_path {tmp_path}", REPOSITORY, timeout=400)
        # What it advises.
        mended = cluster.run(f"GLOO_SOCKET_IFNAME=eth0 {README_COMMAND} --log_path {tmp_path}", REPOSITORY)
    assert done.returncode == 1
    said = bad(done)
    assert "WARNING 2-3 host name: node2 is 127.0.1.1" in said, done.stdout + done.stderr
    assert "export GLOO_SOCKET_IFNAME=eth0" in said
    assert re.search("ERROR \\d all-reduce gloo: Gloo connectFullMesh failed", said)
    assert mended.returncode == 0, mended.stdout + mended.stderr


@pytest.mark.slow
def test_in_an_allocation(cluster, tmp_path):
    """What run.py starts by itself; too few processes; variables that lead them astray; one that never comes."""
    done = cluster.run(f"salloc --nodes=2 --ntasks-per-node=2 {DOCTOR}", tmp_path)
    assert "4 on 2 nodes" in lines(done)["processes"][0][2]
    assert done.returncode == 0, done.stdout + done.stderr

    strays = "RANK=0 WORLD_SIZE=1 LOCAL_RANK=0"
    done = cluster.run(f"{strays} srun --ntasks=2 --nodes=2 {DOCTOR} --log_path {tmp_path}", tmp_path)
    assert "variables: left of another job: LOCAL_RANK, RANK, WORLD_SIZE, but srun has started 2 processes" in bad(done)
    assert "2 on 2 nodes" in lines(done)["processes"][0][2]

    wrong = f"srun --nodes=2 --ntasks=3 {DOCTOR} --nodes 2 --tasks_per_node 2 --log_path {tmp_path}"
    assert "asked for was --nodes 2 --tasks_per_node 2" in bad(cluster.run(wrong, tmp_path))

    gone = f"bash -c 'test $SLURM_PROCID = 1 && exit; exec {DOCTOR} --patience 20 --log_path {tmp_path}'"
    begin = time.monotonic()
    done = cluster.run(f"srun --kill-on-bad-exit=0 --wait=0 --nodes=2 --ntasks=2 {gone}", tmp_path)
    assert "meeting: rank 1 (node2) has not come in 20 s" in bad(done), done.stdout + done.stderr
    assert time.monotonic() - begin < 100
