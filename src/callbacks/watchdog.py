"""Notice that a run of several processes is stuck, say which process it waits for, and requeue the job.

If a process is stopped, or its node cannot be reached, the others wait in the middle of a step, where Python does not
get to look at a clock. So each process has a thread that writes a sign of life to .alive/ in the run's folder every few
seconds, with a count of what the process has done. The lowest rank that lives reads the others' signs.

    a rank gives no sign for SILENT seconds, and there is no progress    the run ends
    there are signs, but no progress for WARN seconds                    the log names the ranks that lag
    the same for --stuck_after seconds                                   the run ends

The last two times become longer by twice the longest pause until now, because a validation, a checkpoint or the
user's own code may take long. A step costs nothing: the thread reads the counters that Lightning has anyway. What was
saved stays. A job of submitit's is requeued in the same way as before its time limit.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import threading
import time
from pathlib import Path

from src.callbacks.stop_when_asked import leave, requeue_patiently
from src.launch.records import name_of

log = logging.getLogger(__name__)

# Seconds. With two periods more, a stuck run is in the log within two minutes.
PERIOD, SILENT, WARN = 5, 90, 90
# How often progress must have been seen before all processes may be waiting for each other: see judge().
FIRST_STEPS = 4


class Other:
    """The state of a different process, as this one sees it."""

    def __init__(self):
        self.sign = None  # the last
        self.seen = False  # whether it has given a sign in this attempt
        self.quiet = 0  # seconds since then


class Watchdog(threading.Thread):
    """Runs until end()."""

    def __init__(self, run_folder: Path, rank: int, processes: int, stuck_after: int) -> None:
        """
        Args:
            run_folder: of the run
            rank: of this process
            processes: how many there are
            stuck_after: seconds without progress after which the run ends; 0: it is only said
        """
        super().__init__(daemon=True, name="watchdog")
        self.run_folder = Path(run_folder)
        self.folder = self.run_folder / ".alive"
        self.rank, self.stuck_after = rank, stuck_after
        self.others = {other: Other() for other in range(processes) if other != rank}
        self.requeue = signal.getsignal(signal.SIGUSR2)  # submitit's, if it has started this process
        self.trainer = None  # as soon as there is one
        self.ended = threading.Event()
        self.signs = 0
        self.done, self.idle, self.longest = None, 0, 0  # what this process has done; seconds without more of it
        self.changes = 0  # how often there was more
        self.warned = False

    def end(self):
        """This process waits for nobody any more."""
        self.ended.set()
        with contextlib.suppress(OSError):
            self.write(True)

    def run(self):
        before = time.monotonic()
        while True:
            now = time.monotonic()
            passed, before = min(now - before, 2 * PERIOD), now  # a job that was suspended knows nothing of the others
            with contextlib.suppress(OSError):  # the file system does not answer
                self.look(passed)
            if self.ended.wait(PERIOD):
                return

    def look(self, passed):
        """Give a sign of life, and read those of the others. passed: seconds since the last time"""
        done = self.progress()
        if done != self.done:
            if self.changes >= FIRST_STEPS:  # the start is slower than all that comes later
                self.longest = max(self.longest, self.idle)
            self.done, self.idle, self.warned = done, 0, False
            self.changes += 1
        else:
            self.idle += passed
        self.write(False)
        met = done is not None and any(begun for begun, _ in done)  # then all signs are of this attempt
        for rank, other in self.others.items():
            self.hear(rank, other, passed)
            other.seen = other.seen or (met and other.sign is not None)
            if rank < self.rank and not self.is_silent(other) and not (other.sign or {}).get("ended"):
                return  # that one judges
        self.judge()

    def progress(self):
        """Numbers that change with each step of this process: how many batches it has begun and ended."""
        if self.trainer is None:
            return None
        loop = self.trainer.fit_loop
        loops = [loop.epoch_loop, loop.epoch_loop.val_loop, self.trainer.validate_loop, self.trainer.test_loop]
        counters = [loop.epoch_progress.total, *(part.batch_progress.total for part in loops)]
        return [(counter.ready, counter.completed) for counter in counters]

    def place(self):
        """Where this process is: the batch of the training, and that of the validation, or -1 outside of one."""
        if self.trainer is None:
            return [-1, -1]
        loop = self.trainer.fit_loop.epoch_loop
        validating = self.trainer.validating or self.trainer.sanity_checking
        return [loop.batch_progress.total.ready, loop.val_loop.batch_progress.current.ready if validating else -1]

    def write(self, ended):
        self.signs += 1
        self.folder.mkdir(exist_ok=True)
        sign = {"sign": self.signs, "place": self.place(), "step": self.step(), "pid": os.getpid(), "ended": ended}
        (self.folder / str(self.rank)).write_text(json.dumps(sign | {"host": socket.gethostname()}))

    def hear(self, rank, other, passed):
        """Read the sign of a process. One that an attempt before this has left does not change."""
        try:
            sign = json.loads((self.folder / str(rank)).read_text())
        except (OSError, ValueError):  # there is none, or it is being written
            sign = other.sign
        if sign == other.sign:
            other.quiet += passed
            return
        other.seen = self.signs > 1  # at the first look it may be a sign from before
        other.sign, other.quiet = sign, 0

    def is_silent(self, other):
        """Whether a process has stopped to give signs. Before its first it may be slow to start."""
        return other.quiet >= (SILENT if other.seen else max(SILENT, self.stuck_after))

    def judge(self):
        """In the lowest process that lives."""
        working = {rank: other for rank, other in self.others.items() if not (other.sign or {}).get("ended")}
        silent = [rank for rank, other in working.items() if self.is_silent(other)]
        if silent and self.idle >= SILENT / 2 and (self.stuck_after or any(working[rank].seen for rank in silent)):
            names = [f"{self.in_words(rank)}, for {working[rank].quiet:.0f} s" for rank in silent]
            self.stop(f"no sign of life from {', '.join(names)}: it is stopped, or its node cannot be reached")
            return
        pause = 2 * self.longest
        behind = self.behind(working)
        # If nobody is behind, all of them may be loading data or compiling the network.
        if self.idle < WARN + pause or not (behind or self.changes >= FIRST_STEPS):
            return
        who = f"waits for {', '.join(map(self.in_words, behind))}" if behind else "waits, each process for the others"
        reason = f"the run has made no progress for {self.idle:.0f} s: it {who}"
        if self.stuck_after and self.idle >= self.stuck_after + pause:
            self.stop(reason)
        elif not self.warned:
            self.warned = True
            log.warning(reason)

    def behind(self, working):
        """The ranks that have come less far than others."""
        places = {rank: other.sign["place"] if other.seen else [-1, -1] for rank, other in working.items()}
        places[self.rank] = self.place()
        for count in (0, 1):
            counts = {rank: place[count] for rank, place in places.items()}
            if count == 1 and -1 in counts.values():  # not all of them are in a validation
                return []
            if len(set(counts.values())) > 1:
                return sorted(rank for rank in counts if counts[rank] < max(counts.values()))
        return []

    def step(self):
        return 0 if self.trainer is None else self.trainer.global_step

    def in_words(self, rank):
        """A process: its rank, where it runs, and how far it has come."""
        if rank == self.rank:
            return f"rank {rank} (on {socket.gethostname()}, process {os.getpid()}, at step {self.step()})"
        sign = self.others[rank].sign if self.others[rank].seen else None
        if sign is None:
            return f"rank {rank} (not yet started)"
        return f"rank {rank} (on {sign['host']}, process {sign['pid']}, at step {sign['step']})"

    def stop(self, reason):
        """Requeue the job, and end this process: the launcher ends the others. The newest checkpoint stays as it is."""
        self.ended.set()
        run = name_of(self.run_folder).split("/")[0]  # of a trial the study, which is resumed as a whole
        log.error(f"{reason}. The run ends, and what it has saved stays")
        if callable(self.requeue):
            for name in ("SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID"):  # submitit lets only the first process requeue
                if name in os.environ:
                    os.environ[name] = "0"
            try:
                requeue_patiently(self.requeue)
            except SystemExit as end:
                leave(end.code if isinstance(end.code, int) and end.code > 0 else 0)
            except Exception as error:
                log.error(f"the job is not requeued: {error}")
        log.error(f"Resume it with: python run.py resume {run}")
        leave(1)
