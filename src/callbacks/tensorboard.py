"""The pages of TensorBoard other than the curves: one function per page, and the callback that calls them.

A page may fail without harm to the training, see drawn(). Its cost has bounds, however many classes there are and
however large the images and the network are: the constants below.
"""

import logging
import math
import warnings

import lightning as L
import torch
from matplotlib.figure import Figure
from torch import nn

from src.models.networks import layers
from src.utils.drawing import drawn, in_figure, readable

log = logging.getLogger(__name__)

EXAMPLES = 16  # images in a picture of images
EMBEDDED = 500  # images in the projector
CURVES = 30  # classes with a PR curve; with more classes the confusion matrix has no numbers and no names
PIXELS = 256  # width and height of an image in a picture of images, at most
THUMBNAIL = 64  # the same in the projector
SPRITE = 8192  # width of the picture with all thumbnails, at most: browsers show no larger one
THUMBNAIL_BYTES = 32 * 2**20  # of all thumbnails together, at most
VALUES = 2**20  # of a parameter that are counted for its histogram, and of all points of the projector, at most
AT_ONCE = 2**24  # numbers of images that are in memory as floats, about


def add_layout(writer):
    """Custom Scalars: training and validation in one chart."""
    charts = {
        "loss": ["Multiline", ["train/loss", "val/loss"]],
        "accuracy": ["Multiline", ["train/accuracy", "val/accuracy"]],
        "macro averages": ["Multiline", ["val/precision", "val/recall", "val/f1"]],
    }
    writer.add_custom_scalars({"training and validation": charts})


