"""Are the exercises of this lesson right? See lessons/check.py."""

import torch

torch.set_num_threads(1)  # workers are forks: a fork must not need the threads of its parent


def fetch(exercise):
    calls = []

    class Counted(exercise.Digits):
        def __getitem__(self, index):
            calls.append(index)
            return super().__getitem__(index)

    torch.manual_seed(0)
    images, labels = torch.randint(256, (100, 1, 28, 28), dtype=torch.uint8), torch.arange(100)
    batches = list(exercise.make_loader(Counted(images, labels), 64))
    if calls:
        return "__getitem__ is still called for single images. What does the DataLoader look for before it does that?"
    if [tuple(batch[0].shape) for batch in batches] != [(64, 1, 28, 28), (36, 1, 28, 28)]:
        return "the batches have other shapes than before. Which function of the DataLoader makes batches of images?"
    found = torch.cat([batch[1] for batch in batches])
    if sorted(found.tolist()) != list(range(100)) or found.tolist() == list(range(100)):
        return "an epoch has to hold each image once, in random order"
    if not torch.allclose(torch.cat([batch[0] for batch in batches]), images[found] / 255):
        return "the images are not those of __getitem__: float32, from 0 to 1, each with its label"


def same_noise(exercise):
    runs = []
    for _ in range(2):
        torch.manual_seed(1)
        loader = exercise.make_loader(exercise.Moved(16))
        epochs = [[move.item() for _, moves in loader for move in moves] for _ in range(2)]
        runs.append(epochs)
    first, second = runs[0]
    if len(first) != 16 or not all(0 <= move <= 1 for move in first):
        return "16 images need 16 moves from 0 to 1"
    if len(set(first)) < len(first):
        return "two images are moved alike. Each worker has a copy of the dataset: what is in it?"
    if set(first) & set(second):
        return "the workers draw different numbers now, and in the second epoch the same again"
    if runs[0] != runs[1]:
        return "all numbers differ, and torch.manual_seed() does not bring them back: nobody can repeat this training"
    torch.manual_seed(2)
    if [move.item() for _, moves in loader for move in moves] == first:
        return "another torch.manual_seed() changes nothing"
