"""The troubleshooting page: each of its messages is made to appear, by doing what it warns of."""

import ast
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import quick_python
from cluster import hosts_that_lead_to_themselves
from lesson import REPOSITORY, page_of
from training import clean, free_port

sys.path.insert(0, str(REPOSITORY))
from src.doctor.findings import Finding, anchor, rows
from src.doctor.node import check_folder
from src.doctor.together import compare

PAGE = REPOSITORY / "lessons/troubleshooting.md"
ENTRIES = {
    heading.strip("` "): body
    for heading, body in re.findall(r"^### (.*)\n\n((?:.+\n)+)", PAGE.read_text(), re.MULTILINE)
}
TESTED = [heading for heading, body in ENTRIES.items() if re.search(r"\*Tested[.,]", body)]

NET = """
import torch, lightning as L
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
    def training_step(self, batch, index):
        return self.layer(batch[0]).sum()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
def fit(net, data, **more):
    L.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, logger=False, **more).fit(net, data)
pairs = DataLoader(TensorDataset(torch.randn(8, 2)), batch_size=2)
"""
IN_SLURM = """
import os
os.environ.update(SLURM_JOB_ID="1", SLURM_JOB_NAME="train", SLURM_NODELIST="n1", SLURM_PROCID="0", SLURM_NODEID="0")
os.environ.update(SLURM_LOCALID="0")
"""
DATASET = """
import mmap, os, resource, torch
class Data(torch.utils.data.Dataset):
    def __len__(self): return 400
    def __getitem__(self, i): {}
loader = torch.utils.data.DataLoader(Data(), num_workers=1, batch_size={})
kept = list(loader)
"""

