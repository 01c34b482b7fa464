"""Stop a training that is asked to stop, with nothing lost.

A signal only leaves a note. Between two steps, and between two batches of a validation, the processes compare their
notes; if one has any, all of them save at the same place. Nothing is saved inside a signal handler: there, one process
would wait for others that are in the middle of a step and wait for its gradients.

    USR2                what submitit has Slurm send before the time limit: save, requeue the job, end
    USR1                what our scripts for PBS and SGE have mpirun hand on: save, end; the script requeues the job
    TERM on Slurm       what comes before a job is killed, for a more urgent one say: save, go on until that happens
    TERM elsewhere      save, end
    Ctrl-C              save, end
"""

import logging
import os
import signal
import subprocess
import sys
import time

import lightning as L
import torch

from src.datasets.batches import kill_workers
from src.launch.records import name_of
from src.utils.processes import largest, smallest

log = logging.getLogger(__name__)

SAVE, STOP, GONE = 1, 2, 3  # GONE: the run's folder was renamed
SECONDS = 0.5  # between two looks at the others' notes
PATIENCE, PAUSE = 600, 5  # seconds: how long a job is tried to be requeued, if Slurm's controller does not answer


class StopWhenAsked(L.Callback):
    def __init__(self, checkpoints):
        self.checkpoints = checkpoints  # the callback that saves
        self.watchdog = None  # of several processes: src/callbacks/watchdog.py
        self.process = os.getpid()
        self.note = 0
        self.signal = None
        self.requeue = signal.getsignal(signal.SIGUSR2)  # submitit's, if it has started this process
        self.before = {}
        self.next_look = 0  # the step
        self.looked = None  # when, and at which step (or batch of a validation)
        self.next_in_validation = {}  # loader: the batch
        self.common = {}  # loader: how many batches every process has
        self.weights = None  # their norms when the validation began
        self.listen()

    def listen(self):
        on_slurm = "SLURM_JOB_ID" in os.environ
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, *([] if on_slurm else [signal.SIGINT])):
            handler = signal.signal(number, self.leave_note)
            self.before.setdefault(number, handler)

    def leave_note(self, number, frame):
        if os.getpid() != self.process:  # a data worker that was forked and is not yet deaf
            return
        save_only = number == signal.SIGTERM and "SLURM_JOB_ID" in os.environ
        self.note = max(self.note, SAVE if save_only else STOP)
        self.signal = signal.Signals(number)

    def on_sanity_check_start(self, trainer, module):
        self.listen()  # Lightning has put a handler for TERM in the place of ours

    def on_train_start(self, trainer, module):
        self.listen()
        # In every step Lightning asks all processes whether its own handler has seen a signal. Ours is in its place.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        self.looked = time.monotonic(), trainer.global_step
        self.next_look = trainer.global_step

    def on_train_epoch_start(self, trainer, module):
        if trainer.global_step >= self.next_look:
            self.look(trainer)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        between_steps = batch_idx and batch_idx % trainer.accumulate_grad_batches == 0
        if between_steps and trainer.global_step >= self.next_look:
            self.look(trainer)

    def on_validation_start(self, trainer, module):
        self.common = self.next_in_validation = {}
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        # Some process may have a batch less. An unsized loader has any number of them.
        counts = [0 if count == float("inf") else int(count) for count in trainer.num_val_batches]
        self.common = dict(enumerate(smallest(*counts)))
        self.next_in_validation = dict.fromkeys(self.common, 0)
        self.looked = time.monotonic(), 0
        self.weights = norms(module)

    def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx, dataloader_idx=0):
        if self.next_in_validation.get(dataloader_idx, batch_idx + 1) <= batch_idx < self.common[dataloader_idx]:
            note, batches = self.compare(trainer, batch_idx)
            self.next_in_validation[dataloader_idx] = batch_idx + batches
            self.heed_in_validation(trainer, module, note)

    def on_validation_epoch_end(self, trainer, module):
        if self.common:
            self.heed_in_validation(trainer, module, self.compare(trainer, 0)[0])

    def on_validation_end(self, trainer, module):
        if self.common:
            self.looked = time.monotonic(), trainer.global_step

    def heed_in_validation(self, trainer, module, note):
        if not note:
            return
        if norms(module) == self.weights:
            self.heed(trainer, note)
            return
        # A callback validates other weights, such as averages: those of the training come back after the validation.
        self.common = self.next_in_validation = {}
        self.next_look = trainer.global_step
        self.looked = time.monotonic(), trainer.global_step
        if trainer.is_global_zero:
            log.warning("a signal: the run is saved after this validation, because a callback has replaced the weights")

    def look(self, trainer):
        """Compare notes, and do what they say. All processes call this together."""
        note, steps = self.compare(trainer, trainer.global_step)
        self.next_look = trainer.global_step + steps
        self.heed(trainer, note)

    def compare(self, trainer, count):
        """What any process was asked for, and how many steps or batches may pass until the next look.

        Args:
            count: of steps or batches until now
        """
        seconds, before = self.looked
        pace = (count - before) / max(time.monotonic() - seconds, 1e-6)  # per second
        self.looked = time.monotonic(), count
        own = GONE if self.checkpoints.same_folder.gone() else self.note
        note, steps = largest(own, int(pace * SECONDS))
        # One process has nobody to ask: it looks in every step.
        return note, max(1, steps) if trainer.world_size > 1 else 1

    def heed(self, trainer, note):
        if not note:
            return
        if note == GONE:
            self.checkpoints.same_folder.stop(trainer)
        self.note = 0
        if trainer.is_global_zero:
            name = self.signal.name if self.signal else "a signal in another process"
            log.warning(f"{name}: saving at step {trainer.global_step}")
        self.checkpoints.save(trainer)
        if note == STOP:
            self.stop(trainer)

    def stop(self, trainer):
        run = name_of(self.checkpoints.folder.parent).split("/")[0]  # of a trial the study: all of it goes on
        code = 128 + (self.signal or signal.SIGTERM)
        if self.watchdog:
            self.watchdog.end()
        if callable(self.requeue):
            if not trainer.is_global_zero:
                leave(0)  # the first process requeues the job
            try:
                requeue_patiently(self.requeue)
            except SystemExit as end:
                leave(end.code if isinstance(end.code, int) and end.code > 0 else 0)
            except Exception as error:  # submitit refuses: it was requeued too often, or has made no step
                log.error(f"the job is not requeued: {error} Resume it with: python run.py resume {run}")
                leave(1)
        if trainer.is_global_zero:
            log.warning(f"stopped at step {trainer.global_step}. Resume it with: python run.py resume {run}")
        leave(code)

    def on_train_end(self, trainer, module):
        for number, handler in self.before.items():  # from here on there is nothing to save
            signal.signal(number, handler)

    def on_exception(self, trainer, module, exception):
        self.on_train_end(trainer, module)


def requeue_patiently(requeue):
    """Requeue the job. If Slurm's controller is down, try again: everything is saved, and the job has some time left.

    Args:
        requeue: submitit's handler of USR2
    Raises:
        SystemExit: the job is requeued
    """
    deadline = time.monotonic() + PATIENCE
    said = False
    while True:
        try:
            return requeue(signal.SIGUSR2, None)
        except (OSError, subprocess.SubprocessError) as error:  # scontrol: not found, no answer, an exit code
            if time.monotonic() > deadline:
                raise
            if not said:
                log.warning(f"Slurm did not requeue the job ({error}): trying again for {PATIENCE // 60} minutes")
            said = True
            time.sleep(PAUSE)


def norms(module):
    """Of all weights: whether these have been replaced."""
    parameters = [parameter.detach() for parameter in module.parameters()]
    return [norm.item() for norm in torch._foreach_norm(parameters)] if parameters else []


def leave(code):
    """End this process at once. A normal exit shuts everything down in order, and may wait for the others forever."""
    kill_workers()  # or they complain that nobody takes what they have fetched
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
