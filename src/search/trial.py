"""Train one trial in this process, which may be one of several. It is a run like any other, in a folder of its own.

A trial is over when Optuna has been told so: it is complete, or pruned, or has failed (the loss was not finite, or the
memory of the GPU too small: that is for its values to answer for). Whatever else ends its processes does not end the
trial: it goes on from its last checkpoint when Slurm starts them again, or after `python run.py resume STUDY`.
"""

import json
import logging
import math
import os
import sys
import time

import lightning as L
import torch

from src.callbacks.checkpoints import monitored
from src.config import merge
from src.launch.records import write_json
from src.search import study
from src.train import train
from src.utils.logs import setup_logging
from src.utils.processes import largest

log = logging.getLogger("search")

PATIENCE = 600  # seconds, for a shared file system that shows late what the first process has written


def run_trial(folder, number, job):
    """Train the trial, or what is left of it, and tell Optuna. All processes of the job call this.

    Args:
        folder: of the study
        number: of the trial
        job: what the job asked for, a dictionary
    """
    setup_logging()
    run_folder = folder / str(number)
    # The first process alone talks to Optuna. The others read the values from a file, which never changes again.
    trial = study.begin(folder, number) if os.environ["RANK"] == "0" else None
    file = run_folder / "trial.json"
    if trial and not file.exists():
        write_json(file, {"number": number, "values": trial.params})
    values = read_values(file)
    in_words = ", ".join(f"{name} {value}" for name, value in values.items())
    log.info(f"trial {number}: {in_words}")
    # Sorted: the class (optimizer) has to come before what is an argument of it (optimizer.lr).
    flags = [f"--{name}={value}" for name, value in sorted(values.items())]
    try:
        config = merge([f"--config={folder / 'config.yaml'}", *flags, f"--job={json.dumps(job)}"])
    except ValueError as error:
        sys.exit(f"the values of trial {number} ({in_words}) do not go together: {error}")

    failed = False
    try:
        # Without the test images: who chooses by them has none left to say how good the choice is.
        train("fit", config, run_folder, [Report(trial, study.read(folder)["monitor"])], test=False)
    except (Exception, SystemExit) as error:
        failed = isinstance(error, torch.OutOfMemoryError) or is_not_finite(run_folder)
        if not (trial and failed):  # of the others: the job has to end, or the first waits for them
            raise
        log.error(error)
    if trial:
        ended = study.end(trial, failed)
        outcome = {"state": study.FINISHED[ended.state], "value": ended.value}
        write_json(file, {"number": number, "values": trial.params, **outcome})
        monitor = study.read(folder)["monitor"]
        if ended.value is None and not failed and not ended.intermediate_values:
            log.error(f"trial {number} ended without a validation, so there is no {monitor}: lower --validate_every")
        log.info(f"trial {number} is {outcome['state']}: {monitor} {outcome['value']}")


def read_values(file):
    """The values that the first process has noted; the others wait for them."""
    for _ in range(10 * PATIENCE):
        if file.exists():
            return json.loads(file.read_text())["values"]
        time.sleep(0.1)
    sys.exit(f"{file} is not there after {PATIENCE} s: the first process has not begun, or the file system is slow")


def is_not_finite(run_folder):
    """Whether src/callbacks/finite_loss.py has stopped the run."""
    return any(run_folder.glob("not_finite_*"))


class Report(L.Callback):
    """Report each validation to Optuna, and end the trial when Optuna says that it leads nowhere.

    What counts is the number of the validation, from 0 on, not the step: trials may differ in their batch size.
    """

    def __init__(self, trial, monitor):
        self.trial = trial  # in the first process; the others have None
        self.monitor = monitor
        self.validations = 0
        self.pruned = trial is not None and "pruned" in trial.user_attrs  # it was killed before it could say so

    def state_dict(self):
        return {"validations": self.validations}

    def load_state_dict(self, state):
        self.validations = state["validations"]

    def on_fit_start(self, trainer, module):
        self.stop_if_pruned(trainer)

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        value = trainer.callback_metrics[monitored(trainer, self.monitor)].item()
        if self.trial:
            self.report(value)
        self.validations += 1
        self.stop_if_pruned(trainer)

    def report(self, value):
        """In the first process. A validation that an attempt before this one has reported already is not again."""
        known = self.trial.study.trials[self.trial.number]
        if known.state in study.FINISHED or self.validations in known.intermediate_values:
            return
        if not math.isfinite(value):  # Optuna would prune a trial whose first value is NaN
            log.warning(f"{self.monitor} is {value} in validation {self.validations + 1}: it is not compared")
            return
        self.trial.report(value, self.validations)
        if self.trial.should_prune():
            self.trial.set_user_attr("pruned", self.validations)
            self.pruned = True
            log.info(f"pruned: {self.monitor} {value:.4f} after validation {self.validations + 1}")

    def stop_if_pruned(self, trainer):
        """All processes call this together: they stop at the same step."""
        [pruned] = largest(int(self.pruned))
        trainer.should_stop = trainer.should_stop or bool(pruned)
