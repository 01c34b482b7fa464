"""What the processes of a training tell each other besides gradients: small things, on a channel of their own.

The channel is gloo, on the CPUs: on a GPU a question and its answer would stop the work that is queued there.
"""

import itertools
import json
import os
import socket
import sys
import time

import torch
import torch.distributed as dist

_channel = None
_store = None
_asked = itertools.count()
PATIENCE = 60  # seconds in which the other processes have to read why the first ends


def meet_on_this_machine() -> "dist.TCPStore | None":
    """If all processes are on this machine, let nobody from outside connect to them.

    By itself, torch has the first process listen on all interfaces, and whoever connects may send it code. A server
    that listens on 127.0.0.1 only, made here, is what init_process_group() then finds (multi_tenant). torchrun brings
    a server of its own.

    Returns:
        in the first process, what keeps the server alive
    """
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    of_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if size == 1 or os.environ["LOCAL_WORLD_SIZE"] != str(size):
        return None
    if not of_torchrun:
        os.environ["MASTER_ADDR"] = "127.0.0.1"  # on PBS it is the name of this machine
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), None)
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    if rank != 0 or of_torchrun:
        return None
    try:
        listener = listen_here(port)
    except OSError as error:
        sys.exit(
            f"the processes cannot meet at port {port} of this machine ({os.strerror(error.errno)}): "
            "give the same command again, or set MASTER_PORT to another"
        )
    return dist.TCPStore(
        "127.0.0.1", port, size, True, multi_tenant=True, wait_for_workers=False, master_listen_fd=listener
    )


def listen_here(port: int) -> int:
    """A socket that only processes of this machine can connect to."""
    return socket.create_server(("127.0.0.1", port)).detach()


def open_channel():
    """All processes call this together, before the functions below. With one process there is nothing to open."""
    global _channel
    if dist.is_initialized() and _channel is None:
        _channel = dist.new_group(backend="gloo")


def close_channel():
    global _channel
    _channel = None


def largest(*numbers):
    """For each of these numbers the largest that any process gave. All processes call this together."""
    if _channel is None:
        return numbers
    tensor = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_channel)
    return tuple(tensor.tolist())


def smallest(*numbers):
    """The same for the smallest."""
    return tuple(-number for number in largest(*(-number for number in numbers)))


def gather(thing):
    """What each process gave, a list in the order of the ranks. All processes call this together."""
    if _channel is None:
        return [thing]
    things = [None] * dist.get_world_size()
    dist.all_gather_object(things, thing, group=_channel)
    return things


def from_first(choose):
    """Return the result of choose() in all processes; only the first calls it. It is None, a text or a number.

    All processes call this together, also before they have a channel. If choose() ends the program with a sentence, all
    of them end.
    """
    global _store
    processes, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if processes == 1:
        return choose()
    # The processes meet there again later. The store stays: the first process would end the server that others use.
    _store = store = _store or next(dist.rendezvous("env://"))[0]
    key = f"first/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{next(_asked)}"
    if rank == 0:
        try:
            answer = {"chosen": choose()}
        except SystemExit as end:
            answer = {"ends": str(end)}
        store.set(key, json.dumps(answer))
    answer = json.loads(store.get(key))
    store.add(f"{key}/read", 1)
    if rank == 0:  # it serves the store: if it ended at once, the others would ask in vain
        deadline = time.monotonic() + PATIENCE
        while store.add(f"{key}/read", 0) < processes and time.monotonic() < deadline:
            time.sleep(0.01)
    if "ends" in answer:
        raise SystemExit(answer["ends"] if rank == 0 else 1)
    return answer["chosen"]
