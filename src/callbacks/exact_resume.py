"""A training that was stopped and goes on ends with the weights of one that was never stopped, to the last bit.

Lightning's checkpoint holds the weights, the optimizer, the learning rate schedule and the scaler. What it lacks:

- the random numbers: nothing of them is saved; each step begins with a seed made from its place (src/utils/seeds.py)
- the position among the images: the batches begin where the counters say (src/datasets/batches.py)
- the counters, when a checkpoint is written elsewhere than where Lightning expects it: corrected here
- what the metrics and the epoch averages of self.log() have counted so far in this epoch, in every process: added here
- which weights are frozen: added here
- attributes in which a module or a callback counts or collects something (src/utils/attributes.py): added here
- the effects of the hooks at the start of an epoch: this callback calls the hooks again, and undoes double effects
- the order in which DDP adds up the gradients of more than two processes: made the same from the first step on, here

On a GPU cuDNN may add up in another order each time, unless --trainer.deterministic true tells it not to.
"""

import contextlib
import copy
import logging

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from src.datasets.batches import Batches
from src.datasets.stream import StreamPlace
from src.utils.attributes import changed, fingerprints, holders, restore
from src.utils.plain import plain
from src.utils.processes import gather, largest, smallest
from src.utils.seeds import seed_here

log = logging.getLogger(__name__)

# A checkpoint must hold these about the position in the training. Older versions wrote fewer.
KEYS = {"metrics", "averages", "attributes", "in_epoch", "frozen", "gradients", "logged", "stopped_in_validation"}
KEYS |= {"next_logged_step"}


