"""Are the exercises of this lesson right? See lessons/check.py."""

import torch


def classes(exercise):
    processes = [exercise.Spectra("."), exercise.Spectra(".")]
    processes[0].prepare_data()
    for rank, spectra in enumerate(processes):
        try:
            spectra.setup("fit")
            names, items = spectra.classes, len(spectra.train_set)
        except AttributeError as error:
            return f"process {rank}: {error}. In which process was it set?"
        if list(names) != ["gold", "iron", "lead"] or items != 10:
            return f"process {rank} has the classes {names} and {items} items, not three classes and 10 items"
        if [label.item() for _, label in spectra.train_set] != [0] * 5 + [1] * 3 + [2] * 2:
            return f"the labels in process {rank} are not the places of the names in classes"


def constants(exercise):
    torch.manual_seed(0)
    scale = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])
    trained, loaded = exercise.Scaled(scale), exercise.Scaled(torch.ones(5))
    inputs = 100 * torch.randn(8, 5)
    expected = torch.nn.functional.linear(inputs / scale, trained.network.weight, trained.network.bias)
    if not torch.allclose(trained(inputs), expected, atol=1e-4):
        return "the inputs are not divided by the scale any more"
    loaded.load_state_dict(trained.state_dict())
    if not torch.allclose(loaded(inputs), expected, atol=1e-4):
        return "the checkpoint does not hold the scale. How does a module know which of its tensors belong to it?"
    try:
        trained.to("meta")(inputs.to("meta"))
    except RuntimeError:
        return "the scale stays behind when the model moves"
    if len(list(trained.parameters())) != 2:
        return "the scale is saved and moves, and an optimizer would train it, too"
