"""Fetch pretrained weights where there is internet, for the jobs that have none.

python src/utils/cache_models.py resnet18 vit_b_16     fetch those that are not there yet
python src/utils/cache_models.py --check resnet18      fetch nothing; say so if they are missing

The files go where torch looks for them: $TORCH_HOME/hub/checkpoints, or where that is not set
~/.cache/torch/hub/checkpoints.
"""

import argparse
import sys
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision import models


def weights_file(arch):
    """Where torch looks for the weights before it downloads them."""
    url = models.get_model_weights(arch).DEFAULT.url
    try:
        path = Path(torch.hub.get_dir()).expanduser() / "checkpoints" / url.split("/")[-1]
        if path.exists() and not path.is_file():  # reading a FIFO would block forever
            sys.exit(f"{path} is not a file: delete it and fetch it again")
    except (OSError, RuntimeError, ValueError) as error:  # no right to look; ~ of a user who is not there
        sys.exit(f"TORCH_HOME {torch.hub.get_dir()[:200]!r} cannot be read ({error}): name another folder")
    return path


def check_weights(arch):
    """End the program with one sentence when the weights are missing, or are not a file of weights and nothing else."""
    path = weights_file(arch)
    if not path.exists():
        sys.exit(
            f"the weights of {arch} are not in {path.parent}: on a node with internet, such as the login node, run "
            f"`python src/utils/cache_models.py {arch}`"
        )
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # a file that could run code is refused
    except Exception:  # each way to be broken has its own error
        sys.exit(f"{path} cannot be read as weights: delete it and fetch it again")


def fetch(arch):
    """Download the weights if they are not there. Their checksum is part of the file's name; torch compares it."""
    weights, path = models.get_model_weights(arch).DEFAULT, weights_file(arch)
    if not path.exists():
        try:
            weights.get_state_dict(check_hash=True, weights_only=True)
        except (OSError, RuntimeError, HTTPException) as error:  # no network, no right to write; another checksum
            sys.exit(
                f"{arch} could not be fetched ({error}). From a machine with internet, copy {weights.url} to {path}"
            )
    check_weights(arch)
    print(f"{arch}: {path}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archs", nargs="+", metavar="NAME", help="as --arch of run.py calls it")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for arch in args.archs:
        if arch not in models.list_models(module=models):
            parser.error(f"torchvision has no network {arch!r}")
    for arch in args.archs:
        if args.check:
            check_weights(arch)
        else:
            fetch(arch)


if __name__ == "__main__":
    main()
