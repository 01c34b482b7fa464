"""What the job does: put the parts together and train. run.py describes the job and starts it."""

import logging
import os
import sys
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities.model_summary import ModelSummary
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from src.datasets.cifar10 import CIFAR10
from src.datasets.colour_mnist import ColourMNIST
from src.datasets.folder import Folder
from src.datasets.mnist import MNIST
from src.models.classifier import Classifier
from src.utils.logs import setup_logging
from src.utils.tensorboard import TensorBoardPages

log = logging.getLogger(__name__)
log_once = rank_zero_only(log.info)  # what is the same in all processes of the job: one of them says it

DATASETS = {"mnist": MNIST, "colour-mnist": ColourMNIST, "cifar10": CIFAR10, "folder": Folder}


def make_logger(hparams, shown):
    """Where the metrics go. shown: the hyperparameters that are shown beside them."""
    run_folder = hparams["run_folder"]
    if hparams["logger"] == "tensorboard":
        logger = TensorBoardLogger(run_folder.parent, name="", version=run_folder.name, default_hp_metric=False)
    elif hparams["logger"] == "csv":
        logger = CSVLogger(run_folder.parent, name="", version=run_folder.name)
    elif hparams["logger"] == "mlflow":
        store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run_folder.parent / 'mlflow.db'}")
        logger = MLFlowLogger(hparams["experiment_name"], run_name=run_folder.name, tracking_uri=store)
    else:
        logger = WandbLogger(run_folder.name, save_dir=run_folder, project=hparams["experiment_name"])
    logger.log_hyperparams(shown)
    return logger


def main(hparams):
    """Train and test one run.

    hparams: a dictionary with run_folder, dataset, arch, optimizer, criterion, lr, batch_size, max_epochs, num_workers,
    augment, seed, data_dir, nodes, gpus_per_node, logger, experiment_name
    """
    setup_logging()
    # Lightning's advice to use more workers is for data that is decoded sample by sample.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    L.seed_everything(hparams["seed"])
    torch.set_num_threads(1)  # one, as before: the digits stay the same however many CPUs there are

    datamodule = DATASETS[hparams["dataset"]](
        hparams["data_dir"],
        hparams["batch_size"],
        hparams["num_workers"],
        hparams["augment"],
    )
    model = Classifier(
        hparams["arch"],
        hparams["optimizer"],
        hparams["criterion"],
        hparams["lr"],
        datamodule.shape,
        len(datamodule.classes),
    )
    summary = str(ModelSummary(model, max_depth=-1))  # -1: down to the last layer
    log_once(f"the network\n{summary}")

    run_folder = hparams["run_folder"]
    not_shown = ("run_folder", "data_dir", "nodes", "gpus_per_node", "logger", "experiment_name")
    shown = {key: value for key, value in hparams.items() if key not in not_shown}

    timer = Timer()
    callbacks = [ModelCheckpoint(run_folder / "checkpoints")]
    if hparams["logger"] == "tensorboard":  # the others get the numbers, not the pictures
        callbacks.append(TensorBoardPages(shown))
    callbacks.append(timer)  # the last, so that it counts what the others take
    profiler = SimpleProfiler(run_folder, "profiler")
    trainer = L.Trainer(
        accelerator="gpu" if hparams["gpus_per_node"] else "cpu",
        devices=hparams["gpus_per_node"] or 1,
        num_nodes=hparams["nodes"],
        max_epochs=hparams["max_epochs"],
        logger=make_logger(hparams, shown),
        callbacks=callbacks,
        profiler=profiler,
        enable_model_summary=False,  # it is in the log already
        enable_progress_bar=sys.stdout.isatty(),  # in a log file a progress bar is a thousand lines
    )
    if trainer.is_global_zero:
        (run_folder / "model_summary.txt").write_text(f"{summary}\n")
    trainer.fit(model, datamodule)
    log_once("\n".join(profiler.summary().splitlines()[:20]))  # the costliest; all are in fit-profiler.txt
    [metrics] = trainer.test(model, datamodule, verbose=False)
    log_once(
        f"test loss: {metrics['test/loss']:.4f}    test accuracy: {metrics['test/accuracy']:.4f}"
        f"    seconds per epoch: {timer.time_elapsed('train') / hparams['max_epochs']:.2f}"
    )
