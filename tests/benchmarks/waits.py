"""Where does a training step wait for the GPU? Each line: how often in a step, by what, where.

python tests/benchmarks/waits.py                        on the GPU if there is one: torch itself says where it waits
python tests/benchmarks/waits.py --accelerator cpu      on a CPU: what would wait if this were a GPU

A GPU works behind the program. Whoever asks for a number of its (if loss > 3, .item(), .cpu()) waits until all that was
asked before is done, and then the GPU waits for the program. The steps of the last stage between two validations are
watched, ResNet-18 with crop and flip.
"""

import argparse
import contextlib
import logging
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS, FIRST, LAST = 12, 4, 9  # of these steps the last is not watched: it is followed by the end of the epoch
READ = {"tolist", "numpy", "cpu", "__array__"}  # on a CPU they are no operation, but they are read there
INDEXING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default}


def place():
    """The innermost line that is not torch's or ours, nor of the module that hands on warnings: file:number."""
    ours = (__file__, warnings.__file__)
    frames = traceback.extract_stack()
    frame = [frame for frame in frames if frame.filename not in ours and "/torch/" not in frame.filename][-1]
    path = Path(frame.filename)
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(*path.parts[-3:])}:{frame.lineno}"


class Operations(TorchDispatchMode):
    """Operations whose result, or its size, decides what the program does next."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags)
        if function in INDEXING:  # with a mask: how many are chosen?
            waits = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if waits:
            self.found[str(function), place()] += 1
        return function(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    """Methods that bring a tensor to the CPU; and numbers made into tensors, which are copied from there."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", "")
        words = [word for word in [*args[1:], *(kwargs or {}).values()] if isinstance(word, str)]
        to_cpu = name == "to" and "cpu" in words  # not where it is the device of the training that is given
        if name in READ or to_cpu or function is torch.tensor:
            self.found[name, place()] += 1
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_cpu(found):
    with Operations(found), Methods(found):
        yield


@contextlib.contextmanager
def on_gpu(found):
    def note(message, *_):
        if str(message).startswith("called a synchronizing CUDA operation"):
            found["a synchronizing operation", place()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def watch(accelerator):
    """Train; Counter of (by what, where) of the steps FIRST to LAST."""
    from steps import MadeUpImages, adam

    from src import train
    from src.models.classifier import Classifier
    from src.settings import Settings
    from src.utils.loggers import make_logger

    found, watching = Counter(), contextlib.ExitStack()

    class Watch(train.L.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == FIRST:
                watching.enter_context((on_cpu if accelerator == "cpu" else on_gpu)(found))
            elif batch_idx == LAST:
                watching.close()

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    data = MadeUpImages([3, 32, 32], 16, STEPS)
    data.augment = data.crop = data.flip = True
    model = Classifier([3, 32, 32], 10, "resnet18")
    train.attach_optimizer(model, adam, None, "epoch")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(batch_size=16, max_epochs=1, accelerator=accelerator)
        logger = make_logger("tensorboard", Path(folder), {}, 0)
        train.make_trainer(settings, Path(folder), logger, [], [Watch()], {}, model).fit(model, data)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu = torch.cuda.is_available()
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="gpu" if gpu else "cpu")
    accelerator = parser.parse_args().accelerator
    if accelerator == "gpu" and not gpu:
        parser.error("torch sees no GPU here: --accelerator cpu says what would wait")
    sys.path[:0] = [str(ROOT), str(HERE.parent), str(HERE)]
    found = watch(accelerator)
    print(f"watched {LAST - FIRST} steps on a {accelerator}")
    for (what, where), count in sorted(found.items()):
        print(f"{count / (LAST - FIRST):g} a step    {what}    {where}")


if __name__ == "__main__":
    main()
