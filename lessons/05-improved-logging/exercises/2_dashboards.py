"""The same numbers for other dashboards: "tensorboard" works. Add "csv", and one that your group uses.

python exercises/2_dashboards.py tensorboard
python exercises/2_dashboards.py csv
python exercises/2_dashboards.py mlflow          after pip install mlflow

All loggers of Lightning have the two methods that main() calls, so only make_logger() has to change.
"""

import sys
from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger

LOGS = Path("logs")


def make_logger(name):
    """The logger of that name; it writes below LOGS."""
    if name == "tensorboard":
        return TensorBoardLogger(LOGS, name="dashboards", version=name)
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
