"""Solution: the same numbers in TensorBoard, in a CSV file, in MLflow, in Weights & Biases.

python exercises/solutions/2_dashboards.py tensorboard    then  tensorboard --logdir logs
python exercises/solutions/2_dashboards.py csv            then open logs/dashboards/csv/metrics.csv
python exercises/solutions/2_dashboards.py mlflow         then  mlflow ui --backend-store-uri sqlite:///logs/mlflow.db
python exercises/solutions/2_dashboards.py wandb          with WANDB_MODE=offline it needs neither account nor internet
"""

import importlib.util
import sys
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

LOGS = Path("logs")


def make_logger(name):
    """The logger of that name; it writes below LOGS."""
    LOGS.mkdir(exist_ok=True)
    if name in ("mlflow", "wandb") and importlib.util.find_spec(name) is None:
        sys.exit(f"{name} is not installed: pip install {name}")
    if name == "tensorboard":
        return TensorBoardLogger(LOGS, name="dashboards", version=name)
    if name == "csv":
        return CSVLogger(LOGS, name="dashboards", version=name)
    if name == "mlflow":
        return MLFlowLogger("dashboards", run_name=name, tracking_uri=f"sqlite:///{LOGS.resolve()}/mlflow.db")
    if name == "wandb":
        return WandbLogger(name, save_dir=LOGS, project="dashboards")
    sys.exit(f"there is no logger {name!r}")


def main(name):
    logger = make_logger(name)
    logger.log_hyperparams({"lr": 0.1})
    for step in range(100):
        logger.log_metrics({"val/loss": 0.9**step}, step=step)
    logger.finalize("success")  # writes what is still held back


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
