"""The solution of late.py: a parameter is unfrozen with requires_grad_(); it has no unfreeze().

python mistakes/late_solution.py --limit_train_batches 5 --limit_val_batches 1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import run
import src.main
from src.models.classifier import Classifier


class FirstLayerLater(Classifier):
    def on_train_epoch_start(self):
        first_layer = list(self.network.parameters())[:2]  # weight and bias
        if self.current_epoch == 0:
            for parameter in first_layer:
                parameter.requires_grad_(False)
        if self.current_epoch == 5:
            for parameter in first_layer:
                parameter.requires_grad_(True)


if __name__ == "__main__":
    src.main.Classifier = FirstLayerLater  # the class that main() makes its network of
    sys.argv += ["--cluster", "debug"]  # in this process: a job would not know of the line above
    run.main()
