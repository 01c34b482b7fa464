"""Are the exercises of this lesson right? See lessons/check.py."""

import copy
import multiprocessing
import resource
import signal
import sys
from pathlib import Path

import torch
from torch import nn

torch.set_num_threads(1)  # a fork must not need the threads of its parent
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def twice(exercise):
    alone, killed = Path("alone.pt"), Path("killed.pt")
    exercise.train(alone, 24)
    seen = [index for steps in (3, 7, 8, 9, 17, 24) for index in exercise.train(killed, steps)]
    epochs = [sorted(seen[start : start + 32]) for start in (0, 32, 64)]
    if len(seen) != 96:
        return f"24 steps with 4 images each are 96 images, stopped five times they are {len(seen)}"
    if epochs[0] != list(range(32)):
        return "in the first epoch some images come twice. Where in the order does the training go on?"
    if epochs != [list(range(32))] * 3:
        return "the first epoch is right, and a later one is not: what if it was stopped just at the end of an epoch?"
    one, other = (torch.load(path)["network"] for path in (alone, killed))
    if not all(torch.equal(one[name], other[name]) for name in one):
        return (
            "each image is seen once an epoch, and the weights still differ from those of a run that was never stopped"
        )


def save_and_be_killed(save, state, path, size):
    """The system kills this process when a file of it has more than so many bytes: for real, and in the middle."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    save(state, path)


def torn(exercise):
    path = Path("last.ckpt")
    exercise.save({"step": 1, "weights": torch.zeros(250_000)}, path)
    for size in (0, 4096, 500_000, 999_000):
        state = {"step": 2, "weights": torch.ones(250_000)}
        process = CONTEXT.Process(target=save_and_be_killed, args=(exercise.save, state, path, size))
        process.start()
        process.join()
        if not path.exists():
            return f"killed after {size} bytes: there is no {path} any more"
        try:
            found = torch.load(path)["step"]
        except Exception:
            return f"killed after {size} bytes: {path} cannot be read. When may a file get its final name?"
        if found != 1:
            return f"killed after {size} bytes, and step {found} has the name"
    exercise.save({"step": 3, "weights": torch.zeros(1000)}, path)
    if torch.load(path)["step"] != 3:
        return "what a killed process has left behind keeps the next one from saving"


class Interrupted(torch.optim.Optimizer):
    """Gradient descent that gets a signal in the middle of a step."""

    def __init__(self, parameters, step):
        super().__init__(parameters, {})
        self.left = step

    @torch.no_grad()
    def step(self):
        self.left -= 1
        for number, parameter in enumerate(self.param_groups[0]["params"]):
            if self.left == 0 and number == 1:
                signal.raise_signal(signal.SIGUSR1)
            parameter -= 0.1 * parameter.grad


def asked(exercise):
    torch.manual_seed(0)
    start = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 1))
    batches = torch.randn(6, 8, 5)
    weights = []
    for steps in range(7):
        network = copy.deepcopy(start)
        exercise.train(network, Interrupted(network.parameters(), -1), batches[:steps], Path("none.ckpt"))
        weights.append(torch.cat([values.flatten() for values in network.state_dict().values()]))
    for step in (3, 6):
        path, network = Path(f"{step}.ckpt"), copy.deepcopy(start)
        exercise.train(network, Interrupted(network.parameters(), step), batches, path)
        if not path.exists():
            return f"the signal came in step {step} of 6, and at the end there is no checkpoint"
        checkpoint = torch.load(path)
        found = torch.cat([values.flatten() for values in checkpoint["network"].values()])
        if not any(torch.equal(found, known) for known in weights):
            return "the checkpoint has half of its weights from before a step, half from after. When may it be saved?"
        if not torch.equal(found, weights[checkpoint["step"]]):
            return f"the checkpoint says step {checkpoint['step']}, and its weights are of another one"
        if checkpoint["step"] < step:
            return f"the signal came in step {step}, and the checkpoint is of step {checkpoint['step']}"
        if not torch.equal(torch.cat([values.flatten() for values in network.state_dict().values()]), weights[6]):
            return "after the signal the training does not go on to its end"