class ExactResume(L.Callback):
    """Checkpoints may be written between two steps, during or after a validation, and at the end of the training."""

    def __init__(self, seed):
        self.seed = seed
        self.ours = []  # the callbacks that every run has
        self.callbacks = None  # the user's
        self.accumulate = 1
        self.counting = None  # the metrics that had counted something when the validation began
        self.resumed = None  # what the checkpoint said
        self.first = {}  # of each holder of attributes, their fingerprints before the training
        self.attributes = None  # as they were before the validation

    def setup(self, trainer, module, stage):
        if self.callbacks is not None:  # of a command before this one
            return
        self.accumulate = trainer.accumulate_grad_batches  # before a GradientAccumulationScheduler changes it
        self.callbacks = [callback for callback in trainer.callbacks if callback not in [*self.ours, self]]
        if reason := refused(self.callbacks):  # they may come from configure_callbacks()
            raise SystemExit(reason)
        if any(isinstance(callback, WeightAveraging) for callback in self.callbacks):
            keep_all(module)

    def on_fit_start(self, trainer, module):
        seed_here(self.seed, "fit start")
        for callback in trainer.early_stopping_callbacks:
            if callback.stopped_epoch or callback.wait_count >= callback.patience:
                trainer.should_stop = True  # it was over already, and Lightning would go on

    def on_train_start(self, trainer, module):
        seed_here(self.seed, "train start")
        settle_buckets(trainer.strategy.model)
        loop = trainer.fit_loop

        def on_advance_start():  # comes after on_train_start() of the module
            del loop.on_advance_start  # Lightning's own again
            self.first = {name: fingerprints(holder) for name, holder in holders(module, self.callbacks).items()}
            self.begin_epoch(trainer, module)

        loop.on_advance_start = on_advance_start
        if self.resumed is None:
            return
        if self.resumed["in_epoch"] and (
            reason := other_plan(self.resumed.get("plan"), plan(trainer, self.accumulate))
        ):
            raise SystemExit(reason)
        step = trainer.global_step
        if largest(step) != smallest(step):
            raise SystemExit(f"the processes have read different checkpoints: this one is at step {step}")
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self.resumed["logged"].items()})

    def begin_epoch(self, trainer, module):
        """Begin the first epoch of this attempt.

        If the training was stopped in the middle of it, Lightning omits the hooks of its start. They are called here,
        because they may set something that is not in a checkpoint. What is in it stays as it is.
        """
        if self.resumed is not None:
            freeze(module, self.resumed["frozen"])
            self.restore_attributes(trainer, module)
        trainer.fit_loop.on_advance_start()
        if self.resumed is None or not self.resumed["in_epoch"]:
            return
        loggers, trainer.loggers = trainer.loggers, [DummyLogger()]  # what they log is in the curves already
        module._current_fx_name = "on_train_epoch_start"
        with unchanged(trainer, module):
            for callback in [self, *self.callbacks]:
                callback.on_train_epoch_start(trainer, module)
            module.on_train_epoch_start()
        module._current_fx_name = None
        trainer.loggers = loggers
        if len(self.resumed["metrics"]) == trainer.world_size:
            restore_metrics(module, self.resumed["metrics"], trainer.global_rank)
        restore_averages(trainer, module, self.resumed["averages"])
        freeze(module, self.resumed["frozen"])
        self.restore_attributes(trainer, module)

    def restore_attributes(self, trainer, module):
        of_processes = self.resumed["attributes"]
        mine = of_processes[trainer.global_rank if len(of_processes) == trainer.world_size else 0]
        restore(mine, module, self.callbacks)

    def changed_attributes(self, module):
        """Of each holder what has changed since the training began: {name: {attribute: ...}}."""
        found = holders(module, self.callbacks)
        return {name: changed(holder, self.first.get(name, {})) for name, holder in found.items()}

    def on_train_epoch_start(self, trainer, module):
        seed_here(self.seed, "epoch start", trainer.fit_loop.epoch_progress.current.processed)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if self.resumed is not None:
            # Lightning counts the step after which it validated once more when it goes on behind it.
            if not self.resumed["stopped_in_validation"]:
                trainer.fit_loop.epoch_loop._batches_that_stepped = self.resumed["next_logged_step"]
            if batch_idx:
                trainer._logger_connector._first_loop_iter = False  # else Lightning resets the averages of self.log()
            for name, parameter in module.named_parameters():
                if name in self.resumed["gradients"]:
                    parameter.grad = self.resumed["gradients"][name].to(parameter.device)
            self.resumed = None
        seed_here(self.seed, "step", trainer.fit_loop.epoch_progress.current.processed, batch_idx, trainer.global_rank)

    def on_train_epoch_end(self, trainer, module):
        # Lightning does not update ReduceLROnPlateau after an epoch that was resumed: it may lack the metrics.
        trainer.fit_loop._restarting = False

    def on_validation_start(self, trainer, module):
        if not trainer.sanity_checking:
            self.counting = set(counts(module))
        if trainer.state.fn != "fit":
            self.on_test_start(trainer, module)
        elif not trainer.sanity_checking:
            self.attributes = copy.deepcopy(self.changed_attributes(module))

    def on_validation_end(self, trainer, module):
        self.attributes = None

    def on_test_start(self, trainer, module):
        if self.resumed is not None:  # a command of its own
            restore(attributes_of(self.resumed), module)

    on_predict_start = on_test_start

    def on_validation_batch_start(self, trainer, module, batch, batch_idx, dataloader_idx=0):
        place = batch_idx, trainer.global_rank, *([dataloader_idx] if dataloader_idx else [])
        seed_here(self.seed, "validation", trainer.global_step, *place)

    def on_save_checkpoint(self, trainer, module, checkpoint):
        """In all processes: the metrics of each are collected. Only the first writes the file."""
        stopped_in_validation = trainer.validating
        loop, progress = checkpoint["loops"]["fit_loop"], trainer.fit_loop.epoch_progress.total
        ended = trainer.fit_loop.done
        between = progress.ready > progress.started or (ended and loop["epoch_loop.batch_progress"]["is_last_batch"])
        correct_counters(loop, stopped_in_validation, ended, between)
        metrics = counts(module)
        if stopped_in_validation:  # it is begun anew: what it has counted so far does not count
            metrics = {name: count for name, count in metrics.items() if name in self.counting}
        checkpoint["exact_resume"] = {
            "metrics": gather(metrics),
            "averages": gather({} if between else averages(trainer)),
            # A validation begins again, so what it has collected so far does not count either.
            "attributes": gather(self.changed_attributes(module) if self.attributes is None else self.attributes),
            "in_epoch": not between,
            "plan": plan(trainer, self.accumulate),
            "frozen": [name for name, parameter in module.named_parameters() if not parameter.requires_grad],
            # With manual optimization gradients may be added up over several batches.
            "gradients": {} if module.automatic_optimization else gradients(module),
            "logged": {name: value.item() for name, value in trainer.callback_metrics.items()},
            "stopped_in_validation": stopped_in_validation,
            # The step under which the next metrics are logged. Those of a validation belong to the step before it.
            "next_logged_step": trainer.fit_loop.epoch_loop._batches_that_stepped,
        }

    def on_load_checkpoint(self, trainer, module, checkpoint):
        self.resumed = checkpoint.get("exact_resume")  # Lightning's own checkpoints have none
        if trainer.state.fn != "fit":
            return
        freeze(module, self.resumed["frozen"])
        metrics = self.resumed["metrics"]
        if len(metrics) != trainer.world_size:
            if self.resumed["in_epoch"] and (any(metrics) or any(self.resumed["averages"])):
                log.warning(
                    f"{len(metrics)} processes wrote the checkpoint, {trainer.world_size} go on: what is reported as "
                    "training loss and accuracy of this epoch is that of its rest"
                )
            return
        restore_metrics(module, metrics, trainer.global_rank)


