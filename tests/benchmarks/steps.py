"""Where each microsecond of a step goes, from a bare loop to the last stage.

The network of lesson 1 is so small that most of its step is Python: nowhere else shows so well what each part costs.
ResNet-18 is what the parts are for. A number is the median of the steps of a training.
"""

import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.plugins.environments import LightningEnvironment
from measure import Table, Target, rounds

from src import train as last_stage
from src.callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from src.callbacks.exact_resume import ExactResume
from src.callbacks.finite_loss import FiniteLoss
from src.callbacks.stop_when_asked import StopWhenAsked
from src.datasets.images import ImageDataModule, InMemoryImages
from src.models.classifier import Classifier
from src.settings import Settings
from src.utils.loggers import make_logger

# name: network, images, batch, steps, rounds
TINY = "mlp", [1, 28, 28], 64, 400, 10
REAL = "resnet18", [3, 32, 32], 128, 12, 5
WARM_UP = 5  # steps
SEARCH = "PYTORCH_NVML_BASED_CUDA_CHECK"


class Clocked:
    """The batches of a loader; keeps when each was asked for."""

    def __init__(self, loader, steps):
        self.loader, self.steps = loader, steps
        self.asked = []

    def __len__(self):
        return self.steps

    def __iter__(self):
        for batch, _ in zip(self.loader, range(self.steps), strict=False):
            self.asked.append(time.perf_counter())
            yield batch

    def microseconds(self):
        """From one batch to the next, the median."""
        gaps = [later - earlier for earlier, later in zip(self.asked, self.asked[1:], strict=False)]
        return 1e6 * statistics.median(gaps[WARM_UP:])


class MadeUpImages(ImageDataModule):
    """As many images as MNIST has for training, and as large as asked for."""

    classes = list("0123456789")
    clock = Clocked

    def __init__(self, shape, batch_size, steps, on_device=False):
        super().__init__(batch_size, augment=False, on_device=on_device)
        self.shape, self.steps = shape, steps
        self.mean, self.std = [0.5] * shape[0], [0.25] * shape[0]

    def prepare_data(self):
        pass

    def setup(self, stage):
        device = self.trainer.strategy.root_device if self.on_device else "cpu"
        size = max(10_000, self.steps * self.batch_size), *self.shape
        images = torch.randint(256, size, dtype=torch.uint8, device=device)
        self.train_set = InMemoryImages(images, torch.randint(10, [len(images)], device=device))
        self.val_set = InMemoryImages(images[:100], torch.randint(10, [100], device=device))

    def train_dataloader(self):
        self.clocked = self.clock(super().train_dataloader(), self.steps)
        return self.clocked


@dataclass
class Where:
    """Where a training runs, and with which images; `network`: more arguments of the Classifier."""

    accelerator: str = "cpu"
    precision: str = "32"
    images: type = MadeUpImages
    network: dict = field(default_factory=dict)

    @property
    def device(self):
        return "cuda" if self.accelerator == "gpu" else "cpu"


CPU = Where()


class OnlyLoss(Classifier):
    """The same network, nothing counted and nothing logged."""

    def training_step(self, batch):
        images, labels = batch
        return self.loss_function(self(images), labels)

    def on_train_epoch_end(self):
        pass


def adam(parameters):
    return torch.optim.Adam(parameters, lr=1e-3, fused=True)


