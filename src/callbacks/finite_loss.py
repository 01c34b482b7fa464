"""Stop at the first loss that is not finite, and keep the batch for inspection."""

from collections import deque
from pathlib import Path

import lightning as L
import torch

IN_FLIGHT = 8  # losses on a GPU that are not yet looked at


class FiniteLoss(L.Callback):
    """On a CPU the loss is looked at before its gradients are computed, so the weights are still good.

    On a GPU the program runs ahead of the work: to look at each loss at once would make it wait every time. So whether
    the loss is finite is copied in the background, and looked at a few steps later; the batches are kept until then.
    """

    def __init__(self, run_folder):
        self.folder = Path(run_folder)
        self.batch = None
        self.waiting = deque()  # (step, batch, whether the loss is finite, when the copy is there)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.batch = batch

    def on_train_batch_end(self, *args):
        self.batch = None  # before the next is fetched: that takes its place in memory

    def on_before_backward(self, trainer, module, loss):
        step = trainer.global_step + 1
        if loss.device.type != "cuda":
            if not loss.isfinite():
                self.stop(trainer, step, self.batch, "the weights are those from before it")
            return
        finite = torch.empty((), dtype=torch.bool, pin_memory=True)
        finite.copy_(loss.detach().isfinite(), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self.waiting.append((step, self.batch, finite, copied))
        while self.waiting and (len(self.waiting) > IN_FLIGHT or self.waiting[0][3].query()):
            self.look(trainer)

    def on_save_checkpoint(self, trainer, module, checkpoint):  # what has not been looked at must not be written
        self.look_at_all(trainer)

    def on_train_epoch_end(self, trainer, module):
        self.look_at_all(trainer)

    def look_at_all(self, trainer):
        while self.waiting:
            self.look(trainer)

    def look(self, trainer):
        """Look at the oldest loss that is waiting."""
        step, batch, finite, copied = self.waiting.popleft()
        copied.synchronize()
        if not finite:
            self.stop(trainer, step, batch, "the optimizer has used it already")

    def stop(self, trainer, step, batch, weights):
        path = self.folder / f"not_finite_step={step:08d}_rank={trainer.global_rank}.pt"
        try:
            torch.save({"step": step, "batch": batch, "state_dict": trainer.lightning_module.state_dict()}, path)
        except (OSError, RuntimeError) as error:  # a full disk: torch's writer makes a RuntimeError of it
            raise SystemExit(
                f"the loss of step {step} is not finite. Its batch could not be written to {path}: "
                f"{' '.join(str(error).split())[:200]}"
            ) from None
        raise SystemExit(
            f"the loss of step {step} is not finite. Its batch and the weights ({weights}) are in {path}; "
            "the newest checkpoint is from before it."
        )
