"""Step cost: Lightning's Trainer, our callbacks and TensorBoard over a bare loop with the same batches."""

import logging
import tempfile
import time
import warnings
from pathlib import Path

from results import ROOT, Results, arguments, synchronize  # isort: skip  (it makes the benchmarks importable)

import torch
from measure import rounds, run
from pages import shares
from steps import ALL, CASES, LOOP, WARM_UP, Clocked, MadeUpImages, Where

LOOPS = {
    LOOP: "bare loop",
    "+ Lightning's Trainer without its search for GPUs": "+ Trainer",
    ALL: "+ callbacks, metrics, TensorBoard",
}
ROUNDS = 3


class DeviceClock(Clocked):
    """The mean of a step: a GPU works behind the program, so the time between two batches means nothing by itself."""

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            if number in (WARM_UP, self.steps - 1):
                synchronize()
                self.asked[-1] = time.perf_counter()
            yield batch

    def microseconds(self):
        return 1e6 * (self.asked[-1] - self.asked[WARM_UP]) / (len(self.asked) - 1 - WARM_UP)


class OnDevice(MadeUpImages):
    """The images are where the network is: nothing is loaded in a step."""

    clock = DeviceClock

    def __init__(self, shape, batch_size, steps):
        super().__init__(shape, batch_size, steps, on_device=True)


def pages(accelerator, smoke):
    """What TensorBoard's pages take: (percent of an epoch, seconds per training)."""
    flags = f"--accelerator {accelerator} --profile simple --data ColourMNIST --data.on_device true"
    if smoke:
        flags += " --model.arch cnn --batch_size 50 --limit_train_batches 5 --limit_val_batches 2 --max_epochs 2"
    else:
        flags += " --model.arch resnet18 --model.stem cifar --model.channels_last true --batch_size 500 --max_epochs 3"
    with tempfile.TemporaryDirectory() as folder:
        run(f"python src/train.py fit --run_folder {folder}/run --precision bf16-mixed {flags}", ROOT)
        [report] = Path(folder).glob("run/fit-profiler*.txt")
        return shares(report)


def main():
    args = arguments(__doc__)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    results = Results(
        args.out,
        "The images are on the device. Microseconds per step, the mean over all steps but the first; TensorBoard's "
        "pages in percent of an epoch, and in seconds per training.",
    )
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    tiny = ("mlp", [1, 28, 28], 64, 30 if args.smoke else 400), Where(accelerator, images=OnDevice)
    cases = {"mlp, batch 64, 32 bits": tiny}
    if args.smoke:
        cases["cnn, batch 16, bf16"] = ("cnn", [3, 32, 32], 16, 20), Where(accelerator, "bf16-mixed", OnDevice)
    else:
        where = Where(accelerator, "bf16-mixed", OnDevice, {"stem": "cifar", "channels_last": True})
        cases["ResNet-18, batch 512, bf16"] = ("resnet18", [3, 32, 32], 512, 60), where
    for title, (shape, where) in cases.items():
        results.rows |= {f"{title}: {row}": {} for row in LOOPS.values()}  # in this order
        for _, name in rounds(LOOPS, 1 if args.smoke else ROUNDS):
            function, options = CASES[name]
            results.add(f"{title}: {LOOPS[name]}", microseconds_per_step=function(*shape, **options, where=where))
    share, once = pages(accelerator, args.smoke)
    results.add("TensorBoard's pages", percent_of_an_epoch=share, seconds_per_training=once)


if __name__ == "__main__":
    main()
