"""Are the exercises of this lesson right? See lessons/check.py."""

import torch
from torchvision import models


def head(exercise):
    for arch in ["resnet18", "resnet50", "densenet121", "mobilenet_v3_small"]:
        with torch.device("meta"):
            network = models.get_model(arch)
            before = dict(network.named_parameters())
            network = exercise.new_head(network, 7).eval()
            expected = {
                name: tuple(values.shape) for name, values in models.get_model(arch, num_classes=7).named_parameters()
            }
            after = dict(network.named_parameters())
            try:
                shape = tuple(network(torch.empty(2, 3, 64, 64)).shape)
            except RuntimeError as error:
                return f"{arch}: {str(error).rstrip('.')}. How can the layer that is there tell you its size?"
        if shape != (2, 7):
            return f"{arch} answers with {shape[1]} classes, not with 7. print(network): what is its last layer called?"
        if {name: tuple(values.shape) for name, values in after.items()} != expected:
            return f"{arch} has other layers than torchvision's for 7 classes: which one too many?"
        replaced = sum(after[name] is not before[name] for name in after)
        if replaced > 2:
            return f"{arch}: {replaced} parameters are new. A last layer has two, all others have to stay"


def loss(exercise):
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(50, 10, requires_grad=True), torch.randint(10, (50,))
    probabilities = logits.exp() / logits.exp().sum(dim=1, keepdim=True)
    true = -probabilities[torch.arange(50), labels].log().mean()
    found = exercise.loss_function(logits, labels)
    if found < 0:
        return "a logarithm of a probability is never above zero. Is a logit one?"
    if abs(found - true) > 1e-4:
        return f"{found:.4f} for logits whose loss is {true:.4f}"
    wrong = exercise.loss_function(torch.tensor([[200.0, 0.0]]), torch.tensor([1]))
    if not abs(wrong - 200) < 1e-3:
        return (
            f"a network that is very sure and wrong gets {wrong:.1f}, and it is 200. Is there one function for it all?"
        )


def frozen(exercise):
    torch.manual_seed(0)
    network = exercise.Finetuned(exercise.make_body(), 8, 10)
    images = 3 + torch.randn(64, 1, 28, 28)
    before = network.eval().body(images)
    if network.train() is not network:
        return "train() returns the network, so that calls can be chained"
    network(images).sum().backward()
    after = network.eval().body(images)
    if not torch.equal(before, after):
        return "requires_grad_(False) stops gradients. Which layer of the body learns without any?"
    if any(parameter.grad is not None for parameter in network.body.parameters()):
        return "the body gets gradients: it is not frozen any more"
    if network.head.weight.grad is None:
        return "the head has to learn, and gets no gradient"
    if not network.train().head.training:
        return "train() has to reach the head"