# What Python says of these lines.
PYTHON = {
    "in your SLURM bash script, but this variable is not supported": NET
    + IN_SLURM
    + 'os.environ["SLURM_NTASKS"] = "2"; fit(Net(), pairs, devices=2)',
    "in Lightning, but the number of tasks per node configured in SLURM": NET
    + IN_SLURM
    + 'os.environ.update(SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="2"); fit(Net(), pairs, devices=4)',
    "The `srun` command is available on your system but is not used.": NET
    + """
import os
open("srun", "w").close(); os.chmod("srun", 0o755); os.environ["PATH"] += ":."
fit(Net(), pairs)""",
    "EADDRINUSE": """
import socket, torch.distributed as dist
taken = socket.socket(); taken.bind(("", 0)); taken.listen()
dist.TCPStore("127.0.0.1", taken.getsockname()[1], 1, True)""",
    "The client socket has timed out after": """
import datetime, socket, torch.distributed as dist
free = socket.socket(); free.bind(("127.0.0.1", 0)); port = free.getsockname()[1]; free.close()
dist.TCPStore("127.0.0.1", port, 2, False, datetime.timedelta(seconds=1))""",
    "Unable to find address for": """
import os, torch.distributed as dist
os.environ["GLOO_SOCKET_IFNAME"] = "ib77"
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)""",
    "Expected to have finished reduction in the prior iteration before starting a new one.": """
import torch, torch.distributed as dist
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    def forward(self, x): return self.used(x)
net = torch.nn.parallel.DistributedDataParallel(Net())
for _ in range(2): net(torch.randn(2, 2)).sum().backward()""",
    "No supported gpu backend found!": 'import lightning as L; L.Trainer(accelerator="gpu")',
    "Found no NVIDIA driver on your system.": 'import torch; torch.zeros(1, device="cuda")',
    "does not have many workers": NET
    + "import os; os.sched_getaffinity = lambda _: set(range(8)); os.cpu_count = lambda: 8; fit(Net(), pairs)",
    "The number of training batches": NET + "from lightning.pytorch.loggers import CSVLogger\n"
    'L.Trainer(max_epochs=1, accelerator="cpu", enable_checkpointing=False, logger=CSVLogger(".")).fit(Net(), pairs)',
    "Trying to infer the `batch_size` from an ambiguous collection.": NET
    + """
class Logs(Net):
    def training_step(self, batch, index):
        loss = self.layer(batch["x"]).sum()
        self.log("loss", loss, on_epoch=True)
        return loss
fit(Logs(), DataLoader(range(2), collate_fn=lambda _: {"length": torch.zeros(3), "x": torch.zeros(2, 2)}))""",
    "Our suggested max number of worker in current system is": """
import os, torch
iter(torch.utils.data.DataLoader(range(4), num_workers=len(os.sched_getaffinity(0)) + 1))""",
    "is killed by signal: Bus error.": DATASET.format(
        """
        with open("file", "wb+") as file:
            file.truncate(8192)
            mapped = mmap.mmap(file.fileno(), 8192)
            file.truncate(0)
            return mapped[5000]""",
        1,
    ),
    "exited unexpectedly": DATASET.format("os._exit(1)", 1),
    "Too many open files": "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))"
    + DATASET.format("return torch.zeros(2)", 1),
    "unable to open shared memory object": """
import resource, torch
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
torch.zeros(2).share_memory_()""",
    "stack expects each tensor to be equal size": DATASET.format("return torch.zeros(i)", 2),
    "An attempt has been made to start a new process before": """
open("train.py", "w").write('''
import multiprocessing
multiprocessing.get_context("spawn").Process(target=print).start()
''')
import subprocess, sys
subprocess.run([sys.executable, "train.py"])""",
    "Dataset not found.": 'import torchvision; torchvision.datasets.MNIST("nowhere")',
    "DefaultCPUAllocator: can't allocate memory": "import torch; torch.zeros(10**15)",
    "mat1 and mat2 shapes cannot be multiplied": "import torch; torch.nn.Linear(784, 3)(torch.zeros(4, 28))",
    "to have 3 channels, but got 1 channels instead": "import torch; torch.nn.Conv2d(3, 8, 3)(torch.zeros(4, 1, 9, 9))",
    "Expected more than 1 value per channel when training": "import torch; torch.nn.BatchNorm1d(3)(torch.zeros(1, 3))",
    "is out of bounds.": """
import torch; torch.nn.functional.cross_entropy(torch.zeros(2, 10), torch.tensor([3, 10]))""",
    "size mismatch for": """
import torch; torch.nn.Linear(2, 3).load_state_dict(torch.nn.Linear(2, 4).state_dict())""",
    "Missing key(s) in state_dict": """
import torch; net = torch.nn.Linear(2, 3)
net.load_state_dict({f"module.{name}": weight for name, weight in net.state_dict().items()})""",
    "Weights only load failed": """
import pathlib, torch
torch.save({"folder": pathlib.Path()}, "a.pt"); torch.load("a.pt")""",
    "unable to lock file": """
import h5py, subprocess, sys
with h5py.File("a.h5", "w"): subprocess.run([sys.executable, "-c", "import h5py; h5py.File('a.h5')"])""",
    "CERTIFICATE_VERIFY_FAILED": """
import http.server, ssl, subprocess, threading, urllib.request
make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key -out cert -subj /CN=localhost -days 1"
subprocess.run(make.split(), check=True, capture_output=True)
server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("cert", "key")
server.socket = context.wrap_socket(server.socket, server_side=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
urllib.request.urlopen(f"https://localhost:{server.server_port}")""",
}

SMALL = "mount -t tmpfs -o size=1M tmpfs /mnt"
NOBODY = "setpriv --reuid 65534 --clear-groups"
# What a shell of root shows, with mounts and networks of its own.
SHELL = {
    "No space left on device": f"unshare -m bash -c '{SMALL} && head -c 2000000 /dev/zero > /mnt/file'",
    "Read-only file system": "unshare -m bash -c 'mount -t tmpfs -o ro tmpfs /mnt && touch /mnt/file'",
    "Permission denied": f"{NOBODY} touch /usr/file",
    "Resource temporarily unavailable": f"{NOBODY} prlimit --nproc=1 /usr/bin/python3 -c 'import os; os.fork()'",
    "Temporary failure in name resolution": f"""
        unshare -n {sys.executable} -c 'import urllib.request; urllib.request.urlopen("https://example.org")'""",
    "unable to allocate shared memory(shm) for file": f"""
        unshare -m bash -c 'mount -t tmpfs -o size=1M tmpfs /dev/shm && {sys.executable} -c "
import torch
torch.zeros(10**6).share_memory_()"'""",
    "There are not enough slots available in the system": "mpirun --allow-run-as-root -n 1000 hostname",
    "Could not establish a configuration source": "env -u SLURM_CONF unshare -n -m bash -c "
    "'mkdir -p /etc/slurm && mount -t tmpfs tmpfs /etc/slurm && timeout 60 squeue'",
    "do not know where to meet": "OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_RANK=0 "
    f"OMPI_COMM_WORLD_LOCAL_SIZE=2 python {REPOSITORY}/run.py doctor",
    "need a GPU each, but torch sees": f"python {REPOSITORY}/src/train.py fit --accelerator gpu --run_folder run",
    "is not finite. Its batch and the weights": f"python {REPOSITORY}/src/train.py fit --optimizer SGD --optimizer.lr "
    "1e30 --limit_train_batches 9 --run_folder run --logger csv",
    "is in use by": f"""
        mkdir run; touch run/.taken
        python -c 'import fcntl, os, time
file = open("run/.taken", "r+"); fcntl.lockf(file, fcntl.LOCK_EX); open("locked", "w")
while not os.path.exists("end"): time.sleep(0.1)' &
        until [ -e locked ]; do sleep 0.1; done
        python {REPOSITORY}/src/train.py fit --run_folder run; touch end; wait""",
}

