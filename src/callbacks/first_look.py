"""Mistakes that only the data and the first validation show: unknown metrics, and schedules that are too short."""

import difflib

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint


def watching(callbacks):
    """The callbacks that look at a metric, and its name: [(class, metric)]."""
    return [
        (type(callback).__name__, callback.monitor)
        for callback in callbacks
        if isinstance(callback, (EarlyStopping, ModelCheckpoint))
        and callback.monitor
        and getattr(callback, "strict", True)
    ]


def unknown_metric(who, metric, known):
    """One sentence if this metric is not among the known ones, else None."""
    if metric in known:
        return None
    metric = metric if len(metric) < 80 else f"{metric[:40]}..."
    near = difflib.get_close_matches(metric, known, n=1)
    hint = f"did you mean {near[0]}?" if near else ", ".join(sorted(known))
    if who == "--monitor":
        return f"--monitor {metric} is not among what the validation reports: {hint}"
    return f"{who} monitors {metric}, which is not among what is reported: {hint}"


def too_short(scheduler, needed, unit):
    """One sentence if the schedule has an end, and that is before the training's, else None.

    Args:
        needed: how often the training will step it
        unit: steps or epochs
    """
    total = getattr(scheduler, "total_steps", None)
    if not isinstance(total, int) or total >= needed:
        return None
    name = type(scheduler).__name__
    if scheduler.last_epoch > 1:  # it was begun, and comes from a checkpoint
        return (
            f"{name} ends after {total} {unit}, and the training would take {needed}: a schedule that has begun cannot "
            f"be made longer. Begin a new run with --lr_scheduler.total_steps {needed}"
        )
    return f"{name} ends after {total} {unit}, and the training takes {needed}: set --lr_scheduler.total_steps {needed}"


class FirstLook(L.Callback):
    """Ends a training in its first seconds, with one sentence."""

    def __init__(self, max_time: str | None) -> None:
        self.max_time = max_time  # with it a training may end long before its last epoch

    def on_sanity_check_end(self, trainer, module):
        known = trainer.callback_metrics
        watched = watching(trainer.callbacks)
        watched += [
            (type(config.scheduler).__name__, config.monitor)
            for config in trainer.lr_scheduler_configs
            if config.reduce_on_plateau and config.monitor and config.strict
        ]
        for who, metric in watched:
            # A metric of the training is not known yet. Some models report nothing in this short validation.
            if known and "val" in metric and (reason := unknown_metric(who, metric, known)):
                raise SystemExit(reason)

    def on_train_start(self, trainer, module):
        if self.max_time or not module.automatic_optimization:
            return
        for config in trainer.lr_scheduler_configs:
            unit = f"{config.interval}s"
            times = trainer.max_epochs if config.interval == "epoch" else trainer.estimated_stepping_batches
            if config.interval == "epoch" and trainer.max_steps >= 0:  # they may be fewer than one epoch
                continue
            if 0 < times < float("inf") and (reason := too_short(config.scheduler, times // config.frequency, unit)):
                raise SystemExit(reason)
