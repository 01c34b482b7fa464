"""Train any network with one or more outputs, with any losses, regularizers and metrics: all of it from YAML."""

import logging
import sys

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, nn

from src.models.parameter_groups import make_optimizer
from src.models.terms import NETWORK, Loss, Metric, Regularizer, bind, check_known, check_name, check_pair, forward_of
from src.utils.mean import Mean

log = logging.getLogger(__name__)
log_once = rank_zero_only(log.info)  # what is the same in all processes of the job: one of them says it

STAGES = ("train", "val", "test")


class MultiOutput(L.LightningModule):
    """A network, and the weighted sum of losses and regularizers that it is trained with.

    Each is logged by its name and without its weight, train/<name> and val/<name>, so that curves can be compared when
    a weight changes. The weighted sum is train/loss and val/loss.
    """

    writes_epoch_line = True

    def __init__(
        self,
        network: nn.Module,
        batch: list[str],
        outputs: list[str],
        losses: dict[str, Loss],
        regularizers: dict[str, Regularizer] | None = None,
        metrics: dict[str, Metric] | None = None,
        inputs: list[str] | None = None,
        parameter_groups: dict[str, dict[str, bool | int | float]] | None = None,
    ) -> None:
        """The parts, and how they fit together. What does not fit ends the program with one sentence, here.

        Args:
            network: any Module; it returns a dict, a named tuple, a tuple or one tensor
            batch: the names of the parts of a batch: of a tuple in their order, of a dict its keys
            outputs: the names of what the network returns: of a tuple in their order, of a dict its keys
            losses: by name; each compares an output with a part of the batch
            regularizers: by name; each looks at outputs, or at the network
            metrics: by name; counted and reported
            inputs: the parts of the batch that the network is called with; default: the first
            parameter_groups: settings of the optimizer for parameters by the pattern of their name,
                such as {"encoder.*": {"lr": 1e-4}}
        """
        super().__init__()
        regularizers, metrics = regularizers or {}, metrics or {}
        self.network = network
        self.batch_names, self.outputs, self.inputs = batch, outputs, inputs or batch[:1]
        self.patterns = parameter_groups or {}
        if NETWORK in outputs:
            sys.exit(f"outputs: {NETWORK} is taken, it is the network itself: give this output another name")
        if not losses and not regularizers:
            sys.exit("losses: there is nothing to train with")
        for name in self.inputs:
            check_known("inputs", name, "part of the batch", batch)
        names = [*losses, *regularizers, *metrics]
        for name in names:
            check_name("losses, regularizers, metrics:", name)
            if names.count(name) > 1:
                sys.exit(f"{name!r} stands twice among losses, regularizers and metrics: both would be train/{name}")

        self.weights = {name: term.weight for name, term in (losses | regularizers).items()}
        self.functions = {name: term.function for name, term in (losses | regularizers).items()}
        # Some losses have tensors of their own, such as weights of classes: as parts of the model they move with it.
        modules = {name: part for name, part in self.functions.items() if isinstance(part, nn.Module)}
        self.loss_modules = nn.ModuleDict({f"of_{name}": part for name, part in modules.items()})
        self.pairs = {  # name: (output, target)
            name: (check_pair(f"losses.{name}", term, forward_of(term.function), outputs, batch), term.target)
            for name, term in losses.items()
        }
        self.bound = {  # name: (outputs by position, {argument: output})
            name: bind(f"regularizers.{name}", term.function, term.outputs, outputs)
            for name, term in regularizers.items()
        }
        self.metric_pairs = {
            name: (check_pair(f"metrics.{name}", term, term.function.update, outputs, batch), term.target)
            for name, term in metrics.items()
        }
        # As torchmetrics they are resumed, and exact with DDP.
        self.means = nn.ModuleDict(
            {f"{stage}/{name}": Mean() for stage in STAGES for name in ("loss", *names) if name not in metrics}
        )
        self.metrics = nn.ModuleDict(
            {f"{stage}/{name}": term.function.clone() for stage in STAGES for name, term in metrics.items()}
        )

    @property
    def reports(self):
        """The metrics that --monitor and callbacks may look at."""
        return [name for name in (*self.means, *self.metrics) if not name.startswith("test/")] + ["train/lr"]

    def forward(self, *inputs):
        """What the network returns for these inputs, by name."""
        return by_name(self.network(*inputs), self.outputs, "outputs: the network returns")

    def terms(self, outputs, batch):
        """The value of each loss and regularizer, by name. outputs, batch: tensors by name."""
        values = {
            name: self.functions[name](outputs[output], batch[target]) for name, (output, target) in self.pairs.items()
        }
        known = outputs | {NETWORK: self.network}
        for name, (positions, keywords) in self.bound.items():
            values[name] = self.functions[name](
                *(known[output] for output in positions),
                **{argument: known[output] for argument, output in keywords.items()},
            )
        for name, value in values.items():
            if value.dim():
                sys.exit(f"{name} returns a tensor of shape {tuple(value.shape)}: a loss is one number, such as a mean")
        return values

    def step(self, batch, stage):
        """The weighted sum of the terms. Everything is counted for the report of the epoch."""
        batch = by_name(batch, self.batch_names, "batch: the data give")
        inputs = [batch[name] for name in self.inputs]
        outputs = self(*inputs)
        values = self.terms(outputs, batch)
        loss = sum(self.weights[name] * value for name, value in values.items())
        images = len(inputs[0])
        for name, value in (values | {"loss": loss}).items():
            self.means[f"{stage}/{name}"].update(value.detach().float() * images, images)  # the last batch is smaller
        for name, (output, target) in self.metric_pairs.items():
            self.metrics[f"{stage}/{name}"].update(outputs[output].detach(), batch[target])
        return loss

    def training_step(self, batch):
        return self.step(batch, "train")

    def validation_step(self, batch):
        self.step(batch, "val")

    def test_step(self, batch):
        self.step(batch, "test")

    def predict_step(self, batch):
        """The outputs, each (N, ...), by name."""
        batch = by_name(batch, self.batch_names, "batch: the data give")
        return self(*[batch[name] for name in self.inputs])

    def log_stage(self, stage):
        for name, metric in (*self.means.items(), *self.metrics.items()):
            if name.startswith(f"{stage}/"):
                self.log(name, metric)  # the object, not its value: Lightning resets it

    def on_validation_epoch_end(self):
        self.log_stage("val")

    def on_test_epoch_end(self):
        self.log_stage("test")

    def on_train_epoch_end(self):  # runs after the epoch's validation
        self.log_stage("train")
        self.log("train/lr", self.trainer.optimizers[0].param_groups[0]["lr"], rank_zero_only=True)
        logged = self.trainer.callback_metrics
        names = [name.removeprefix("train/") for name in (*self.means, *self.metrics) if name.startswith("train/")]
        columns = [(word, f"{stage}/{name}") for word, stage in (("training", "train"), ("validation", "val"))
                   for name in names]  # fmt: skip
        numbers = [f"    {word} {key.split('/')[1]}: {logged[key]:.4f}" for word, key in columns if key in logged]
        log_once(f"epoch: {self.current_epoch + 1:02d}/{self.trainer.max_epochs:02d}{''.join(numbers)}")

    def make_optimizer(self, optimizer):
        """The configured optimizer, with the parameter groups. Called by src/train.py.

        The patterns are for the names in the network: encoder.0.weight. Parameters of a loss begin with loss_modules.
        """
        parameters = [(name.removeprefix("network."), parameter) for name, parameter in self.named_parameters()]
        return make_optimizer(optimizer, parameters, self.patterns)


def by_name(values, names, what):
    """Tensors by name. values: a dict, a named tuple, a tuple or list in the order of names, or one tensor."""
    if hasattr(values, "_asdict"):
        values = values._asdict()
    if isinstance(values, Tensor):
        values = (values,)
    if not isinstance(values, dict):
        if len(values) != len(names):
            sys.exit(f"{what} {len(values)} without names, but {len(names)} are named: {', '.join(names)}")
        return dict(zip(names, values, strict=True))
    if missing := [name for name in names if name not in values]:
        sys.exit(f"{what} {', '.join(map(str, values))}, but not {', '.join(missing)}")
    return {name: values[name] for name in names}
