"""Are the exercises of this lesson right? See lessons/check.py."""

import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Losses(L.Callback):
    """Keeps the mean of the losses that training_step returned in each epoch."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, module):
        self.epochs.append([])

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.epochs[-1].append(outputs["loss"].item())


def late_line(exercise):
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(64, 20), torch.randint(10, (64,))), batch_size=16)
    model, losses = exercise.Reporter(), Losses()
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = L.Trainer(accelerator="cpu", max_epochs=3, enable_checkpointing=False, callbacks=[losses], **quiet)
    trainer.fit(model, loader, loader)
    means = [sum(epoch) / len(epoch) for epoch in losses.epochs]
    printed = [line[1] for line in model.lines]
    if any(abs(loss - means[epoch - 2]) < 1e-4 for epoch, loss, _ in model.lines if epoch > 1):
        return "the line of epoch 2 has the training loss of epoch 1. Which hook runs last in an epoch of Lightning's?"
    if [line[0] for line in model.lines] != [1, 2, 3]:
        return f"three epochs, and the lines are of {[line[0] for line in model.lines]}"
    if any(abs(a - b) > 1e-4 for a, b in zip(printed, means, strict=True)):
        return f"the training losses of the epochs are {means}, and the lines say {printed}"
    if abs(model.lines[-1][2] - trainer.validate(model, loader, verbose=False)[0]["val/loss"]) > 1e-4:
        return "the validation loss of the last line is not that of the network after its last epoch"


def dropout(exercise):
    torch.manual_seed(0)
    network = exercise.make_network()
    images = torch.randn(500, 20)
    with torch.no_grad():
        labels = network.eval()(images).argmax(dim=1)
    labels[:100] = (labels[:100] + 1) % 10  # of these it knows nothing
    network.train()
    found = [exercise.accuracy(network, images, labels) for _ in range(2)]
    if found[0] != found[1] or abs(found[0] - 0.8) > 1e-6:
        return f"twice the same images: {found[0]:.3f} and {found[1]:.3f}; it is 0.800. Which layer changes?"
    if not network.training:
        return "afterwards the network stays without dropout, and the training goes on with it like that"
    exercise.accuracy(network.eval(), images, labels)
    if network.training:
        return "a network that was in eval mode before is in training mode afterwards"
