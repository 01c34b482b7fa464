"""What the processes find out together: do they meet, is their sum right, are they alike?"""

import contextlib
import errno
import json
import os
import platform
import re
import socket
import sys
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from src.doctor.code import digest
from src.doctor.findings import ERROR, OK, WARNING, Finding, within
from src.launch.ranks import cpu_numbers
from src.launch.slurm import ask
from src.utils.processes import listen_here

MEGABYTES = {"gloo": 16, "nccl": 256}  # that are added up
LIMIT = 40  # seconds for one of these


def facts(gpu):
    """What the first process compares. gpu: whether this process has one."""
    return {
        "host": socket.gethostname(),
        "python": f"Python {platform.python_version()}, torch {torch.__version__}",
        "code": digest(),
        "cpus": cpu_numbers(),
        "gpu": str(torch.cuda.get_device_properties(int(os.environ["LOCAL_RANK"])).uuid) if gpu else None,
    }


def host_of(rank):
    """Where a process of which nothing is heard should be, in words."""
    hosts = ask("scontrol", "show", "hostnames", os.environ.get("SLURM_STEP_NODELIST", ""))
    node = rank // int(os.environ["LOCAL_WORLD_SIZE"])
    return f"{rank} ({hosts[node]})" if node < len(hosts) else str(rank)


