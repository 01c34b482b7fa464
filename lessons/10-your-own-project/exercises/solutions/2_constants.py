"""Solution: a buffer is a part of the model that is not trained: it moves with it and is saved with it.

python lessons/10-your-own-project/exercises/solutions/2_constants.py
"""

import torch
from torch import nn


class Scaled(nn.Module):
    def __init__(self, scale):
        """scale: by what each of the five inputs is divided, a tensor (5)"""
        super().__init__()
        self.register_buffer("scale", scale)
        self.network = nn.Linear(5, 1)

    def forward(self, inputs):
        return self.network(inputs / self.scale)


if __name__ == "__main__":
    torch.manual_seed(0)
    trained = Scaled(torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0]))
    loaded = Scaled(torch.ones(5))
    loaded.load_state_dict(trained.state_dict())
    inputs = torch.full((1, 5), 100.0)
    print(f"before saving: {trained(inputs).item():.3f}, after loading: {loaded(inputs).item():.3f}")
    print("what moves to the GPU with the model:", list(trained.to("meta").state_dict()))