def add_graph(writer, network, image):
    """Graphs: the operations of the network and the shapes between them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that what its own add_graph uses will go, and of each "if"
        writer.add_graph(network, image)


def add_weights(writer, network, step):
    """Histograms: the values of each layer's parameters, of a large one a part. A layer with NaN has no histogram."""
    for name, parameter in network.named_parameters():
        values = parameter.detach().flatten()
        values = values[:: -(-len(values) // VALUES) or 1].float()
        if len(values) and values.isfinite().all():
            drawn(f"weights/{name}", writer.add_histogram, f"weights/{name}", values, step)


def add_pr_curves(writer, probabilities, labels, classes, step):
    """PR Curves: one for each class, that class against the rest; of many classes the first CURVES.

    A curve has a point for each threshold between 0 and 1, so it needs probabilities: not logits, not class ids.
    """
    for number, name in enumerate(classes[:CURVES]):
        writer.add_pr_curve(f"pr/{readable(name)}", labels == number, probabilities[:, number], step)


def add_confusion_matrix(writer, matrix, classes, step):
    """Images: how often each class (row) was taken for each class (column)."""
    figure = Figure(figsize=(5, 5), dpi=80, layout="constrained")
    axes = figure.subplots()
    dark = matrix.sum(dim=1).max() / 10  # dark from 10 % on: mistakes are rare
    axes.imshow(matrix, cmap="Blues", vmin=0, vmax=dark)
    axes.set(xlabel="predicted", ylabel="true")
    if len(classes) <= CURVES:  # a text takes a thousand times as long as a coloured square
        for row, counts in enumerate(matrix.tolist()):
            for column, count in enumerate(counts):
                color = "white" if count > dark / 2 else "black"
                axes.text(column, row, count, ha="center", va="center", color=color, size=7)
        names = [in_figure(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation="vertical" if len("".join(names)) > 30 else "horizontal")
        axes.set_yticks(range(len(names)), names)
    writer.add_figure("val/confusion_matrix", figure, step)


def add_examples(writer, images, step):
    """Images: what the network gets to see, as it is after every step of the data's preparation."""
    images = smaller(in_colours(images[:EXAMPLES]), PIXELS)
    low, high = images.min(), images.max()
    writer.add_images("val/examples", (images - low) / (high - low if high > low else 1), step)


def add_predictions(writer, tag, images, labels, probabilities, classes, step):
    """Images: the predicted classes and their probabilities, green where right, red where wrong.

    images: from 0 to 1, with one channel or three
    """
    figure = Figure(figsize=(6, 6.4), dpi=80, layout="constrained")
    for number in range(min(EXAMPLES, len(images))):
        probability, predicted = probabilities[number].max(dim=0)
        right = predicted == labels[number]
        title = f"{in_figure(classes[predicted])} ({probability:.0%})"
        if not right:
            title += f"\nis {in_figure(classes[labels[number]])}"
        axes = figure.add_subplot(4, 4, number + 1, xticks=[], yticks=[])
        axes.imshow(images[number].permute(1, 2, 0), cmap="gray")  # matplotlib wants the channels last
        axes.set_title(title, color="green" if right else "red", size=9)
    writer.add_figure(tag, figure, step)


def add_projector(writer, features, thumbnails, labels, classes, step):
    """Projector: the last hidden layer's output for some images, as points in space, the images on them."""
    names = [readable(classes[label]) for label in labels]
    writer.add_embedding(features, names, thumbnails, step, tag="val/features")


def in_colours(images):
    """(N, C, H, W) with one channel or three: of other images the first."""
    return images if images.shape[1] in (1, 3) else images[:, : 3 if images.shape[1] > 3 else 1]


def smaller(images, pixels):
    """Float images (N, C, H, W), not wider or higher than that."""
    height, width = images.shape[2:]
    scale = pixels / max(height, width)
    if scale >= 1:
        return images
    size = max(1, round(height * scale)), max(1, round(width * scale))
    return nn.functional.interpolate(images, size, mode="area")


def thumbnails_of(images, pixels):
    """Square pictures, float (N, C, pixels, pixels) or smaller, of uint8 (N, C, H, W).

    torch arranges thumbnails in a square. It fails if they are higher than wide, so they get margins.
    """
    images = smaller(in_colours(images) / 255, pixels)
    height, width = images.shape[2:]
    right, below = max(0, height - width), max(0, width - height)
    return nn.functional.pad(images, (right // 2, right - right // 2, below // 2, below - below // 2))


def thumbnail_pixels(count, channels):
    """How wide thumbnails may be, so that all of them stay within the bounds."""
    columns = math.ceil(math.sqrt(count))
    return max(1, min(THUMBNAIL, SPRITE // columns, math.isqrt(THUMBNAIL_BYTES // (4 * min(channels, 3) * count))))


def look(module, images):
    """The input of the network's last layer (N, features), and the probabilities (N, num_classes), on the CPU.

    Args:
        module: the network and how it is used; it is as before afterwards
        images: that it takes
    """
    network = module.network
    _, head = layers(network)[-1]
    inputs = []
    hook = head.register_forward_pre_hook(lambda layer, args: inputs.append(in_rows(args[0])))
    modes = [(part, part.training) for part in module.modules()]
    module.eval()  # batch norm must not learn from these images, dropout must not drop
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # a compiled network calls no hooks
            probabilities = network(images).softmax(dim=1)
    finally:
        hook.remove()
        for part, training in modes:
            part.training = training
    return torch.cat(inputs).cpu(), probabilities.cpu()


def in_rows(values):
    """(N, features): of a layer that is a convolution, the mean over the image."""
    return values.flatten(2).mean(2) if values.dim() == 4 else values.flatten(1)


def first(dataset, begin, end):
    """Some images of a data set, uint8 (N, C, H, W), and their labels, int64 (N)."""
    images, labels = dataset.__getitems__(range(begin, min(end, len(dataset))))
    return images.cpu(), labels.cpu()


def last_step(trainer):
    """The step whose outcome is shown, counted from 0 as Lightning does for the curves."""
    return max(0, trainer.global_step - 1)


class TensorBoardPages(L.Callback):
    """Decides when which page is written. The images to show are the first of the validation images."""

    def __init__(self):
        self.matrix = None  # the confusion matrix of the last validation

    def state_dict(self):
        return {"matrix": self.matrix}

    def load_state_dict(self, state):
        self.matrix = state["matrix"]

    def on_train_start(self, trainer, module):
        # The other processes would draw the same again. And a training that goes on has drawn it already.
        if not trainer.is_global_zero or trainer.global_step > 0:
            return
        drawn("of the first step", self.add_beginning, trainer, module)

    def say_bounds(self, data):
        """In the log, what the pages leave out of these data."""
        classes = len(data.classes)
        if classes > CURVES:
            log.info(
                f"TensorBoard: PR curves of the first {CURVES} of {classes} classes, and a confusion matrix without "
                "numbers"
            )
        if max(data.shape[1:]) > THUMBNAIL:
            log.info(f"TensorBoard: images are scaled down to {PIXELS} pixels, in the projector to {THUMBNAIL}")

    def add_beginning(self, trainer, module):
        self.say_bounds(trainer.datamodule)
        writer = trainer.logger.experiment
        # Not through a DataLoader: that would draw a random number, and all that follow would be others.
        images, _ = first(trainer.datamodule.val_set, 0, EXAMPLES)
        images = trainer.datamodule.normalise(images)
        drawn("custom scalars", add_layout, writer)
        drawn("graphs", add_graph, writer, module.network, images[:1].to(module.device))
        drawn("val/examples", add_examples, writer, images, 0)
        add_weights(writer, module.network, 0)

    def on_validation_end(self, trainer, module):
        counted = module.val_probabilities, module.val_labels, module.val_confusion
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            # All processes take part in compute(): it collects what each of them has counted.
            probabilities, labels, matrix = (metric.compute() for metric in counted)
            self.matrix = matrix.cpu()
            if trainer.is_global_zero:
                drawn("of a validation", self.add_validation, trainer, module, probabilities, labels)
        for metric in counted:  # else each checkpoint until the next validation holds the probabilities
            metric.reset()

    def add_validation(self, trainer, module, probabilities, labels):
        writer, step = trainer.logger.experiment, last_step(trainer)
        drawn("weights", add_weights, writer, module.network, step)
        drawn("pr", add_pr_curves, writer, probabilities, labels, trainer.datamodule.classes, step)

    def on_train_epoch_end(self, trainer, module):
        # --max_steps or --max_time may end an epoch in its middle: then the last checkpoint is written here.
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.add_outcome(trainer, module)

    def on_train_end(self, trainer, module):
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.add_outcome(trainer, module)

    def add_outcome(self, trainer, module):
        """What the network has learnt. Before the last checkpoint, behind which nothing is repeated."""
        if trainer.is_global_zero:
            drawn("of the outcome", self.add_outcome_of_first, trainer, module)

    def add_outcome_of_first(self, trainer, module):
        """In the first process."""
        data, writer, step = trainer.datamodule, trainer.logger.experiment, last_step(trainer)
        if self.matrix is not None:
            drawn("val/confusion_matrix", add_confusion_matrix, writer, self.matrix, data.classes, step)
        drawn("val/predictions", self.add_images, writer, step, data, module)

    def add_images(self, writer, step, data, module):
        count, parts = min(EMBEDDED, len(data.val_set)), []
        pixels = thumbnail_pixels(count, data.shape[0])
        examples = {"val/predictions": [], "val/mistakes": []}
        at_once = max(1, min(50, AT_ONCE // math.prod(data.shape)))
        for begin in range(0, count, at_once):  # a few at a time: 500 images and their activations may be too large
            images, labels = first(data.val_set, begin, min(begin + at_once, count))
            features, probabilities = look(module, data.normalise(images.to(module.device)))
            parts.append((features, thumbnails_of(images, pixels), labels))
            wrong = probabilities.argmax(dim=1) != labels
            for tag, chosen in (("val/predictions", torch.ones_like(wrong)), ("val/mistakes", wrong)):
                lacking = EXAMPLES - sum(len(part[1]) for part in examples[tag])
                shown = [part[chosen][:lacking] for part in (images, labels, probabilities)]
                examples[tag].append([smaller(in_colours(shown[0]) / 255, PIXELS), *shown[1:]])
        for tag, found in examples.items():
            joined = [torch.cat(part) for part in zip(*found, strict=True)]
            drawn(tag, add_predictions, writer, tag, *joined, data.classes, step)
        features, thumbnails, labels = (torch.cat(part) for part in zip(*parts, strict=True))
        few = max(1, VALUES // features.shape[1])  # points
        points = features[:few], thumbnails[:few], labels[:few]
        drawn("val/features", add_projector, writer, *points, data.classes, step)