def meet(rank, size, patience):
    """Where the processes leave word for each other, in the memory of the first; and what was found of it.

    Args:
        patience: seconds to wait for the first process
    Returns:
        a store or None, and a Finding
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    limit = timedelta(seconds=LIMIT)
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if serves:
        try:
            listener = listen_here(port) if address == "127.0.0.1" else None
            store = dist.TCPStore(address, port, size, True, limit, wait_for_workers=False, master_listen_fd=listener)
        except (RuntimeError, ValueError, OSError) as error:
            text = f"port {port} is taken on {socket.gethostname()}: set MASTER_PORT to another, of all processes"
            if "EADDRINUSE" not in str(error) and getattr(error, "errno", None) != errno.EADDRINUSE:
                text = f"{address}:{port}: {str(error).splitlines()[0]}: is MASTER_ADDR this node?"
            return None, Finding("meeting", ERROR, text, "EADDRINUSE")
        return store, Finding("meeting", OK, f"at {address}, port {port}")
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((address, port), timeout=max(1, deadline - time.monotonic())).close()
            break
        except OSError as error:  # the first process may still be importing torch
            if time.monotonic() > deadline:
                text = f"rank {rank} on {socket.gethostname()} cannot connect to {address}, port {port} ({error}): "
                text += "is rank 0 there, is MASTER_ADDR its node, is there a firewall?"
                return None, Finding("meeting", ERROR, text, "The client socket has timed out after")
        time.sleep(0.2)
    try:
        # In a thread: of a server that is no store, the client waits for the first word without a limit.
        store = within(LIMIT, dist.TCPStore, address, port, size, False, limit)
    except (RuntimeError, TimeoutError) as error:
        text = f"something else than rank 0 answers at {address}, port {port} ({error}): set MASTER_PORT to another"
        return None, Finding("meeting", ERROR, text, "EADDRINUSE")
    return store, Finding("meeting", OK, f"at {address}, port {port}")


def take(store, key, seconds):
    """What somebody has left, or None if it has not come in so many seconds."""
    try:
        store.wait([key], timedelta(seconds=max(0.1, seconds)))
        return json.loads(store.get(key))
    except RuntimeError:  # the limit, or the first process has ended
        return None


def all_reduce(backend, store, rank, size):
    """Have all processes add up numbers: is the sum right, how fast is it?"""
    check = f"all-reduce {backend}"
    device = torch.device("cpu" if backend == "gloo" else f"cuda:{os.environ['LOCAL_RANK']}")

    def add_up():
        limit = timedelta(seconds=LIMIT)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread
        dist.init_process_group(backend, store=dist.PrefixStore(backend, store), rank=rank, world_size=size,
                                timeout=limit, device_id=device if device.type == "cuda" else None)  # fmt: skip
        numbers = torch.full((MEGABYTES[backend] * 2**18,), rank + 1.0, device=device)
        for _ in range(2):  # the first time connections are made
            total = numbers.clone()
            dist.barrier()
            start = time.monotonic()
            dist.all_reduce(total)
            right = bool((total == size * (size + 1) / 2).all())  # waits for a GPU, too
            taken = time.monotonic() - start
        dist.destroy_process_group()
        return right, taken

    try:
        right, taken = within(2 * LIMIT, add_up)
    except Exception as error:  # each backend has errors of its own
        entry = "connectFullMesh failed" if backend == "gloo" else "NCCL WARN"
        if "Unable to find address" in str(error):
            entry = "Unable to find address for"
        text = re.sub(r"\[\S+:\d+\] ", "", str(error).strip().splitlines()[0])[:200]  # without torch's own file
        variable = f"{backend.upper()}_SOCKET_IFNAME"  # such as eth0, ib0
        do = f"name the interface between the nodes with {variable}"
        if backend == "nccl":
            do += ", NCCL_DEBUG=INFO says more"
        return Finding(check, ERROR, f"{text}: {do}", entry)
    if not right:
        return Finding(check, ERROR, "the sum is wrong: tell the administrators, and which nodes", "NCCL WARN")
    gigabytes = MEGABYTES[backend] * 2**20 / 1e9
    return Finding(check, OK, f"{MEGABYTES[backend]} MiB in {taken:.3f} s, {gigabytes / taken:.2f} GB/s", cost=taken)


def groups(everyone, key):
    """Value -> the ranks that have it."""
    found = defaultdict(list)
    for rank, one in sorted(everyone.items()):
        found[key(one)].append(rank)
    return found


def compare(everyone, clocks, expected):
    """What only shows when processes are put side by side.

    Args:
        everyone: rank -> facts()
        clocks: rank -> its time when the first process gave the word
        expected: what was asked for, as far as it is known: nodes, tasks_per_node, code
    """
    hosts = groups(everyone, lambda one: one["host"])
    counts = sorted({len(ranks) for ranks in hosts.values()})
    text = f"{len(everyone)} on {len(hosts)} nodes: {', '.join(hosts)}"
    nodes, tasks = expected.get("nodes"), expected.get("tasks_per_node")
    if (nodes and nodes != len(hosts)) or (tasks and counts != [tasks]):
        asked = f"--nodes {nodes or 'any'} --tasks_per_node {tasks or 'any'}"
        text += (
            f", each {' or '.join(map(str, counts))}, and asked for was {asked}: use --ntasks-per-node, not --ntasks"
        )
        yield Finding("processes", ERROR, text, "in your SLURM bash script, but this variable is not supported")
    else:
        yield Finding("processes", OK, text)

    for name, do in (("python", "load the same modules, use the same environment"), ("code", "is it a shared folder?")):
        kinds = groups(everyone, lambda one: one[name])  # noqa: B023 (it is used at once)
        if name == "code" and "code" in expected:
            kinds[expected["code"]].append("run.py")
        if len(kinds) > 1:
            seen = "; ".join(f"{kind} in {', '.join(map(str, ranks))}" for kind, ranks in kinds.items())
            yield Finding(name, ERROR, f"not the same everywhere: {seen}: {do}", "not the same everywhere")
        else:
            yield Finding(name, OK, f"{next(iter(kinds))}{' everywhere' * (len(everyone) > 1)}")

    gpus = groups(everyone, lambda one: one["gpu"])
    gpus.pop(None, None)
    if shared := next((ranks for ranks in gpus.values() if len(ranks) > 1), None):
        text = f"ranks {', '.join(map(str, shared))} have the same GPU: one process a GPU, and no --gpus-per-task"
        yield Finding("GPU sharing", ERROR, text, "Duplicate GPU detected")

    bound = {rank: one for rank, one in everyone.items() if len(hosts[one["host"]]) > 1}
    pairs = [
        (first, second)
        for first in bound
        for second in bound
        if first < second and bound[first]["host"] == bound[second]["host"]
        and set(bound[first]["cpus"]) & set(bound[second]["cpus"])
    ]  # fmt: skip
    crowded = next((rank for pair in pairs for rank in pair if len(bound[rank]["cpus"]) < 2), None)
    if crowded is not None:
        text = f"rank {crowded} shares its only CPU with another process: srun --cpu-bind=cores, mpirun --bind-to none"
        yield Finding("CPU sharing", WARNING, text, "CPU sharing: rank")

    apart = max(clocks.values()) - min(clocks.values())
    if apart > 2:
        late = max(clocks, key=lambda rank: abs(clocks[rank] - clocks[0]))
        text = f"not the same: {everyone[late]['host']} is {apart:.0f} s from the others: tell the administrators"
        yield Finding("clocks", WARNING, text, "clocks: not the same")
    else:
        yield Finding("clocks", OK, f"within {max(apart, 0.1):.1f} s")


def see_each_other(store, rank, folder):
    """A file that the first process writes is seen by all: the folder of the runs is shared."""
    name = take(store, "file", LIMIT)
    if rank == 0 or name is None:
        return None
    deadline = time.monotonic() + 10  # NFS remembers for some seconds that there was nothing
    while not Path(name).exists() and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            os.listdir(folder)  # asks the server again
        time.sleep(0.5)
    if Path(name).exists():
        return Finding("shared folder", OK, f"{folder} is the same for all")
    text = f"not seen by {socket.gethostname()}: what rank 0 writes to {folder}: --log_path has to be a shared folder"
    return Finding("shared folder", ERROR, text, "shared folder: not seen by")


def leave(code):
    """End at once: threads that hang in a network or a file system would be waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
