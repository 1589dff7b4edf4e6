"""How fast the loop trains, against a plain loop over a DataLoader in float32; ratios within one run.

pytest tests/benchmarks/test_training.py --benchmark-columns=median
"""

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from lmc.architecture.mlp import MLP
from lmc.architecture.resnet import ResNet
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images
from lmc.seeding import generator, isolated
from lmc.state import of_model
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable
from lmc.training.recipe import Training
from lmc.training.schedule.constant import Constant
from lmc.training.sgd import SGD

BATCH = 128


def make_dataset(count: int, shape: tuple[int, int, int], augmentation: Augmentation) -> Dataset:
    rng = generator(0, "images")
    images = torch.randint(0, 256, (count, *shape), generator=rng, dtype=torch.uint8)
    train = Images(images, torch.randint(0, 10, (count,), generator=rng))
    empty = train.select(torch.tensor([], dtype=torch.int64))
    half = (0.5,) * shape[0]
    return Dataset("noise", train, empty, train, 10, half, half, augmentation, "noise")


class _Loaded(TorchDataset[tuple[Tensor, int]]):
    """What a script does with torchvision: PIL image, flip, padded crop, tensor, normalisation, one image at a time."""

    def __init__(self, dataset: Dataset) -> None:
        from torchvision import transforms

        self._images = dataset.train.images.permute(0, 2, 3, 1).numpy()
        self._labels = dataset.train.labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.ToPILImage(),
                transforms.RandomHorizontalFlip(),
                transforms.RandomCrop(32, padding=4),
                transforms.ToTensor(),
                transforms.Normalize(dataset.mean, dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._transform(self._images[index]), self._labels[index]


def plain_epoch(model: nn.Module, loader: DataLoader[tuple[Tensor, Tensor]]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    model.train()
    for images, labels in loader:
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()


def epoch(model: nn.Module, dataset: Dataset, training: Training, folder: Path) -> None:
    trainable = NetworkTrainable(model, of_model(model))
    fit(model, trainable, dataset, training, seed=0, folder=folder, on_epoch=lambda record: None)


def seconds(*runs: Callable[[], None], rounds: int) -> list[float]:
    """Median wall time of each of `runs`, taken in turn so that a change of the machine's load meets all alike."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds):
        for run, found in zip(runs, times, strict=True):
            began = time.perf_counter()
            run()
            found.append(time.perf_counter() - began)
    return [statistics.median(found) for found in times]


def peak_mib() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.benchmark(group="training")
def test_resnet20_against_a_dataloader_loop(benchmark: object, tmp_path: Path) -> None:
    dataset = make_dataset(8 * BATCH, (3, 32, 32), Augmentation(flip=True, crop_padding=4))
    with isolated(0, "resnet20"):
        model, plain = (ResNet(input_shape=(3, 32, 32), classes=10, norm="batch") for _ in range(2))
    training = SGD(schedule=Constant(), epochs=1, batch_size=BATCH, learning_rate=0.1, weight_decay=5e-4)
    loader = DataLoader(_Loaded(dataset), batch_size=BATCH, shuffle=True)
    ours, theirs = seconds(
        lambda: epoch(model, dataset, training, tmp_path), lambda: plain_epoch(plain, loader), rounds=3
    )
    benchmark.extra_info.update(  # type: ignore[attr-defined] # the fixture of pytest-benchmark
        ratio=theirs / ours,
        images_per_second=len(dataset.train) / ours,
        plain_images_per_second=len(dataset.train) / theirs,
        peak_mib=peak_mib(),
    )
    benchmark.pedantic(epoch, args=(model, dataset, training, tmp_path), rounds=1)  # type: ignore[attr-defined]
    assert theirs / ours >= 2


@pytest.mark.benchmark(group="training")
def test_the_loop_adds_little_to_a_bare_step(benchmark: object, tmp_path: Path) -> None:
    """A small MLP, where overhead shows: our loop against forward, backward and fused step on batches made before."""
    dataset = make_dataset(100 * 64, (1, 8, 8), Augmentation())
    with isolated(0, "mlp"):
        model, plain = (MLP(input_shape=(1, 8, 8), classes=10, width=256, depth=3) for _ in range(2))
    training = SGD(schedule=Constant(), epochs=1, batch_size=64, learning_rate=0.01)
    batches = list(dataset.batches(dataset.train, 64))
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9, fused=True)

    def bare() -> None:
        for images, labels in batches:
            optimizer.zero_grad()
            cross_entropy(plain(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    ours, theirs = seconds(lambda: epoch(model, dataset, training, tmp_path), bare, rounds=9)
    benchmark.extra_info.update(ratio=ours / theirs, microseconds_a_step=1e6 * ours / 100)  # type: ignore[attr-defined]
    benchmark.pedantic(epoch, args=(model, dataset, training, tmp_path), rounds=1)  # type: ignore[attr-defined]
    assert ours / theirs < 1.5
