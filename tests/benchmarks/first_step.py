"""src/train.py fit with a stopwatch, up to the end of the first step: launching.py starts this.

first_step.py FOLDER FLAGS writes FOLDER.json, {part: seconds}. $BENCHMARK_BEGAN: time.time() when it was started.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from stopwatch import Stopwatch

from src import train as last_stage

began = float(os.environ["BENCHMARK_BEGAN"])
watch = Stopwatch()
watch.seconds["imports"] = time.time() - began


class Stop(last_stage.L.Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        self.start = time.time()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        now = time.time()
        seconds = watch.seconds | {"first step": now - self.start}
        seconds |= {"the rest": now - began - sum(seconds.values()), "total": now - began}
        if trainer.is_global_zero:
            Path(f"{sys.argv[1]}.json").write_text(json.dumps(seconds))
        trainer.strategy.barrier()
        os._exit(0)


def main():
    from lightning.pytorch.strategies import DDPStrategy

    from src.datasets.mnist import MNIST

    for name in ("merge", "read", "instantiate"):
        watch.clock(last_stage, name, "configuration")
    watch.clock(last_stage, "make_logger", "logger")
    watch.clock(last_stage, "ModelSummary", "summary of the network")
    watch.clock(last_stage.Classifier, "__init__", "network")
    watch.clock(DDPStrategy, "setup_environment", "process group")
    for name in ("prepare_data", "setup", "make_loader"):
        watch.clock(MNIST, name, "data")
    text = last_stage.merge(sys.argv[2:])
    last_stage.train("fit", text, sys.argv[1], callbacks=[Stop()])


if __name__ == "__main__":
    main()