def bare(network, shape, batch_size, steps, sums=False, data=False, where=CPU):
    """Lesson 1's loop. sums: with its two sums; data: with the last stage's batches instead of ready ones."""
    os.environ[SEARCH] = "0"  # as where Lightning is not imported
    model = OnlyLoss(shape, 10, network, **where.network).to(where.device)
    optimizer, loss_sum, correct = adam(model.parameters()), 0.0, 0
    if data:
        module = where.images(shape, batch_size, steps)
        module.trainer = quiet_trainer(where=where)
        module.setup("fit")
        batches = module.train_dataloader()
    else:
        ready = [(torch.randn(batch_size, *shape), torch.randint(10, [batch_size])) for _ in range(20)]
        batches = Clocked((ready[number % 20] for number in range(steps)), steps)
    model.train()
    for batch in batches:
        images, labels = module.on_after_batch_transfer(batch, 0) if data else batch
        with torch.autocast(where.device, torch.bfloat16, enabled=where.precision == "bf16-mixed"):
            logits = model.network(images.contiguous(memory_format=model.memory_format))
            loss = model.loss_function(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if sums:
            loss_sum += loss.item() * len(labels)
            correct += (logits.argmax(dim=1) == labels).sum().item()
    return batches.microseconds()


def quiet_trainer(callbacks=(), where=CPU):
    """Lightning's Trainer with nothing that is not asked for."""
    return L.Trainer(
        accelerator=where.accelerator,
        devices=1,
        precision=where.precision,
        max_epochs=1,
        limit_val_batches=0,
        callbacks=list(callbacks),
        # Checkpoints asks the second whether it could write.
        plugins=[LightningEnvironment(), AtomicCheckpointIO()],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
    )


def trained(
    network, shape, batch_size, steps, model=Classifier, callback=None, everything=False, search=False, where=CPU
):
    """With Lightning's Trainer.

    everything: the last stage's own Trainer, with its logger and all callbacks
    search: let torch look for NVIDIA's library in each step, as Lightning wants it; the last stage does not
    """
    os.environ[SEARCH] = str(int(search))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Checkpoints(folder, "1epoch", "last", "val/accuracy")
        made = {
            "ExactResume": lambda: ExactResume(1),
            "FiniteLoss": lambda: FiniteLoss(folder),
            "Checkpoints": lambda: checkpoints,
            "StopWhenAsked": lambda: StopWhenAsked(checkpoints),
        }
        module, data = model(shape, 10, network, **where.network), where.images(shape, batch_size, steps)
        if everything:
            logger = make_logger("tensorboard", Path(folder), {}, 0)
            settings = Settings(
                batch_size=batch_size, max_epochs=1, accelerator=where.accelerator, precision=where.precision
            )
            trainer = last_stage.make_trainer(settings, Path(folder), logger, [], [], {}, module)
            trainer.callbacks = [part for part in trainer.callbacks if not isinstance(part, ProgressBar)]
        else:
            trainer = quiet_trainer([made[callback]()] if callback else [], where)
        last_stage.attach_optimizer(module, adam, None, "epoch")
        trainer.fit(module, data)
        return data.clocked.microseconds()


CASES = {
    "the network alone": (bare, {}),
    "with lesson 1's sums": (bare, {"sums": True}),
    "with the batches of the last stage": (bare, {"data": True}),
    "+ Lightning's Trainer as it is": (trained, {"model": OnlyLoss, "search": True}),
    "+ Lightning's Trainer without its search for GPUs": (trained, {"model": OnlyLoss}),
    "+ metrics": (trained, {}),
    "+ metrics, ExactResume": (trained, {"callback": "ExactResume"}),
    "+ metrics, FiniteLoss": (trained, {"callback": "FiniteLoss"}),
    "+ metrics, Checkpoints": (trained, {"callback": "Checkpoints"}),
    "+ metrics, StopWhenAsked": (trained, {"callback": "StopWhenAsked"}),
    "the last stage: all of it, and TensorBoard": (trained, {"everything": True}),
}
LOOP, ALL = "with the batches of the last stage", "the last stage: all of it, and TensorBoard"


def compare(caption, network, shape, batch_size, steps, turns, names):
    table = Table(f"{caption} Microseconds a step, and how many more than the bare loop with the same batches.")
    table.rows = {name: {} for name in names}
    for _, name in rounds(names, turns):
        function, options = CASES[name]
        table.add(name, microseconds_a_step=function(network, shape, batch_size, steps, **options))
    for name in names:
        pairs = zip(*(table.rows[row]["microseconds a step"] for row in (name, LOOP)), strict=True)
        table.rows[name]["more"] = [mine - loop for mine, loop in pairs]
    return table


def measure(smallest):
    torch.set_num_threads(1)
    *tiny, turns = TINY
    *real, real_turns = REAL
    names = list(CASES)
    if smallest:
        tiny[-1], turns = 20, 1
        real, real_turns, names = ["cnn", [3, 32, 32], 16, 20], 1, [LOOP, "+ metrics, ExactResume", ALL]
    step = compare("Lesson 1's network, batches of 64, one core.", *tiny, turns, names)
    resnet = compare("ResNet-18, images of 32 x 32, batches of 128, one core.", *real, real_turns, [LOOP, ALL])
    more = 100 * resnet.mean(ALL, "more") / resnet.mean(LOOP, "microseconds a step")
    targets = [Target("ResNet-18: the last stage over the bare loop, percent", more, 3)]
    return {"step": step, "step-resnet18": resnet}, targets
