"""One process of the examination, and in the first the table of what all have found."""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path

from src.doctor import node
from src.doctor.findings import ERROR, WARNING, Finding, print_table, within
from src.launch.job import ROOT
from src.launch.ranks import OURS, export_ranks


def alone(request, before, single):
    """What this process finds without the others, check by check.

    Args:
        request: what was asked for
        before: the environment as it was when this process started
        single: nobody has started it as one of several
    """
    job, settings = request.job, request.settings
    local_rank, local_size, size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    yield "host name", node.check_host, [size // local_size]
    yield "interface", node.check_interface, []
    yield "variables", node.check_variables, [before, single]
    yield "CPUs", node.check_cpus, []
    yield "memory", node.check_memory, [local_size]
    yield "shared memory", node.check_shared_memory, [
        local_size, settings.num_workers, max(1, settings.batch_size // size)]  # fmt: skip
    yield "limits", node.check_limits, [settings.num_workers]
    yield "GPU", node.check_gpu, [local_rank, local_size, job.gpus_per_node]
    yield "Python", node.check_python, []
    yield "requeue", node.check_requeue, []
    if local_rank == 0:  # once on each node
        data = Path(settings.data_dir or ROOT / "data").resolve()
        scratch = os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()
        yield "data", node.check_data, [data]
        yield "log path", node.check_folder, ["log path", Path(job.log_path)]
        yield "TMPDIR", node.check_folder, ["TMPDIR", Path(scratch)]
        yield "weights", node.check_weights, [request.arguments]


def examine(request, patience, expected):
    """Examine, together with the other processes; in the first print the table. Ends the process.

    Args:
        request: what was asked for
        patience: seconds to wait for a process that does not come
        expected: what compare() compares with
    """
    before = dict(os.environ)
    tasks, of_torchrun = before.get("SLURM_STEP_NUM_TASKS"), any(name.startswith("TORCHELASTIC_") for name in before)
    if tasks not in (None, "1", before.get("WORLD_SIZE")) and not of_torchrun:
        for name in OURS:  # of the shell around; check_variables() says so. Here srun's count.
            os.environ.pop(name, None)
    export_ranks()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    with contextlib.suppress(OSError):  # the check of this folder says it better
        Path(request.job.log_path).mkdir(parents=True, exist_ok=True)
    findings = []
    for name, check, arguments in alone(request, before, size == 1):
        try:
            findings.append(within(2 * node.LIMIT, check, *arguments))
        except Exception as error:  # a check that fails is no reason to miss the others
            findings.append(Finding(name, WARNING, f"could not be checked: {type(error).__name__}: {error}"))

    from src.doctor import together

    gpu = any(finding.check == "GPU" and finding.level == "ok" and "CUDA" in finding.text for finding in findings)
    own = together.facts(gpu)
    if size == 1:
        findings += together.compare({0: own}, {0: time.time()}, expected)
        together.leave(print_table({0: findings}, size))
    store, finding = together.meet(rank, size, patience)
    findings.append(finding)
    if store is None:
        print(f"rank {rank} of {size} on {own['host']} is alone:")
        together.leave(print_table({rank: findings}, size))

    store.set(f"here/{rank}", json.dumps(own))
    if rank == 0:
        everyone, deadline = {}, time.monotonic() + patience
        for other in range(size):
            if told := together.take(store, f"here/{other}", deadline - time.monotonic()):
                everyone[other] = told
        missing = [other for other in range(size) if other not in everyone]
        store.set("missing", json.dumps(missing))
        mark = None
        with contextlib.suppress(OSError):  # the check of this folder has said so
            mark = tempfile.NamedTemporaryFile(prefix=".doctor-", dir=request.job.log_path)  # noqa: SIM115
        store.set("file", json.dumps(mark and mark.name))
    missing = together.take(store, "missing", 2 * patience)
    clock = time.time()
    if missing:
        words = ", ".join(map(together.host_of, missing))
        text = f"rank {words} has not come in {patience} s: look at its log and at its node"
        if rank == 0:
            findings.append(Finding("meeting", ERROR, text, "The client socket has timed out after"))
    elif missing is not None:
        findings.append(together.all_reduce("gloo", store, rank, size))
        if all_have_gpus(store, size):
            findings.append(together.all_reduce("nccl", store, rank, size))
    findings += filter(None, [together.see_each_other(store, rank, request.job.log_path)])
    store.set(f"found/{rank}", json.dumps({"clock": clock, "findings": [vars(finding) for finding in findings]}))
    if rank != 0:
        together.take(store, "done", 2 * patience + 4 * together.LIMIT)
        together.leave(0)

    found, clocks = {}, {}
    deadline = time.monotonic() + 3 * together.LIMIT
    for other in everyone:
        if told := together.take(store, f"found/{other}", deadline - time.monotonic()):
            found[other] = [Finding(**one) for one in told["findings"]]
            clocks[other] = told["clock"]
        else:
            text = f"rank {together.host_of(other)} has not reported: look at its log and at its node"
            findings.append(Finding("meeting", ERROR, text, "The client socket has timed out after"))
    found[0] = findings + list(together.compare(everyone, clocks, {} if missing else expected))
    code = print_table(found, size)
    store.set("done", "true")
    time.sleep(0.5)  # until the others have read that: this process holds the store
    if mark:
        mark.close()
    together.leave(code)


def all_have_gpus(store, size):
    """Whether NCCL can be tried: with all processes or with none."""
    from src.doctor.together import take

    others = [take(store, f"here/{other}", 5) for other in range(size)]
    return all(other and other["gpu"] for other in others)
