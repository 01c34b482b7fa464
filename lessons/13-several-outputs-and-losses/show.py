"""Look at what a two-headed network predicted.

python lessons/13-several-outputs-and-losses/show.py RUN

RUN is the run of `python run.py predict`. Prints how many digits are right, and writes predictions.png into its folder:
ten test images, and below each what the network made of it again.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from src.datasets.digits import Digits  # noqa: E402
from src.launch.records import find_run  # noqa: E402

SHOWN = 10  # images


def main():
    if len(sys.argv) != 2:
        sys.exit("which run? python lessons/13-several-outputs-and-losses/show.py RUN")
    folder = find_run(sys.argv[1])
    if not (folder / "predictions.npz").is_file():
        sys.exit(f"{folder} holds no predictions.npz: python run.py predict {folder.name} writes one, in a new run")
    predictions = np.load(folder / "predictions.npz")
    digits = predictions["digit"].argmax(axis=1)  # logits (10000, 10)
    images = predictions["image"]  # (10000, 1, 28, 28)
    truth = Digits(train=False)

    right = (digits == truth.labels.numpy()).mean()
    difference = np.square(images - truth.images.numpy() / 255).mean()
    print(f"right digits: {right:.4f}    mean square difference of the images: {difference:.4f}")

    figure = Figure(figsize=(SHOWN, 2.4), dpi=80, layout="constrained")
    for number in range(SHOWN):
        for row, image in enumerate((truth.images[number, 0], images[number, 0])):
            axes = figure.add_subplot(2, SHOWN, row * SHOWN + number + 1, xticks=[], yticks=[])
            axes.imshow(image, cmap="gray")
        axes.set_xlabel(digits[number])
    figure.savefig(folder / "predictions.png")
    print(f"wrote {folder / 'predictions.png'}")


if __name__ == "__main__":
    main()
