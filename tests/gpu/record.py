"""Step record: the preset cifar10_fast from the command to the test accuracy, compiled and not, three seeds each."""

import os

from results import Results, arguments  # isort: skip  (it makes the benchmarks importable)

from cifar import SMALLEST, train
from copied_cifar10 import choose

SEEDS = (1, 2, 3)


def main():
    args = arguments(__doc__)
    data, name = choose(args.work)
    flags = f"--data {type(data).__module__}.{type(data).__name__} --data_dir {data.data_dir}"
    epochs, more = (1, f"{SMALLEST} {flags}") if args.smoke else (args.epochs, flags + " --data.on_device true")
    results = Results(
        args.out,
        f"ResNet-18 with a 3x3 stem, {name}, {epochs} epochs of 45,000 images. Seconds of the whole command, from the "
        "imports to the test; of the training in it, with compilation; accuracy on the test images in percent. "
        "After each start of this step, the first compiled run compiles everything; the others find it on the disk.",
    )
    for seed in SEEDS[: 1 if args.smoke else None]:
        for compiled in (True, False):
            row = "compiled" if compiled else "not compiled"
            if results.count(row) >= seed:  # measured before this step was interrupted
                continue
            cache = os.environ["TORCHINDUCTOR_CACHE_DIR"]
            whole, training, accuracy = train(epochs, str(compiled).lower(), seed, more, cache)
            results.add(row, whole_command=whole, training=training, accuracy=accuracy)


if __name__ == "__main__":
    main()
