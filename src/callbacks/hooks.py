"""Lightning calls every hook of every callback, also those that do nothing. In a step that is 10 us for a callback."""

import lightning as L

OFTEN = [name for name in dir(L.Callback) if "batch" in name or name.startswith(("on_before", "on_after"))]


def skip_empty_hooks(callback: L.Callback) -> L.Callback:
    """Have Lightning pass over the hooks of a step that a callback does not have; the callback itself."""
    for name in OFTEN:
        if getattr(type(callback), name) is getattr(L.Callback, name):
            setattr(callback, name, None)  # Lightning calls what can be called
    return callback
