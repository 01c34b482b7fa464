"""DDP for networks of which parts are frozen for a while, and for evaluations in which a process has a batch less."""

from lightning.pytorch.strategies import DDPStrategy

from src.callbacks.exact_resume import settle_buckets


class FrozenOrNot(DDPStrategy):
    """Rebuild DDP when parameters are frozen or unfrozen: DDP registers the trainable parameters only at the start."""

    def training_step(self, *args, **kwargs):
        if trainable(self.lightning_module) != self.known:
            self.model.reducer._remove_autograd_hooks()
            self.model = self._setup_model(self.lightning_module)
            settle_buckets(self.model)
        self.model.require_forward_param_sync = True  # Lightning's manual optimization turns it off
        return super().training_step(*args, **kwargs)

    alone = False  # whether the processes must not wait for each other in a step

    def reduce(self, tensor, group=None, reduce_op="mean"):
        return tensor if self.alone else super().reduce(tensor, group, reduce_op)

    def _setup_model(self, model):
        self.known = trainable(model)
        return super()._setup_model(model)


def trainable(model):
    """Which parameters are not frozen."""
    return [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