# On the practice cluster. Jobs end by themselves, or are cancelled.
SLURM = {
    "invalid partition specified": "sbatch --partition=nope --wrap=hostname",
    "Requested node configuration is not available": "sbatch --mem=100G --wrap=hostname",
    "Node count specification invalid": "sbatch --nodes=5 --wrap=hostname",
    "Requested time limit is invalid": "sbatch --time=9-00:00:00 --wrap=hostname",
    "Invalid account or account/partition combination specified": "sbatch --account=nobody --wrap=hostname",
    "This does not look like a batch script.": "echo 'print(1)' > train.py; sbatch train.py",
    "Batch script contains DOS line breaks": r"printf '#!/bin/bash\r\nhostname\r\n' > run.sh; sbatch run.sh",
    "couldn't chdir to": "srun --chdir=/nowhere pwd",
    "Memory required by task is not available": "salloc --mem=100M srun --mem=4G hostname",
    "More processors requested than permitted": "salloc --ntasks=1 srun --ntasks=3 hostname",
    "step creation temporarily disabled, retrying (Requested nodes are busy)": "salloc --ntasks=1 bash -c "
    "'srun sleep 3 & sleep 1; srun hostname; wait'",
    "Unable to confirm allocation for job": "SLURM_JOB_ID=999999 srun hostname",
    "(DependencyNeverSatisfied)": "first=$(sbatch --parsable --hold --wrap=hostname); "
    "second=$(sbatch --parsable --dependency=afterok:$first --wrap=hostname); scancel $first; "
    "until squeue --jobs=$second | grep Never; do sleep 0.3; done; scancel $second",
    "(AssocMaxJobsLimit)": "sacctmgr -i modify user root set MaxJobs=1; "
    "a=$(sbatch --parsable --wrap='sleep 30'); b=$(sbatch --parsable --wrap='sleep 30'); "
    "until squeue --jobs=$b | grep AssocMaxJobs; do sleep 0.3; done; scancel $a $b; "
    "sacctmgr -i modify user root set MaxJobs=-1",
    "(Resources)": "a=$(sbatch --parsable --exclusive --nodes=4 --wrap='sleep 30'); "
    "b=$(sbatch --parsable --exclusive --wrap=hostname); "
    "until squeue --jobs=$b | grep Resources; do sleep 0.3; done; scancel $a $b",
    "Exited with exit code": "srun false",
    "task 0: Killed": "srun bash -c 'kill -9 $$'",
    "Slurm did not take the job, nothing was submitted": f"python {REPOSITORY}/run.py doctor --partition nope "
    "--log_path .",
}


def said_by(command, folder, quick=True, **environment):
    """All that a bash line writes."""
    variables = clean(quick_python.environment() if quick else os.environ) | environment
    files = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=variables, text=True, timeout=300, **files).stdout


def compared(text):
    """Without line ends, which a narrow terminal may put elsewhere."""
    return " ".join(text.split())


