"""What TensorBoard shows besides the curves. A function a page, and at the end the callback that calls them."""

import warnings

import lightning as L
import torch
from matplotlib.figure import Figure
from torch.utils.tensorboard.summary import hparams as hparams_summary

EXAMPLES = 16  # images in a picture of images
EMBEDDED = 500  # images in the projector


def add_layout(writer):
    """Custom Scalars: training and validation in one chart."""
    charts = {
        "loss": ["Multiline", ["train/loss", "val/loss"]],
        "accuracy": ["Multiline", ["train/accuracy", "val/accuracy"]],
        "macro averages": ["Multiline", ["val/precision", "val/recall", "val/f1"]],
    }
    writer.add_custom_scalars({"training and validation": charts})


def add_hparams(writer, hparams, metrics):
    """HParams: a row for the run. metrics: the tags whose last values stand in it, also when a run is stopped."""
    for summary in hparams_summary(hparams, dict.fromkeys(metrics, 0)):  # the 0 is not written anywhere
        writer.file_writer.add_summary(summary)


def add_graph(writer, network, image):
    """Graphs: the operations of the network and the shapes between them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch warns that what its own add_graph uses will go
        writer.add_graph(network, image)


def add_weights(writer, network, step):
    """Histograms: the values of each layer's parameters. Not of a layer that holds NaN: it has no histogram."""
    for name, parameter in network.named_parameters():
        if parameter.isfinite().all():
            writer.add_histogram(f"weights/{name}", parameter, step)


def add_pr_curves(writer, probabilities, labels, step):
    """PR Curves: one for each class, that class against the rest.

    A curve has a point for each threshold between 0 and 1, so it needs probabilities: not logits, not class ids.
    """
    for number in range(probabilities.shape[1]):
        writer.add_pr_curve(f"pr/{number}", labels == number, probabilities[:, number], step)


def add_confusion_matrix(writer, matrix, step):
    """Images: how often each class (row) was taken for each class (column)."""
    figure = Figure(figsize=(5, 5), dpi=80)
    axes = figure.subplots()
    dark = matrix.sum(dim=1).max() / 10  # dark from 10 % on: mistakes are rare
    axes.imshow(matrix, cmap="Blues", vmax=dark)
    for row, counts in enumerate(matrix.tolist()):
        for column, count in enumerate(counts):
            color = "white" if count > dark / 2 else "black"
            axes.text(column, row, count, ha="center", va="center", color=color, size=7)
    classes = range(len(matrix))
    axes.set(xlabel="predicted", ylabel="true", xticks=classes, yticks=classes)
    writer.add_figure("val/confusion_matrix", figure, step)


def add_examples(writer, images, step):
    """Images: what the network gets to see, as it is after every step of the data's preparation."""
    images = images[:EXAMPLES]
    low, high = images.min(), images.max()
    writer.add_images("val/examples", (images - low) / (high - low), step)


def add_predictions(writer, tag, images, labels, probabilities, step):
    """Images: the predicted classes and their probabilities, green where right, red where wrong."""
    figure = Figure(figsize=(6, 6.4), dpi=80)
    for number in range(min(EXAMPLES, len(images))):
        probability, predicted = probabilities[number].max(dim=0)
        right = predicted == labels[number]
        title = f"{predicted} ({probability:.0%})" if right else f"{predicted} ({probability:.0%}), is {labels[number]}"
        axes = figure.add_subplot(4, 4, number + 1, xticks=[], yticks=[])
        axes.imshow(images[number, 0], cmap="gray")
        axes.set_title(title, color="green" if right else "red", size=9)
    writer.add_figure(tag, figure, step)


def add_projector(writer, features, images, labels, step):
    """Projector: the last hidden layer's output for some images, as points in space, the images on them."""
    low, high = images.min(), images.max()
    writer.add_embedding(features, labels.tolist(), (images - low) / (high - low), step, tag="val/features")


class TensorBoardPages(L.Callback):
    """Decides when which page is written. val_set: the images to show are taken from it."""

    def __init__(self, val_set, hparams):
        self.val_set = val_set
        self.hparams = hparams

    def on_train_start(self, trainer, module):
        if not trainer.is_global_zero:  # the other processes would draw the same again
            return
        writer = trainer.logger.experiment
        # Not through a DataLoader: that would draw a random number, and all that follow would be others.
        images, _ = self.val_set.__getitems__(range(EXAMPLES))
        add_layout(writer)
        add_hparams(writer, self.hparams, ["val/loss", "val/accuracy", "val/f1", "test/loss", "test/accuracy"])
        add_graph(writer, module.network, images[:1].to(module.device))
        add_examples(writer, images, trainer.global_step)
        add_weights(writer, module.network, trainer.global_step)

    def on_train_epoch_end(self, trainer, module):
        # All processes take part in compute(): it collects what each of them has counted.
        probabilities, labels = module.val_probabilities.compute(), module.val_labels.compute()
        if not trainer.is_global_zero:
            return
        writer = trainer.logger.experiment
        add_weights(writer, module.network, trainer.global_step)
        add_pr_curves(writer, probabilities, labels, trainer.global_step)

    def on_train_end(self, trainer, module):
        matrix = module.val_confusion.compute()
        if not trainer.is_global_zero:
            return
        writer = trainer.logger.experiment
        add_confusion_matrix(writer, matrix.cpu(), trainer.global_step)

        images, labels = self.val_set.__getitems__(range(EMBEDDED))
        with torch.no_grad():
            features = module.network[:-1](images.to(module.device))
            probabilities = module.network[-1](features).softmax(dim=1).cpu()
        wrong = probabilities.argmax(dim=1) != labels
        add_predictions(writer, "val/predictions", images, labels, probabilities, trainer.global_step)
        add_predictions(writer, "val/mistakes", images[wrong], labels[wrong], probabilities[wrong], trainer.global_step)
        add_projector(writer, features.cpu(), images, labels, trainer.global_step)
