"""What the final stage's callbacks cost in a step, and what a checkpoint costs.

python tests/benchmarks/callbacks.py [--arch cnn] [--batch_size 256] [--steps 400]
torchrun --nproc_per_node 2 tests/benchmarks/callbacks.py           the same with two processes

In one training each step has callbacks drawn by lot: none, one of them, or all. So a machine that is busy for a while
is busy for all of them, and steps with and without can be compared: the ratio of the medians, with the interval in
which 95 of 100 repetitions of the draw would find it (bootstrap). With several processes StopWhenAsked asks the others
every half second: too seldom for a median, so what that takes is measured by itself.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from src.launch.ranks import export_ranks  # noqa: E402

export_ranks()

import logging  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import warnings  # noqa: E402

import lightning as L  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment  # noqa: E402

from src.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints  # noqa: E402
from src.callbacks.exact_resume import ExactResume  # noqa: E402
from src.callbacks.finite_loss import FiniteLoss  # noqa: E402
from src.callbacks.stop_when_asked import StopWhenAsked  # noqa: E402
from src.datasets.images import ImageDataModule, InMemoryImages  # noqa: E402
from src.models.classifier import Classifier  # noqa: E402
from src.train import attach_optimizer  # noqa: E402

WARM_UP = 60  # steps


class RandomImages(ImageDataModule):
    shape = [3, 32, 32]
    classes = list("0123456789")
    mean, std = [0.5] * 3, [0.25] * 3
    crop = True

    def prepare_data(self):
        pass

    def setup(self, stage):
        images = torch.randint(256, (10_000, *self.shape), dtype=torch.uint8)
        self.train_set = InMemoryImages(images, torch.randint(10, (10_000,)))


class Clock(L.Callback):
    """The last in the list: a step is from its end to the next one's. It draws the list for the next step."""

    def __init__(self, sets):
        self.sets = sets  # name: the callbacks
        self.times = {name: [] for name in sets}
        self.name = None
        self.start = 0.0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step > WARM_UP and self.name:
            self.times[self.name].append(time.perf_counter() - self.start)
        # Seeded by the step: the same in all processes.
        self.name = random.Random(trainer.global_step).choice(list(self.sets))
        trainer.callbacks = [*self.sets[self.name], self]
        self.start = time.perf_counter()


class TimedStop(StopWhenAsked):
    """Notes how long it takes to ask the other processes."""

    looking = 0.0  # seconds

    def look(self, trainer):
        start = time.perf_counter()
        super().look(trainer)
        self.looking += time.perf_counter() - start


def ratio(times, baseline):
    """The ratio of two medians, and its 95 % interval: (ratio, low, high)."""
    chance = np.random.default_rng(1)
    times, baseline = np.array(times), np.array(baseline)
    drawn = [
        np.median(chance.choice(times, len(times))) / np.median(chance.choice(baseline, len(baseline)))
        for _ in range(2000)
    ]
    return np.median(times) / np.median(baseline), *np.percentile(drawn, [2.5, 97.5])


def make_trainer(args, clock, parts):
    world_size, local_size = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    return L.Trainer(
        accelerator="cpu",
        devices=local_size,
        num_nodes=world_size // local_size,
        strategy="ddp" if world_size > 1 else "auto",
        plugins=[TorchElasticEnvironment() if world_size > 1 else LightningEnvironment(), AtomicCheckpointIO()],
        use_distributed_sampler=False,
        max_steps=WARM_UP + args.steps * len(clock.sets),
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[*parts.values(), clock],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="cnn")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=400, help="of each kind")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder, "1000000steps", "last", "val/accuracy")
        parts = {
            "listening": TimedStop(checkpoints),
            "seeding": ExactResume(1),
            "finite loss": FiniteLoss(folder),
            "checkpoints": checkpoints,
        }
        clock = Clock({"none": [], **{name: [part] for name, part in parts.items()}, "all": [*parts.values()]})
        trainer = make_trainer(args, clock, parts)
        model = Classifier(RandomImages.shape, 10, args.arch)
        attach_optimizer(model, lambda parameters: torch.optim.Adam(parameters, fused=True), None, "epoch")
        trainer.fit(model, RandomImages(args.batch_size))
        path = Path(folder) / "checkpoint.ckpt"
        start = time.perf_counter()
        trainer.save_checkpoint(path, weights_only=False)
        saving = time.perf_counter() - start
        size = path.stat().st_size if trainer.is_global_zero else 0
    if not trainer.is_global_zero:
        return
    print(f"{args.arch}, batch {args.batch_size}, {trainer.world_size} processes, torch {torch.__version__}")
    print(f"{'callbacks':12} {'ms a step':>10} {'ratio':>7}   95 % interval")
    for name, times in clock.times.items():
        middle, low, high = ratio(times, clock.times["none"])
        print(f"{name:12} {1000 * statistics.median(times):10.3f} {middle:7.4f}   {low:.4f} to {high:.4f}")
    listened = sum(clock.times["listening"]) + sum(clock.times["all"])
    print(f"asking the other processes took {parts['listening'].looking / listened:.4%} of the steps that listened")
    print(f"a checkpoint of {size / 1e6:.1f} MB takes {1000 * saving:.0f} ms")


if __name__ == "__main__":
    main()
