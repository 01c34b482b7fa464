"""Are the exercises of this lesson right? See lessons/check.py."""

import torch


def swallowed(exercise):
    output, batch = torch.full((8,), 89.0), {"angle": torch.full((8,), 90.0)}
    term = {"function": exercise.distance, "target": "angle"}
    if abs(exercise.value_of(term, output, batch) - 1) > 1e-6:
        return "a loss with a target has to compare it with the output"
    if abs(exercise.value_of({"function": exercise.distance}, output, batch) - 89**2) > 1e-2:
        return "a regularizer is called with the output alone"

    def mistaken(output, target=None):
        if target is not None:
            return output + "1"
        return output.mean()

    for case, wrong in (
        ("a target that is not in the batch", {"function": exercise.distance, "target": "angel"}),
        ("a TypeError inside of the loss", {"function": mistaken, "target": "angle"}),
    ):
        try:
            found = exercise.value_of(wrong, output, batch)
        except (Exception, SystemExit):
            continue
        return f"{case} goes unseen, the value is {found:.1f}. How can you know a regularizer without trying?"


def weights(exercise):
    for weight in (1.0, 100.0):
        output = torch.tensor(3.0, requires_grad=True)
        loss, logged = exercise.total_loss({"near": (output - 4) ** 2, "small": output**2}, {"small": weight})
        loss.backward()
        if abs(output.grad - (-2 + 6 * weight)) > 1e-3:
            return (
                f"with weight {weight:g} the gradient is {output.grad:g} and not {-2 + 6 * weight:g}: what is returned?"
            )
        if abs(loss - logged["loss"]) > 1e-3:
            return f"{loss:g} is trained and {logged['loss']:g} is logged"
        if abs(logged["small"] - 9) > 1e-3 or abs(logged["near"] - 1) > 1e-3:
            return "each term is logged as it is, without its weight: so runs with other weights can be compared"


def noisier(exercise):
    torch.manual_seed(0)
    clean = torch.zeros(28, 28)
    clean[8:20, 8:20] = 1
    noisy = clean + 0.2 * torch.randn(28, 28)

    def variation(image):
        return sum(image.diff(dim=dim).abs().mean().item() for dim in (0, 1))

    images = [exercise.denoise(noisy, weight) for weight in (0.0, 0.02, 0.2)]
    found = [variation(image) for image in images]
    if not torch.allclose(images[0], noisy, atol=1e-2):
        return "with weight 0 the image has to stay as it is"
    if not found[0] > found[1] > found[2]:
        values = ", ".join(f"{value:.3f}" for value in found)
        return f"weights 0, 0.02 and 0.2 give variations of {values}. What is made small?"
    if (images[2] - clean).abs().mean() > 0.8 * (noisy - clean).abs().mean():
        return "the image is smooth, and no nearer to the one without noise: both terms have to count"
    if abs(exercise.total_variation(clean) - variation(clean)) > 1e-4:
        return "total_variation() was right: the mistake is in how it is used"
