"""The weights of the terms change what is logged, and nothing else.

python lessons/13-several-outputs-and-losses/exercises/2_weights.py

Repair total_loss().
"""

import torch


def total_loss(terms, weights):
    """The loss to be trained, and what is logged: each term as it is, and their weighted sum as "loss".

    terms: tensors by name. weights: numbers by name; a term without one counts once.
    """
    logged = {name: value.item() for name, value in terms.items()}
    logged["loss"] = sum(weights.get(name, 1.0) * value for name, value in logged.items())
    return sum(terms.values()), logged


if __name__ == "__main__":
    for weight in (1.0, 100.0):
        output = torch.tensor(3.0, requires_grad=True)
        loss, logged = total_loss({"near": (output - 4) ** 2, "small": output**2}, {"small": weight})
        loss.backward()
        print(f"weight {weight:5}: logged {logged['loss']:6.1f}, trained {loss:.1f}, gradient {output.grad:.1f}")
