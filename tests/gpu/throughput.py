"""Step throughput: images per second from the device, memory, HDF5, and sample by sample."""

import time
from contextlib import closing

from results import Results, arguments, synchronize  # isort: skip  (it makes the benchmarks importable)

import torch
from data_path import AUGMENT, TO_TENSOR, InMemory, Pixels, make_files
from steps import Where, quiet_trainer
from torch.utils.data import DataLoader
from torchvision import transforms

from src.datasets.hdf5_images import HDF5Images
from src.hdf5.pack import ImageWriter, find_folder
from src.models.classifier import Classifier

BATCH_SIZE = 500
SECONDS, WARM_UP = 1.5, 5  # batches


def ours(module, device):
    """The batches of a data module as the network gets them, epoch after epoch."""
    module.trainer = quiet_trainer(where=Where("gpu" if device.type == "cuda" else "cpu"))
    module.trainer.training = True
    module.setup("fit")
    loader = module.train_dataloader()
    while True:
        for images, labels in loader:
            batch = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            yield module.on_after_batch_transfer(batch, 0)


def one_by_one(images, num_workers, device):
    """The batches of torchvision's usual pipeline: each image is cropped, flipped and normalised by itself."""
    loader = DataLoader(
        Pixels(images, transforms.Compose([*AUGMENT, *TO_TENSOR])), BATCH_SIZE, shuffle=True, drop_last=True,
        num_workers=num_workers, persistent_workers=num_workers > 0, pin_memory=device.type == "cuda")  # fmt: skip
    while True:
        for batch, labels in loader:
            yield batch.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def images_per_second(batches, step, seconds):
    for _ in range(WARM_UP if seconds > 1 else 1):
        step(*next(batches))
    synchronize()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        done += len(step(*next(batches)))
    synchronize()
    return done / (time.perf_counter() - started)


def make_step(device, smoke):
    """One step of a plain loop in bf16; returns the labels."""
    arch = "cnn" if smoke else "resnet18"
    model = Classifier([3, 32, 32], 10, arch, stem="imagenet" if smoke else "cifar", channels_last=True).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)

    def step(images, labels):
        with torch.autocast(device.type, torch.bfloat16):
            loss = model.loss_function(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return labels

    return step


def main():
    args = arguments(__doc__)
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count, seconds, workers = (1000, 0.2, (0, 1)) if args.smoke else (50_000, SECONDS, (0, 8))
    results = Results(
        args.out,
        f"Images of 32 x 32 in batches of {BATCH_SIZE}, cropped, flipped and normalised, on the device. Images per "
        "second: the data alone, and in a plain loop that trains "
        f"{'a small network' if args.smoke else 'ResNet-18'} in bf16.",
    )
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images = (255 * torch.nn.functional.interpolate(coarse, size=32, mode="bilinear")).to(torch.uint8)
    files = args.work / "throughput"
    make_files(files, images[:5_000])
    ImageWriter(*find_folder(files)).write(files / "packed.h5")
    cases = {"on the device": lambda: ours(InMemory(images, BATCH_SIZE, on_device=True), device)}
    for number in workers:
        cases[f"in memory, {number} workers"] = lambda number=number: ours(InMemory(images, BATCH_SIZE, number), device)
        cases[f"HDF5, {number} workers"] = lambda number=number: ours(
            HDF5Images(str(files / "packed.h5"), BATCH_SIZE, number), device)  # fmt: skip
        cases[f"sample by sample, {number} workers"] = lambda number=number: one_by_one(images, number, device)
    step = make_step(device, args.smoke)
    for name, case in cases.items():
        with closing(case()) as batches:
            results.add(
                name,
                data_alone=images_per_second(batches, lambda images, labels: labels, seconds),
                training=images_per_second(batches, step, seconds),
            )


if __name__ == "__main__":
    main()
