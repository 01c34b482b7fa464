"""What the job does: put the parts together and train. run.py describes the job and starts it."""

import hashlib
import logging
import os
import sys
import warnings

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment
from lightning.pytorch.profilers import SimpleProfiler
from lightning.pytorch.utilities.model_summary import ModelSummary
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from src.datasets.cifar10 import CIFAR10
from src.datasets.colour_mnist import ColourMNIST
from src.datasets.folder import Folder
from src.datasets.mnist import MNIST
from src.models.classifier import Classifier
from src.models.networks import normalisation
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


def check(hparams):
    """What can be seen only where the job runs. Each process says so in its own log: it may be the only one."""
    gpus = torch.cuda.device_count()
    if gpus < hparams["gpus_per_node"]:
        log.error(f"--gpus_per_node {hparams['gpus_per_node']}, but torch sees {gpus} GPUs here")
        sys.exit(1)


def checksum(model):
    """A few letters that are the same only if all weights are, to the last bit."""
    digest = hashlib.sha256()
    for values in model.network.state_dict().values():
        digest.update(values.cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def main(hparams):
    """Train and test one run: each process of the job calls this.

    hparams: a dictionary with run_folder, dataset, arch, stem, pretrained, optimizer, criterion, lr, batch_size,
    max_epochs, num_workers, augment, seed, data_dir, nodes, gpus_per_node, tasks_per_node, cpus_per_task,
    precision, sync_batchnorm, cluster, logger, experiment_name, fast_dev_run, limit_train_batches, limit_val_batches,
    overfit_batches; with cluster local port, too
    """
    setup_logging()
    check(hparams)
    # Lightning's advice to use more workers is for data that is decoded sample by sample.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    L.seed_everything(hparams["seed"])
    threads = max(1, hparams["cpus_per_task"] - hparams["num_workers"])  # each worker takes a CPU, they get the others
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else Lightning sets another number where there are several processes

    datamodule = DATASETS[hparams["dataset"]](
        hparams["data_dir"],
        hparams["batch_size"],
        hparams["num_workers"],
        hparams["augment"],
        hparams["seed"],
    )
    if hparams["pretrained"]:  # the weights know images in colour, normalised as they were when they were trained
        datamodule.mean, datamodule.std = normalisation(hparams["arch"])
        datamodule.shape = [3, *datamodule.shape[1:]]  # three means make three channels of a grey one
    model = Classifier(
        hparams["arch"],
        hparams["stem"],
        hparams["pretrained"],
        hparams["optimizer"],
        hparams["criterion"],
        hparams["lr"],
        datamodule.shape,
        len(datamodule.classes),
    )
    batch_norms = any(isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in model.modules())
    if hparams["sync_batchnorm"] and batch_norms and not hparams["gpus_per_node"]:
        log.error("--sync_batchnorm needs GPUs (--gpus_per_node): torch has no SyncBatchNorm for CPUs")
        sys.exit(1)
    summary = str(ModelSummary(model, max_depth=-1))  # -1: down to the last layer
    log_once(f"the network\n{summary}")

    run_folder = hparams["run_folder"]
    not_shown = ("run_folder", "data_dir", "gpus_per_node", "cluster", "port", "logger", "experiment_name")
    shown = {key: value for key, value in hparams.items() if key not in not_shown}

    timer = Timer()
    callbacks = [ModelCheckpoint(run_folder / "checkpoints")]
    fast_dev_run = hparams["fast_dev_run"]  # without a logger
    if hparams["logger"] == "tensorboard" and not fast_dev_run:  # the others get the numbers, not the pictures
        callbacks.append(TensorBoardPages(shown))
    callbacks.append(timer)  # the last, so that it counts what the others take
    profiler = SimpleProfiler(run_folder, "profiler")
    # Where the processes find each other. To requeue a job is not Lightning's business here.
    slurm = hparams["cluster"] == "slurm"
    environment = SLURMEnvironment(auto_requeue=False) if slurm else LightningEnvironment()
    trainer = L.Trainer(
        accelerator="gpu" if hparams["gpus_per_node"] else "cpu",
        devices=hparams["tasks_per_node"],
        num_nodes=hparams["nodes"],
        strategy="ddp" if hparams["nodes"] * hparams["tasks_per_node"] > 1 else "auto",
        plugins=[environment],
        precision=hparams["precision"],
        sync_batchnorm=hparams["sync_batchnorm"],
        use_distributed_sampler=False,  # the datamodule divides the images, and without counting any of them twice
        max_epochs=hparams["max_epochs"],
        fast_dev_run=fast_dev_run,
        limit_train_batches=hparams["limit_train_batches"],
        limit_val_batches=hparams["limit_val_batches"],
        overfit_batches=hparams["overfit_batches"],
        logger=None if fast_dev_run else make_logger(hparams, shown),
        callbacks=callbacks,
        profiler=profiler if rank_zero_only.rank == 0 else None,  # else two nodes write to one file
        enable_model_summary=False,  # it is in the log already
        enable_progress_bar=sys.stdout.isatty(),  # in a log file a progress bar is a thousand lines
    )
    if trainer.is_global_zero:
        (run_folder / "model_summary.txt").write_text(f"{summary}\n")
    # With several processes Lightning seeds again here. With one it does not, and its random crops would be others.
    torch.manual_seed(hparams["seed"])
    trainer.fit(model, datamodule)
    log_once("\n".join(profiler.summary().splitlines()[:20]))  # the costliest; all are in fit-profiler*.txt
    [metrics] = trainer.test(model, datamodule, verbose=False)
    log_once(
        f"test loss: {metrics['test/loss']:.4f}    test accuracy: {metrics['test/accuracy']:.4f}"
        f"    seconds per epoch: {timer.time_elapsed('train') / trainer.max_epochs:.2f}"
    )
    # From every process: what it had, and the weights, which have to be the same in all.
    threads = torch.get_num_threads()
    log.info(f"CPUs: {hparams['cpus_per_task']}    workers: {hparams['num_workers']}    threads: {threads}")
    log.info(f"the weights are {checksum(model)}")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else a thread of gloo's may abort Python while it shuts down
