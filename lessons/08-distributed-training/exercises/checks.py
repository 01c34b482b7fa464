"""Are the exercises of this lesson right? See lessons/check.py."""

import os
import queue
import sys
import tempfile
import time

import torch
import torch.distributed as dist

SECONDS = 10  # what takes milliseconds and is not done by then waits for what never comes
CONTEXT = torch.multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
torch.set_num_threads(1)  # the processes are forks: a fork must not need the threads of its parent


class Hangs(Exception):
    pass


def work(rank, folder, answers, function, calls):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    answers.put((rank, "ready"))
    try:
        answers.put((rank, [function(*arguments) for arguments in calls]))
    except BaseException as error:  # as words: not every error can be sent
        answers.put((rank, RuntimeError(f"{type(error).__name__} in rank {rank}: {error}")))
    time.sleep(3600)  # until it is ended: a process that leaves would end the others' waiting


def together(function, *calls):
    """Call the function with each of these arguments in two processes that are joined. Returns the results of both.

    Raises Hangs if they do not come to an end, and what the function raises.
    """
    with tempfile.TemporaryDirectory() as folder:
        answers = CONTEXT.Queue()
        processes = [CONTEXT.Process(target=work, args=(rank, folder, answers, function, calls)) for rank in (0, 1)]
        for process in processes:
            process.start()
        results = {}
        try:
            for _ in processes:
                answers.get(timeout=50)  # is ready; now the seconds count
            while len(results) < 2:
                rank, result = answers.get(timeout=SECONDS)
                if isinstance(result, Exception):
                    raise result
                results[rank] = result
        except queue.Empty:
            raise Hangs from None
        finally:
            for process in processes:
                process.kill()
                process.join()
    return [results[0], results[1]]


def hang(exercise):
    try:
        (first,), _ = together(exercise.train_epochs, (3,))
    except Hangs:
        return "rank 0 waits in all_reduce(), rank 1 somewhere else. Who calls what?"
    expected = [1 / (1 + epoch) + 0.5 for epoch in range(3)]
    if len(first) != 3 or any(abs(a - b) > 1e-4 for a, b in zip(first, expected, strict=True)):
        return f"the means over both processes are {expected}, rank 0 reports {first}"


def uneven(exercise):
    lengths = (8, 9, 13)
    try:
        ranks = together(exercise.train, *((length, 2) for length in lengths), (9, 4))
    except Hangs:
        return "9 images, batches of 4: how many steps does rank 0 make, how many rank 1?"
    for length, (weight, seen), (other, also_seen) in zip((*lengths, 9), *ranks, strict=True):
        if weight != other:
            return f"after an epoch of {length} images the two processes have different weights"
        both = seen + also_seen
        if len(set(both)) < length - 1 or any(both.count(index) > 2 for index in both):
            return f"of {length} images {len(set(both))} are seen, the most frequent {max(map(both.count, both))} times"
        if len(seen) > length // 2 + 1:
            return f"{length} images, and one process sees {len(seen)} of them: they are to share the work"


def counted_twice(exercise):
    labels = torch.arange(9)
    first_wrong, last_wrong = labels.clone(), labels.clone()
    first_wrong[0], last_wrong[8] = 5, 5
    calls = [(first_wrong, labels), (last_wrong, labels), (labels[:8], labels[:8])]
    try:
        ranks = together(exercise.accuracy, *calls)
    except Hangs:
        return "now the processes wait for each other. Do all of them call all_reduce() as often?"
    if ranks[0] != ranks[1]:
        return f"the processes do not agree: {ranks[0]} and {ranks[1]}"
    for found, true in zip(ranks[0], (8 / 9, 8 / 9, 1), strict=True):
        if abs(found - true) > 1e-4:
            return f"{found:.4f} instead of {true:.4f}. Print how many images each process looks at: what is their sum?"


def global_batch(exercise):
    for nodes, gpus, images in ((1, 4, 16), (2, 4, 8), (4, 1, 16), (1, 1, 64)):
        found = exercise.images_per_process(64, nodes, gpus)
        if found != images:
            all_of_them = found * nodes * gpus
            return f"{nodes} nodes with {gpus} GPUs each: all processes together take {all_of_them:g} images, not 64"
    try:
        found = exercise.images_per_process(64, 3, 4)
    except ValueError:
        return None
    return (
        f"12 processes would take {found} images each, {found * 12:g} together. What does the docstring say about that?"
    )
