"""Step record: the preset cifar10_fast from the command to the test accuracy, compiled and not, three seeds each."""

from images import choose
from results import Results, arguments

SEEDS = (1, 2, 3)


def main():
    args = arguments(__doc__)
    from cifar import SMALLEST, train

    flags, name = choose(args.work)
    epochs, more = (1, f"{SMALLEST} {flags}") if args.smoke else (args.epochs, flags + " --data.on_device true")
    results = Results(
        args.out,
        f"ResNet-18 with a 3x3 stem, {name}, {epochs} epochs of 45,000 images. Seconds of the whole command, from the "
        "imports to the test; of the training in it, with compilation; accuracy on the test images in percent. Only "
        "the first compiled run compiles everything: the others find its results on the disk.",
    )
    for seed in SEEDS[: 1 if args.smoke else None]:
        for compiled in (True, False):
            row = "compiled" if compiled else "not compiled"
            if results.count(row) >= seed:  # measured before this step was interrupted
                continue
            cache = str(args.work / "compiled")
            whole, training, accuracy = train(epochs, str(compiled).lower(), seed, more, cache)
            results.add(row, whole_command=whole, training=training, accuracy=accuracy)


if __name__ == "__main__":
    main()
