"""Give all processes the same epoch averages, so that all processes make the same decisions.

If a module logs without sync_dist=True, Lightning computes a different average in each process. Then one process may
reduce the learning rate, save the best checkpoint or stop, while the others wait forever. This callback averages over
all processes. If only some processes have logged a value, all processes get the value of rank 0.
"""

import lightning as L
from torch.nn.parallel import DistributedDataParallel

from src.utils.processes import close_channel, gather, largest, open_channel, smallest


class Agreement(L.Callback):
    """Comes first: others need the channel that it opens."""

    def setup(self, trainer, module, stage):
        open_channel()
        if trainer.world_size == 1:
            return
        connector, epoch_loop = trainer._logger_connector, trainer.fit_loop.epoch_loop
        if getattr(connector, "agrees", False):  # of a command before this one
            return
        connector.agrees = True
        reached, ended, monitored = connector.epoch_end_reached, connector.on_epoch_end, epoch_loop._get_monitor_value

        def epoch_end_reached():
            reached()
            trainer.strategy.alone = False
            agree(trainer._results)

        def on_epoch_end():  # hooks at the end of an epoch may have logged more
            agree(trainer._results)
            ended()
            share(connector._callback_metrics)

        connector.epoch_end_reached = epoch_end_reached
        connector.on_epoch_end = on_epoch_end
        epoch_loop._get_monitor_value = lambda key: gather(monitored(key))[0]

    def on_validation_start(self, trainer, module):
        # DDP would broadcast the buffers in every step. It would wait for a process that has no batch left.
        model = trainer.strategy.model
        if isinstance(model, DistributedDataParallel):
            send_buffers(model)
            model.require_forward_param_sync = False
        self.may_be_alone(
            trainer, trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        )

    def on_test_start(self, trainer, module):
        self.may_be_alone(trainer, trainer.num_test_batches)

    def may_be_alone(self, trainer, batches):
        """If the processes have different numbers of batches, self.log(on_step=True, sync_dist=True) must not wait.

        Args:
            batches: how many this process has, of each loader
        """
        counts = [-1 if number == float("inf") else int(number) for number in batches]
        trainer.strategy.alone = -1 in counts or largest(*counts) != smallest(*counts)

    def on_validation_end(self, trainer, module):
        if isinstance(trainer.strategy.model, DistributedDataParallel):
            trainer.strategy.model.require_forward_param_sync = True

    def teardown(self, trainer, module, stage):
        close_channel()


def send_buffers(model):
    """Give all processes the buffers of the first. After a step each has its own, such as BatchNorm's."""
    if model.broadcast_buffers and model.modules_buffers:
        model._sync_buffers()


def agree(results):
    """Compute the averages of an epoch, over all processes. All processes call this together."""
    mine = {key: metric for key, metric in results.valid_items() if metric.meta.on_epoch and metric._computed is None}
    collective = {key: not metric.is_tensor or metric.meta.sync.should for key, metric in mine.items()}
    of_all = gather(collective)
    everywhere = set.intersection(*(set(keys) for keys in of_all))
    for keys in of_all:
        for key in sorted(set(keys) - everywhere):
            if keys[key]:
                raise SystemExit(
                    f"{key.partition('.')[2]} is logged in {key.partition('.')[0]} by some processes only, and they "
                    "would wait forever: log it in all processes, or log a number with rank_zero_only=True"
                )
    for key in sorted(everywhere):
        metric = mine[key]
        sync = metric.meta.sync
        should = sync.should
        if metric.is_tensor and not sync.rank_zero_only:
            sync.should = True
        if metric.is_tensor and metric.meta.is_mean_reduction:
            compute_mean(metric)
        else:
            metric.compute()  # Lightning takes what is computed already
        sync.should = should


def compute_mean(metric):
    """Lightning averages the numbers of samples of the processes as integers: of 7 and 6 it makes 6."""
    samples = metric.cumulated_batch_size
    metric.cumulated_batch_size = samples.to(metric.value.dtype)
    metric.compute()
    metric.cumulated_batch_size = samples


def share(metrics):
    """Give all processes what only the first has. All processes call this together."""
    names = gather(sorted(metrics))
    missing = set(names[0]) - set.intersection(*map(set, names))
    if missing:
        first = gather({name: metrics[name].cpu() for name in missing if name in metrics})[0]
        metrics.update({name: value for name, value in first.items() if name not in metrics})
