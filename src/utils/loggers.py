"""Where the metrics go. A run that goes on writes to the same curves, and no step stands there twice."""

import csv
import importlib.util
import os

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.utils.tensorboard.summary import hparams as hparams_summary

from src.launch.records import name_of


def make_logger(name, run_folder, hparams, step):
    """The logger of that name, or the object itself if it is one.

    Args:
        name: tensorboard, csv, mlflow, wandb, or a Logger
        run_folder: where it writes
        hparams: what is shown beside the metrics
        step: where the training stands: what was logged later, before it was stopped, is taken back
    """
    if isinstance(name, Logger):
        return name
    if name == "tensorboard":
        logger = TensorBoardLogger(
            run_folder.parent, name="", version=run_folder.name, default_hp_metric=False, purge_step=step
        )
    elif name == "csv":
        before = read_csv(run_folder / "metrics.csv", step)
        logger = CSVLogger(run_folder.parent, name="", version=run_folder.name)
        if before and rank_zero_only.rank == 0:
            logger.experiment.metrics = before
            logger.save()
    elif name == "mlflow":
        store = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{run_folder.parent / 'mlflow.db'}")
        logger = MLFlowLogger("runs", run_name=name_of(run_folder), tracking_uri=store, run_id=known_id(run_folder))
        remember_id(run_folder, logger)
    else:
        run = name_of(run_folder).replace("/", "-")
        logger = WandbLogger(run, save_dir=run_folder, id=run, resume="allow")
    if not step:
        logger.log_hyperparams(hparams)
        if name == "tensorboard" and rank_zero_only.rank == 0:
            add_hparams(logger.experiment, hparams)
    return logger


def check_logger(name) -> None:
    """Refuse a logger whose package is missing.

    Raises:
        ValueError: with one sentence
    """
    if name in ("mlflow", "wandb") and importlib.util.find_spec(name) is None:
        raise ValueError(f"--logger {name} needs a package that is not installed: pip install {name}")


def add_hparams(writer, hparams):
    """TensorBoard's HParams: a row for the run, with the last values of its curves, also when it is stopped."""
    # Left out is what says which columns there are: without it TensorBoard looks, and begins with those that differ.
    _, *summaries = hparams_summary(hparams, {})
    for summary in summaries:
        writer.file_writer.add_summary(summary)


def shown_hparams(config):
    """The configuration as a flat dictionary, without what is the same in all runs."""
    flat = {
        key.replace("init_args.", "").removesuffix(".class_path"): value
        for key, value in vars(config.clone().as_flat()).items()
        if isinstance(value, (bool, int, float, str)) and not key.startswith(("job", "run", "ckpt", "config"))
    }
    return dict(sorted(flat.items()))


def read_csv(path, step):
    """The rows of a CSVLogger's file up to that step."""
    if not path.is_file():
        return []
    with open(path, newline="") as file:
        rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]
    return [row for row in rows if int(row["step"]) < step]


def known_id(run_folder):
    path = run_folder / "mlflow_run_id.txt"
    return path.read_text().strip() if path.is_file() else None


@rank_zero_only
def remember_id(run_folder, logger):
    (run_folder / "mlflow_run_id.txt").write_text(f"{logger.run_id}\n")
