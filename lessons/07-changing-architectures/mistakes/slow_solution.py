"""The solution of slow.py: the images of a batch go through the network together, and the metrics count them together.

python mistakes/slow_solution.py --limit_train_batches 100 --max_epochs 2
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run
import src.main
from src.models.classifier import Classifier


class Patient(Classifier):
    def validation_step(self, batch):
        super().validation_step(batch)


if __name__ == "__main__":
    src.main.Classifier = Patient  # the class that main() makes its network of
    sys.argv += ["--cluster", "debug"]  # in this process: a job would not know of the line above
    run.main()
