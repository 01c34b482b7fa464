"""An epoch takes several times as long as it could. Is it the training or the validation?

python mistakes/slow.py --limit_train_batches 100 --max_epochs 2
python mistakes/slow.py --limit_train_batches 100 --max_epochs 2 --limit_val_batches 1

Repair it: the metrics stay the same. Solution: slow_solution.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run
import src.main
from src.models.classifier import Classifier


class Patient(Classifier):
    def validation_step(self, batch):
        for image, label in zip(*batch, strict=True):
            super().validation_step((image[None], label[None]))


if __name__ == "__main__":
    src.main.Classifier = Patient  # the class that main() makes its network of
    sys.argv += ["--cluster", "debug"]  # in this process: a job would not know of the line above
    run.main()