def attributes_of(resumed):
    """What was in the attributes, as restore() takes it: in the first process, if there were several."""
    return resumed.get("attributes", [{}])[0]  # older checkpoints have none


def refused(callbacks):
    """A sentence if one of the callbacks cannot be resumed exactly, else None."""
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        return (
            "StochasticWeightAveraging cannot be resumed exactly: use EMAWeightAveraging, or WeightAveraging with "
            "torch.optim.swa_utils.get_swa_multi_avg_fn"
        )
    return None


def position(path):
    """Read the position in the training from a checkpoint, without its weights.

    Raises:
        SystemExit: it was written by an older version of this program, or by another one
    """
    # mmap: the weights are not read
    found = torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("exact_resume") or {}
    if missing := KEYS - set(found):
        raise SystemExit(
            f"{path} cannot be resumed, because this version of the program did not write it: exact_resume lacks "
            f"{', '.join(sorted(missing))}. Start a new run with --init_from {path}"
        )
    return found


def next_logged_step(checkpoint):
    """From which step on a run that goes on from this checkpoint writes its curves anew; None begins at 0."""
    return 0 if checkpoint is None else position(checkpoint)["next_logged_step"]


def plan(trainer, accumulate):
    """The plan of an epoch decides which samples are in which batch: the same plan gives the same batches."""
    loaders = getattr(trainer.train_dataloader, "iterables", trainer.train_dataloader)
    parts = [part_of_plan(loader) for loader in tree_leaves(loaders)]
    return plain({"accumulate": accumulate, "loaders": parts})


def part_of_plan(loader):
    """The plan of one loader; of one that is used as it is nothing is known."""
    sampler, place = getattr(loader, "sampler", None), getattr(loader, "next_place", None)
    if isinstance(sampler, Batches):
        return {
            "samples": sampler.length,
            "batch_size": sampler.batch_size,
            "seed": sampler.seed,
            "shuffle": sampler.shuffle,
        }
    if isinstance(place, StreamPlace):
        return {"batch_size": place.batch_size * place.world_size, "seed": place.seed}
    return {}


def other_plan(before, now):
    """One sentence if a training cannot be resumed in the middle of an epoch with this plan; else None."""
    if before is None:  # of an older checkpoint
        return None
    pairs = [("accumulate", before["accumulate"], now["accumulate"])]
    for old, new in zip(before["loaders"], now["loaders"], strict=False):
        pairs += [(name, old[name], new[name]) for name in old if name in new]
    changed = [f"{name} was {old} and is now {new}" for name, old, new in pairs if old != new]
    if len(before["loaders"]) != len(now["loaders"]):
        changed.append(f"there were {len(before['loaders'])} training loaders and are now {len(now['loaders'])}")
    if not changed:
        return None
    return (
        f"the checkpoint is in the middle of an epoch, and its samples would be skipped or repeated: "
        f"{', '.join(dict.fromkeys(changed))}. Finish the epoch with the values before, and change them from a "
        "checkpoint at the end of an epoch on"
    )


def keep_all(module):
    """Have the checkpoints hold what the module's on_save_checkpoint() omits: some callbacks need all weights."""
    save, load = module.on_save_checkpoint, module.on_load_checkpoint

    def on_save_checkpoint(checkpoint):
        before = checkpoint["state_dict"].copy()
        save(checkpoint)
        checkpoint["left_out"] = {name: before[name] for name in before if name not in checkpoint["state_dict"]}

    def on_load_checkpoint(checkpoint):
        checkpoint["state_dict"].update(checkpoint.get("left_out", {}))
        load(checkpoint)

    module.on_save_checkpoint, module.on_load_checkpoint = on_save_checkpoint, on_load_checkpoint


