"""Changes to Lightning's loops from outside."""

import lightning as L

OFTEN = [name for name in dir(L.Callback) if "batch" in name or name.startswith(("on_before", "on_after"))]


def skip_empty_hooks(callback: L.Callback) -> L.Callback:
    """Have Lightning pass over the hooks of a step that a callback does not have; the callback itself.

    Lightning calls every hook of every callback, also those that do nothing. In a step that is 10 us for a callback.
    """
    for name in OFTEN:
        if getattr(type(callback), name) is getattr(L.Callback, name):
            setattr(callback, name, None)  # Lightning calls what can be called
    return callback


def validate_after_steps(trainer: L.Trainer, every: int) -> None:
    """Have Lightning validate after every so many optimizer steps.

    Lightning counts batches. Of a step of several batches it might validate in the middle, because the last step of an
    epoch may have fewer batches than the others.
    """
    loop = trainer.fit_loop.epoch_loop
    due = loop._should_check_val_fx

    def should_validate(fetcher):
        if trainer.should_stop:
            return due(fetcher)
        return not loop._should_accumulate() and trainer.global_step % every == 0

    loop._should_check_val_fx = should_validate