@pytest.mark.parametrize("heading", PYTHON)
def test_python_says(heading, tmp_path):
    done = subprocess.run(
        ["python", "-"],
        input=PYTHON[heading],
        env=clean(quick_python.environment()),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert heading in compared(done.stdout)


@pytest.mark.parametrize("heading", SHELL)
def test_a_shell_shows(heading, tmp_path, namespaces):
    assert heading in compared(said_by(SHELL[heading], tmp_path))


@pytest.mark.parametrize("heading", SLURM)
def test_slurm_says(heading, tmp_path, cluster):
    done = cluster.run(SLURM[heading], tmp_path)
    assert heading in compared(done.stdout + done.stderr)


# What takes more than a line


def test_connection_closed_by_peer(tmp_path):
    port = free_port()
    snippet = f"""
import os, sys, time, torch, torch.distributed as dist
rank = int(sys.argv[1])
store = dist.TCPStore("127.0.0.1", {port}, 2, rank == 0)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
dist.barrier()
if rank == 1: os._exit(1)
time.sleep(1)
dist.all_reduce(torch.zeros(10))
"""
    (tmp_path / "train.py").write_text(snippet)
    assert "Connection closed by peer" in said_by("python train.py 1 & python train.py 0; wait", tmp_path)


def test_operator_torchvision_nms_does_not_exist(tmp_path):
    """torchvision without its own library, which torch does not load either when the two do not fit."""
    import torchvision

    shutil.copytree(
        Path(torchvision.__file__).parent, tmp_path / "torchvision", ignore=shutil.ignore_patterns("*.so", "*.libs")
    )
    output = said_by("python -c 'import torchvision'", tmp_path, quick=False, PYTHONPATH=str(tmp_path))
    assert "operator torchvision::nms does not exist" in output


@contextlib.contextmanager
def tensorboard(folder, port):
    """TensorBoard on an empty folder; its standard error."""
    (folder / "empty").mkdir()
    command = [
        sys.executable,
        "-m",
        "tensorboard.main",
        "--logdir",
        "empty",
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
    ]
    server = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    try:
        yield server.stderr
    finally:
        server.terminate()
        server.wait()


def test_tensorboard_could_not_bind_to_port(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with tensorboard(tmp_path, taken.getsockname()[1]) as said:
            assert "TensorBoard could not bind to port" in said.read()


def test_no_dashboards_are_active_for_the_current_data_set(tmp_path):
    with tensorboard(tmp_path, 0) as said:
        address = next(match[0] for line in said if (match := re.search(r"http://\S+:\d+/", line)))
        urllib.request.urlopen(address, timeout=30).close()
        page = page_of(address, tmp_path / "browser")
    assert "No dashboards are active for the current data set." in compared(page)


def fact(**changes):
    return {"host": "n1", "python": "Python 3", "code": "a", "cpus": [0, 1], "gpu": None} | changes


def words(findings):
    """The table's lines."""
    return "\n".join(f"{level} {ranks} {text}" for level, ranks, text in rows(findings, len(findings)))


def test_clocks_not_the_same():
    said = words({0: list(compare({0: fact(), 1: fact(host="n2")}, {0: 100.0, 1: 107.0}, {})), 1: []})
    assert "WARNING 0 clocks: not the same: n2 is 7 s from the others" in said


def test_slow_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("src.doctor.node.measure", lambda folder: (9.0, 9.0, 0.1, True))
    assert "WARNING 0 data: slow disk:" in words({0: [check_folder("data", tmp_path)]})


# What takes long


@pytest.mark.slow
def test_due_to_time_limit(cluster, tmp_path):
    job = cluster.submit("--time=1 --wrap='srun sleep 600'", tmp_path)
    assert cluster.wait(job) == "TIMEOUT"
    assert "DUE TO TIME LIMIT" in (tmp_path / f"slurm-{job}.out").read_text()


@pytest.mark.slow
def test_due_to_preemption(cluster, tmp_path):
    ignores = """--wrap='trap "" TERM; sleep 600'"""  # else it has ended before Slurm says why
    job = cluster.submit(f"--partition=low --nodes=4 --exclusive --open-mode=append {ignores}", tmp_path)
    log = tmp_path / f"slurm-{job}.out"
    wait_until(lambda: log.exists())
    urgent = cluster.submit("--partition=urgent --nodes=4 --exclusive --wrap=hostname", tmp_path)
    cluster.wait(urgent)
    wait_until(lambda: "DUE TO PREEMPTION" in log.read_text())
    cluster.run(f"scancel {job}", tmp_path)


@pytest.mark.slow
def test_due_to_node_failure(cluster, tmp_path):
    job = cluster.submit("--nodes=2 --no-requeue --wrap='srun sleep 600'", tmp_path)
    log = tmp_path / f"slurm-{job}.out"
    wait_until(lambda: log.exists())
    node = cluster.run(f"squeue -h -j {job} -o %N | xargs scontrol show hostnames | tail -1", tmp_path).stdout.strip()
    cluster.cluster_py("crash", node)
    try:
        wait_until(lambda: "DUE TO NODE FAILURE" in log.read_text())
    finally:
        cluster.cluster_py("boot", node)


@pytest.mark.campaign
def test_connect_full_mesh_failed(cluster, tmp_path):
    """gloo itself, where a node's name leads to itself. test_doctor.py has what doctor says there, on each change."""
    snippet = """
import datetime, os, torch.distributed as dist
rank = int(os.environ["SLURM_PROCID"])
store = dist.TCPStore(os.environ["FIRST"], 23456, 2, rank == 0)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=datetime.timedelta(seconds=20))
"""
    (tmp_path / "train.py").write_text(snippet)
    with hosts_that_lead_to_themselves(cluster, tmp_path):
        command = f"FIRST=node1 srun --nodelist=node1,node2 --nodes=2 {sys.executable} train.py"
        done = cluster.run(command, tmp_path, timeout=300)
    assert "connectFullMesh failed" in done.stdout + done.stderr


def wait_until(true, seconds=120):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.3)


# The page itself

ELSEWHERE = {  # in this file by a test of its own, or in test_doctor.py
    "DUE TO TIME LIMIT": test_due_to_time_limit,
    "DUE TO PREEMPTION": test_due_to_preemption,
    "DUE TO NODE FAILURE": test_due_to_node_failure,
    "connectFullMesh failed": test_connect_full_mesh_failed,
    "Connection closed by peer": test_connection_closed_by_peer,
    "operator torchvision::nms does not exist": test_operator_torchvision_nms_does_not_exist,
    "TensorBoard could not bind to port": test_tensorboard_could_not_bind_to_port,
    "No dashboards are active for the current data set.": test_no_dashboards_are_active_for_the_current_data_set,
    "clocks: not the same": test_clocks_not_the_same,
    "slow disk:": test_slow_disk,
}
BY_DOCTOR = [
    "variables: left of another job",
    "for this process, which has asked for",
    "CPU sharing: rank",
    "not the same everywhere",
    "shared folder: not seen by",
    "requeue: there is no scontrol",
]


def test_every_entry_that_says_so_is_tested():
    assert sorted(TESTED) == sorted([*PYTHON, *SHELL, *SLURM, *ELSEWHERE, *BY_DOCTOR])
    doctor = (REPOSITORY / "tests/test_doctor.py").read_text()
    for heading in BY_DOCTOR:
        assert f'"{heading}"' in doctor, heading


def test_entries_are_short_and_say_whether_they_are_tested():
    assert len(ENTRIES) == PAGE.read_text().count("\n### ") >= 25
    for heading, body in ENTRIES.items():
        assert len(body.splitlines()) <= 8, heading
        assert heading in TESTED or re.search(r"\*Needs [^*]*:\s+not\s+tested\s+here\.\s+\[", body), heading
    assert len({anchor(heading) for heading in ENTRIES}) == len(ENTRIES)


def test_doctor_names_entries_that_are_there():
    """Each text that is given to a Finding as its entry is a heading."""
    named = set()
    for path in (REPOSITORY / "src/doctor").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding" and len(node.args) > 3:
                named.add(node.args[3])
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("entry", "ENTRY_OF"):
                named.add(node.value)
    texts = {one.value for node in named for one in ast.walk(node) if isinstance(one, ast.Constant)}
    texts = {text for text in texts if isinstance(text, str)} - {"gloo"}
    assert len(texts) > 20
    assert texts <= set(ENTRIES), texts - set(ENTRIES)


def test_a_line_of_the_table_links_to_its_entry():
    finding = Finding("host name", "ERROR", "n1 is 127.0.0.1", "connectFullMesh failed")
    [(level, ranks, text)] = rows({0: [finding], 1: [finding]}, 2)
    assert (level, ranks) == ("ERROR", "all")
    assert text.endswith("; see lessons/troubleshooting.md#connectfullmesh-failed")


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)\s]+)\)", PAGE.read_text())
    assert {link[1:] for link in links if link.startswith("#")} <= {anchor(heading) for heading in ENTRIES}
    for link in links:
        assert link.startswith(("http", "#")) or (PAGE.parent / link).exists(), link
