"""A run in Python is one line, from the repository's folder or with it on PYTHONPATH:

from src.load import load_run
model = load_run("logs/123")          # the best weights; load_run("logs/123", "last") for the last
probabilities = model(images).softmax(dim=1)
"""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from src.callbacks.checkpoints import find, load_weights
from src.callbacks.exact_resume import attributes_of
from src.config import instantiate, make_model, read
from src.models.networks import without_weights
from src.utils.attributes import restore


def load_run(run, which="best"):
    """The network of a run with its weights, in evaluation mode, on the CPU.

    The checkpoint says what the model knows of the data, so the data and torchvision's weights need not be here. Only
    if the model has a setup() of its own, or if an older program wrote the checkpoint, the data are needed.

    Args:
        run: the run's folder
        which: best, last, or the path of a checkpoint; a run that never validated has no best one: then the last
    Raises:
        FileNotFoundError: with one sentence that says what is missing
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} is not the folder of a run: there is no config.yaml in it")
    text = (run / "config.yaml").read_text()
    if which == "best" and not (run / "checkpoints/best.ckpt").is_file():
        which = "last"
    checkpoint = find(run, which)
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    data = None
    with without_weights():
        if "filled_in" in saved:
            model = make_model(text, saved["filled_in"])
        if "filled_in" not in saved or is_overridden("setup", model):
            parts = instantiate(read(text))
            model, data = parts.model, parts.data
    if data is not None and (is_overridden("setup", model) or is_overridden("configure_model", model)):
        quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
        trainer = L.Trainer(accelerator="cpu", devices=1, limit_predict_batches=0, **quiet)
        trainer.predict(model, data, ckpt_path=checkpoint, weights_only=True)  # there layers may be made
        model.trainer = None
    else:
        model.configure_model()
        load_weights(model, checkpoint)
    resumed = saved.get("exact_resume")
    if resumed:
        restore(attributes_of(resumed), model)
    return model.eval()
