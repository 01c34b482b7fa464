"""ResNet-18 on CIFAR-10 as fast as one GPU goes: the preset cifar10_fast, with and without compilation.

For 94 % and for 95 % there is a length of the training. Beside it, in the same turns, whatever programs lie in
tests/benchmarks/published/, each with its own environment: public speed runs as their authors published them. They are
not part of this repository; the name of the file stands in the table.
"""

import re
import sys
import tempfile
from pathlib import Path

import torch
from measure import ROOT, Table, Target, rounds, run

LENGTHS = {"94 %": 15, "95 %": 40}  # epochs
STEPS = 90  # in an epoch
SEEDS = 5
PUBLISHED = Path(__file__).parent / "published"
# Without a GPU: does it run? Another network, other images.
SMALLEST = "--data ColourMNIST --model.arch cnn --accelerator cpu --batch_size 100 --limit_train_batches 3"


def train(epochs, compiled, seed, more, cache=None):
    """Train and test once: (seconds of the command, seconds of the training, test accuracy in percent).

    cache: the folder for what torch.compile makes; None: a new one, so that every call compiles
    """
    with tempfile.TemporaryDirectory() as folder:
        done = run(
            f"python src/train.py fit --run_folder {folder}/run --config cifar10_fast --seed {seed} "
            f"--max_epochs {epochs} --lr_scheduler.total_steps {epochs * STEPS} --model.compile {compiled} "
            f"--validate_every {epochs}epochs --checkpoint_every {epochs}epochs --logger csv {more}",
            ROOT,
            TORCHINDUCTOR_CACHE_DIR=cache or f"{folder}/compiled",
        )
    accuracy, seconds = re.search(r"test accuracy: (\S+) .*seconds per epoch: (\S+)", done.output).groups()
    return done.seconds, epochs * float(seconds), 100 * float(accuracy)


def measure(smallest):
    if not smallest and not torch.cuda.is_available():
        sys.exit("cifar needs a GPU: without one only --smallest runs")
    lengths, seeds, more = ({"94 %": 1}, 1, SMALLEST) if smallest else (LENGTHS, SEEDS, "")
    cases = {
        f"ResNet-18 for {goal}, {epochs} epochs{', compiled' if compiled else ''}": (epochs, str(compiled).lower())
        for goal, epochs in lengths.items()
        for compiled in ([False] if smallest else [False, True])
    }
    table = Table(
        "CIFAR-10 on one GPU, each round with another seed. Seconds of the whole command, which begins with imports "
        "and ends with the test; of the training in it, compilation included; accuracy on the test images in percent."
    )
    published = {} if smallest else {path.stem: path for path in sorted(PUBLISHED.glob("*.py"))}
    table.rows = {name: {} for name in [*cases, *published]}
    for turn, name in rounds(table.rows, seeds):
        if name in published:
            done = run(f"python {published[name]}", PUBLISHED)
            print(f"{name} ended with:\n{done.output[-1000:]}")  # each has its own words for its accuracy
            table.add(name, whole_command=done.seconds)
            continue
        epochs, compiled = cases[name]
        whole, training, accuracy = train(epochs, compiled, turn + 1, more)
        table.add(name, whole_command=whole, training=training, accuracy=accuracy)
    targets = []
    if not smallest:
        for goal, epochs in lengths.items():
            name = f"ResNet-18 for {goal}, {epochs} epochs, compiled"
            targets.append(Target(f"accuracy of {name}", table.mean(name, "accuracy"), float(goal[:2]), at_least=True))
    return {"cifar": table}, targets
