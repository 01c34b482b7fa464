"""What TensorBoard shows besides the curves. A function a page, and at the end the callback that calls them."""

import warnings

import lightning as L
import torch
from matplotlib.figure import Figure

from src.models.networks import layers

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


def add_graph(writer, network, image):
    """Graphs: the operations of the network and the shapes between them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that what its own add_graph uses will go, and of each "if"
        writer.add_graph(network, image)


def add_weights(writer, network, step):
    """Histograms: the values of each layer's parameters. Not of a layer that holds NaN: it has no histogram."""
    for name, parameter in network.named_parameters():
        if parameter.isfinite().all():
            writer.add_histogram(f"weights/{name}", parameter, step)


def add_pr_curves(writer, probabilities, labels, classes, step):
    """PR Curves: one for each class, that class against the rest.

    A curve has a point for each threshold between 0 and 1, so it needs probabilities: not logits, not class ids.
    """
    for number, name in enumerate(classes):
        writer.add_pr_curve(f"pr/{name}", labels == number, probabilities[:, number], step)


def add_confusion_matrix(writer, matrix, classes, step):
    """Images: how often each class (row) was taken for each class (column)."""
    figure = Figure(figsize=(5, 5), dpi=80, layout="constrained")
    axes = figure.subplots()
    dark = matrix.sum(dim=1).max() / 10  # dark from 10 % on: mistakes are rare
    axes.imshow(matrix, cmap="Blues", vmax=dark)
    for row, counts in enumerate(matrix.tolist()):
        for column, count in enumerate(counts):
            color = "white" if count > dark / 2 else "black"
            axes.text(column, row, count, ha="center", va="center", color=color, size=7)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_xticks(range(len(classes)), classes, rotation="vertical" if len("".join(classes)) > 30 else "horizontal")
    axes.set_yticks(range(len(classes)), classes)
    writer.add_figure("val/confusion_matrix", figure, step)


def add_examples(writer, images, step):
    """Images: what the network gets to see, as it is after every step of the data's preparation."""
    images = images[:EXAMPLES]
    low, high = images.min(), images.max()
    writer.add_images("val/examples", (images - low) / (high - low), step)


def add_predictions(writer, tag, images, labels, probabilities, classes, step):
    """Images: the predicted classes and their probabilities, green where right, red where wrong."""
    figure = Figure(figsize=(6, 6.4), dpi=80, layout="constrained")
    for number in range(min(EXAMPLES, len(images))):
        probability, predicted = probabilities[number].max(dim=0)
        right = predicted == labels[number]
        title = f"{classes[predicted]} ({probability:.0%})"
        if not right:
            title += f"\nis {classes[labels[number]]}"
        axes = figure.add_subplot(4, 4, number + 1, xticks=[], yticks=[])
        axes.imshow(images[number].permute(1, 2, 0), cmap="gray")  # matplotlib wants the channels last
        axes.set_title(title, color="green" if right else "red", size=9)
    writer.add_figure(tag, figure, step)


def add_projector(writer, features, images, labels, classes, step):
    """Projector: the last hidden layer's output for some images, as points in space, the images on them."""
    names = [classes[label] for label in labels]
    writer.add_embedding(features, names, images / 255, step, tag="val/features")


def look(network, images):
    """What goes into the network's last layer, flat (N, features), and the probabilities (N, num_classes)."""
    _, head = layers(network)[-1]
    inputs = []
    hook = head.register_forward_pre_hook(lambda layer, args: inputs.append(args[0].flatten(start_dim=1)))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # a compiled network calls no hooks
        # A few at a time: all activations of 500 images do not fit everywhere.
        probabilities = torch.cat([network(part).softmax(dim=1) for part in images.split(50)])
    hook.remove()
    return torch.cat(inputs), probabilities


def first(dataset, count):
    """The first images of a data set, uint8 (N, C, H, W), and their labels, int64 (N)."""
    images, labels = dataset.__getitems__(range(min(count, len(dataset))))
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
        writer = trainer.logger.experiment
        # Not through a DataLoader: that would draw a random number, and all that follow would be others.
        images, _ = first(trainer.datamodule.val_set, EXAMPLES)
        images = trainer.datamodule.normalise(images)
        add_layout(writer)
        add_graph(writer, module.network, images[:1].to(module.device))
        add_examples(writer, images, 0)
        add_weights(writer, module.network, 0)

    def on_validation_end(self, trainer, module):
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        # All processes take part in compute(): it collects what each of them has counted.
        probabilities, labels = module.val_probabilities.compute(), module.val_labels.compute()
        self.matrix = module.val_confusion.compute().cpu()
        if not trainer.is_global_zero:
            return
        writer, step = trainer.logger.experiment, last_step(trainer)
        add_weights(writer, module.network, step)
        add_pr_curves(writer, probabilities, labels, trainer.datamodule.classes, step)

    def on_train_epoch_end(self, trainer, module):
        # --max_steps or --max_time may end an epoch in its middle: then the last checkpoint is written here.
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.add_outcome(trainer, module)

    def on_train_end(self, trainer, module):
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.add_outcome(trainer, module)

    def add_outcome(self, trainer, module):
        """What the network has learnt. Before the last checkpoint, behind which nothing is repeated."""
        if not trainer.is_global_zero:
            return
        writer, step = trainer.logger.experiment, last_step(trainer)
        classes = trainer.datamodule.classes
        if self.matrix is not None:
            add_confusion_matrix(writer, self.matrix, classes, step)

        images, labels = first(trainer.datamodule.val_set, EMBEDDED)
        module.eval()  # batch norm must not learn from these images, dropout must not drop
        features, probabilities = look(module.network, trainer.datamodule.normalise(images.to(module.device)))
        module.train()
        probabilities = probabilities.cpu()
        wrong = probabilities.argmax(dim=1) != labels
        add_predictions(writer, "val/predictions", images, labels, probabilities, classes, step)
        add_predictions(writer, "val/mistakes", images[wrong], labels[wrong], probabilities[wrong], classes, step)
        add_projector(writer, features.cpu(), images, labels, classes, step)
