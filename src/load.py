"""A run in Python is one line, from the repository's folder or with it on PYTHONPATH:

from src.load import load_run
model = load_run("logs/123")          # the best weights; load_run("logs/123", "last") for the last
probabilities = model(images).softmax(dim=1)
"""

from pathlib import Path

from src.callbacks.checkpoints import find, load_weights
from src.config import instantiate, read


def load_run(run, which="best"):
    """The network of a run with its weights, in evaluation mode, on the CPU.

    Args:
        run: the run's folder
        which: best, last, or the path of a checkpoint; a run that never validated has no best one: then the last
    Raises:
        FileNotFoundError: with one sentence that says what is missing
    """
    run = Path(run)
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"{run} is not the folder of a run: there is no config.yaml in it")
    model = instantiate(read((run / "config.yaml").read_text())).model
    if which == "best" and not (run / "checkpoints/best.ckpt").is_file():
        which = "last"
    load_weights(model, find(run, which))
    return model.eval()
