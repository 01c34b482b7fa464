"""The target of this loss is misspelled. Nothing complains, and the network learns to answer zero.

python lessons/13-several-outputs-and-losses/exercises/1_swallowed.py

Repair value_of(): a mistake has to be seen.
"""

import torch


def distance(output, target=0.0):
    """The mean square distance to the target. Without one it is a regularizer: it wants small outputs."""
    return (output - target).square().mean()


def value_of(term, output, batch):
    """One term of a loss. term: "function", and the name of its "target" in the batch; a regularizer has no target."""
    try:
        return term["function"](output, batch[term["target"]])
    except (KeyError, TypeError):  # a regularizer
        return term["function"](output)


if __name__ == "__main__":
    batch = {"angle": torch.full((8,), 90.0)}
    for term in ({"function": distance, "target": "angel"}, {"function": distance}):
        try:
            print(f"{term.get('target', 'no target'):10} {value_of(term, torch.full((8,), 89.0), batch):.1f}")
        except KeyError as error:
            print(f"{term['target']:10} there is no {error} in the batch")
