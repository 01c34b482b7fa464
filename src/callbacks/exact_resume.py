"""A training that was stopped and goes on ends with the weights of one that was never stopped, to the last bit.

Lightning's checkpoint holds the weights, the optimizer, the learning rate schedule and the scaler. What it lacks:

- the random numbers: nothing of them is saved; each step begins with a seed made from its place (src/utils/seeds.py)
- the position among the images: the batches begin where the counters say (src/datasets/batches.py)
- the counters, when a checkpoint is written elsewhere than where Lightning expects it: corrected here
- what the metrics have counted so far in this epoch, in every process: added here
- the order in which DDP adds up the gradients of more than two processes: made the same from the first step on, here

On a GPU cuDNN may add up in another order each time, unless --trainer.deterministic true tells it not to.
"""

import logging

import lightning as L
import torch
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

from src.utils.processes import close_channel, gather, largest, open_channel
from src.utils.seeds import seed_here

log = logging.getLogger(__name__)


class ExactResume(L.Callback):
    """Checkpoints may be written between two steps, during or after a validation, and at the end of the training."""

    def __init__(self, seed):
        self.seed = seed
        self.counting = None  # the metrics that had counted something when the validation began
        self.resumed = None  # what the checkpoint said

    def on_fit_start(self, trainer, module):
        open_channel()
        for callback in trainer.early_stopping_callbacks:
            if callback.stopped_epoch or callback.wait_count >= callback.patience:
                trainer.should_stop = True  # it was over already, and Lightning would go on

    def teardown(self, trainer, module, stage):
        close_channel()

    def on_train_start(self, trainer, module):
        settle_buckets(trainer.strategy.model)
        if self.resumed is None:
            return
        step = trainer.global_step
        if largest(step, -step) != (step, -step):
            raise SystemExit(f"the processes have read different checkpoints: this one is at step {step}")
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.resumed["logged"].items()})

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.resumed is not None:
            # Lightning counts the step after which it validated once more when it goes on behind it.
            if not self.resumed["stopped_in_validation"]:
                trainer.fit_loop.epoch_loop._batches_that_stepped = self.resumed["next_logged_step"]
            self.resumed = None
        seed_here(self.seed, "step", trainer.fit_loop.epoch_progress.current.processed, batch_idx, trainer.global_rank)

    def on_validation_start(self, trainer, module):
        if not trainer.sanity_checking:
            self.counting = set(counts(module))

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        seed_here(self.seed, "validation", trainer.global_step, batch_idx, trainer.global_rank)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        """In all processes: the metrics of each are collected. Only the first writes the file."""
        stopped_in_validation = trainer.validating
        correct_counters(checkpoint["loops"]["fit_loop"], stopped_in_validation, trainer.fit_loop.done)
        metrics = counts(module)
        if stopped_in_validation:  # it is begun anew: what it has counted so far does not count
            metrics = {name: count for name, count in metrics.items() if name in self.counting}
        checkpoint["exact_resume"] = {
            "metrics": gather(metrics),
            "logged": {name: value.item() for name, value in trainer.callback_metrics.items()},
            "stopped_in_validation": stopped_in_validation,
            # The step under which the next metrics are logged. Those of a validation belong to the step before it.
            "next_logged_step": trainer.fit_loop.epoch_loop._batches_that_stepped,
        }

    def on_load_checkpoint(self, trainer, module, checkpoint):
        self.resumed = checkpoint["exact_resume"]
        metrics = self.resumed["metrics"]
        if len(metrics) != trainer.world_size:
            if any(metrics):
                log.warning(
                    f"{len(metrics)} processes wrote the checkpoint, {trainer.world_size} go on: what is reported as "
                    "training loss and accuracy of this epoch is that of its rest"
                )
            return
        modules = dict(module.named_modules())
        for name, (updates, states) in metrics[trainer.global_rank].items():
            for state, value in states.items():
                setattr(modules[name], state, to_device(value, modules[name].device))
            modules[name]._update_count = updates
            modules[name]._computed = None


def next_logged_step(checkpoint):
    """From which step on a run that goes on from this checkpoint writes its curves anew; None begins at 0."""
    if checkpoint is None:
        return 0
    # mmap: of the weights nothing is read, Lightning will do that
    checkpoint = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    return checkpoint["exact_resume"]["next_logged_step"]


def settle_buckets(model):
    """Have DDP put the gradients into its buckets as it will after the first step.

    DDP sends gradients in buckets, and after its first step it packs them anew, in the order in which they came. The
    place in a bucket decides in which order the processes' numbers are added up, so with more than two of them it
    decides about rounding. The first step after a restart would be rounded otherwise than the same step without one.
    So here comes a first step with a gradient of zero.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    model.reducer.prepare_for_backward([])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sum(parameter.sum() * 0 for parameter in parameters).backward()
    model.reducer._rebuild_buckets()
    for parameter in parameters:
        parameter.grad = None


def counts(module):
    """What each torchmetrics.Metric in the module has counted, if anything: name: (updates, {state: value})."""
    return {
        name: (metric._update_count, {state: to_device(value, "cpu") for state, value in metric.metric_state.items()})
        for name, metric in module.named_modules()
        if isinstance(metric, Metric) and metric._update_count
    }


def to_device(value, device):
    """value: a tensor, or a list of tensors, as torchmetrics keeps them"""
    return [part.to(device) for part in value] if isinstance(value, list) else value.to(device)


def correct_counters(loop, stopped_in_validation, ended):
    """Write into the state of Lightning's loop what is true at this moment.

    Lightning looks at four counters (ready, started, processed, completed) to see where a training was stopped.
    """
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    if ended and not batches["is_last_batch"]:  # in the middle of an epoch, which Lightning takes for a whole one
        for tracker in (epochs["total"], epochs["current"]):
            tracker.update(processed=tracker["ready"] - 1, completed=tracker["ready"] - 1)
    elif ended:  # with more epochs the training goes on with the next one
        batches["current"].update(ready=0, started=0, processed=0, completed=0)
    for tracker in (batches["total"], batches["current"]):  # the next batch may be fetched, nothing is done with it
        done = tracker["completed"]
        tracker.update(ready=done, started=done, processed=done)
    if stopped_in_validation:  # one batch started, none processed: then Lightning begins with the validation
        validation = loop["epoch_loop.val_loop.batch_progress"]
        validation["total"].update(ready=1, started=1, processed=0, completed=0)
        validation["current"].update(ready=0, started=0, processed=0, completed=0)
    else:
        batches["is_last_batch"] = False