def freeze(module, names):
    """Freeze the parameters of these names, and no others."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad == (name in names):
            parameter.requires_grad_(name not in names)


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def averages(trainer):
    """What self.log(..., on_epoch=True) has added up so far in this epoch: {key: what restore_averages() needs}.

    For a torchmetrics object, this records only that it was logged. counts() saves its state.
    """
    found = {}
    for key, metric in trainer.fit_loop.epoch_loop._results.items():
        if not metric.meta.on_epoch or metric.has_reset:
            continue
        meta = {name: value for name, value in vars(metric.meta).items() if name not in ("_sync", "reduce_fx")}
        found[key] = {
            "meta": meta | {"reduce_fx": metric.meta.reduce_fx.__name__},
            "sync_dist": metric.meta.sync.should,
            "rank_zero_only": metric.meta.sync.rank_zero_only,
            "updates": metric._update_count,
            "states": {name: to_device(value, "cpu") for name, value in metric.metric_state.items()},
            "is_tensor": metric.is_tensor,
        }
    return found


def restore_averages(trainer, module, of_processes):
    """Restore the running sums of self.log() at the position where the training stopped."""
    if len(of_processes) != trainer.world_size:
        return
    results = trainer.fit_loop.epoch_loop._results
    for key, saved in of_processes[trainer.global_rank].items():
        meta = _Metadata(**saved["meta"])
        fn = trainer.strategy.reduce
        meta.sync = _Sync(_should=saved["sync_dist"], fn=fn, rank_zero_only=saved["rank_zero_only"])
        metric = _ResultMetric(meta, saved["is_tensor"])
        if not metric.is_tensor:
            metric.value = module.get_submodule(meta.metric_attribute)
        for name, value in saved["states"].items():
            setattr(metric, name, value)
        metric._update_count = saved["updates"]
        results[key] = metric.to(trainer.strategy.root_device)


def settle_buckets(model):
    """Have DDP put the gradients into its buckets as it will after the first step.

    DDP sends gradients in buckets, and after its first step it packs them anew, in the order in which they came. The
    place in a bucket decides in which order the processes' numbers are added up, so with more than two of them it
    decides about rounding. The first step after a restart would be rounded otherwise than the same step without one.
    So here comes a first step with a gradient of zero.
    """
    if not isinstance(model, DistributedDataParallel) or model.find_unused_parameters:  # DDP keeps its buckets then
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


def restore_metrics(module, of_processes, rank):
    """Restore the state of the metrics at the position where the training stopped."""
    modules = dict(module.named_modules())
    for name, (updates, states) in of_processes[rank].items():
        for state, value in states.items():
            setattr(modules[name], state, to_device(value, modules[name].device))
        modules[name]._update_count = updates
        modules[name]._computed = None


def tensors(module):
    return dict(module.named_parameters()) | dict(module.named_buffers())


@contextlib.contextmanager
def unchanged(trainer, module):
    """Undo what is done in this context to the weights, to the optimizers' settings, and to the callbacks' states."""
    weights = {name: tensor.detach().clone() for name, tensor in tensors(module).items()}
    settings = [
        {name: value for name, value in group.items() if name != "params"}
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
    ]
    states = [copy.deepcopy(callback.state_dict()) for callback in trainer.callbacks]
    yield
    with torch.no_grad():
        for name, tensor in tensors(module).items():
            if name in weights:
                tensor.copy_(weights[name])
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    for group, before in zip(groups, settings, strict=False):
        group.update(copy.deepcopy(before))
    for callback, state in zip(trainer.callbacks, states, strict=True):
        if state:
            callback.load_state_dict(state)


def to_device(value, device):
    """value: a tensor, or a list of tensors, as torchmetrics keeps them"""
    return [part.to(device) for part in value] if isinstance(value, list) else value.to(device)


def correct_counters(loop, stopped_in_validation, ended, between):
    """Write into the state of Lightning's loop what is true at this moment.

    Lightning looks at four counters (ready, started, processed, completed) to see where a training was stopped.

    Args:
        loop: its state
        stopped_in_validation: whether this is a validation
        ended: whether the training is over
        between: whether this is the end of an epoch, or the start of one before its hooks
    """
    batches, epochs = loop["epoch_loop.batch_progress"], loop["epoch_progress"]
    epochs["current"].update(epochs["total"])  # Lightning forgets an epoch that is ready when it resumes at its start
    if ended and not batches["is_last_batch"]:  # in the middle of an epoch, which Lightning takes for a whole one
        for tracker in (epochs["total"], epochs["current"]):
            tracker.update(processed=tracker["ready"] - 1, completed=tracker["ready"] - 1)
    elif between:  # the training resumes with the next epoch
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
