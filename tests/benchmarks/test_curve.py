"""What a step of a curve costs beside a step of a plain network; ratios within one run."""

import resource
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from lmc.architecture.resnet import ResNet
from lmc.curve.bezier import Bezier
from lmc.curve.geodesic import Geodesic
from lmc.curve.nudged_elastic_band import NudgedElasticBand
from lmc.curve.simplex import Simplex
from lmc.curve.star import Star
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images
from lmc.seeding import generator, isolated
from lmc.state import of_model
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable
from lmc.training.schedule.constant import Constant
from lmc.training.sgd import SGD

BATCH = 128


def _noise(batch: int) -> Dataset:
    rng = generator(0, "images")
    images = torch.randint(0, 256, (8 * batch, 3, 32, 32), generator=rng, dtype=torch.uint8)
    train = Images(images, torch.randint(0, 10, (8 * batch,), generator=rng))
    empty = train.select(torch.tensor([], dtype=torch.int64))
    half = (0.5, 0.5, 0.5)
    return Dataset("noise", train, empty, train, 10, half, half, Augmentation(), "noise")


@pytest.mark.benchmark(group="curve")
@pytest.mark.parametrize("bends", [1, 3])
def test_a_curve_step_costs_a_plain_step(benchmark: object, tmp_path: Path, bends: int) -> None:
    dataset = _noise(BATCH)
    with isolated(0, "ends"):
        fixed, moving = (ResNet(input_shape=(3, 32, 32), classes=10, norm="batch") for _ in range(2))
    ends = of_model(fixed), of_model(moving)
    training = SGD(schedule=Constant(), epochs=1, batch_size=BATCH, learning_rate=0.01, weight_decay=5e-4)
    curve = Bezier(training=training, bends=bends)
    spent: list[float] = []

    def note(record: Mapping[str, float]) -> None:
        spent.append(record["seconds"])

    def plain() -> None:
        trainable = NetworkTrainable(fixed, ends[0])
        fit(fixed, trainable, dataset, training, seed=0, folder=tmp_path / "plain", on_epoch=note)

    def bent() -> None:
        curve.fit(fixed, *ends, dataset, seed=0, folder=tmp_path / "curve", on_epoch=note)

    for run in (plain, bent):
        run()
    spent.clear()
    for _ in range(5):  # in turn, so that a change of the machine's load meets both alike
        plain()
        bent()
    ratio = statistics.median(b / p for p, b in zip(spent[::2], spent[1::2], strict=True))
    benchmark.extra_info.update(  # type: ignore[attr-defined] # the fixture of pytest-benchmark
        ratio=ratio,
        milliseconds_a_step=1e3 * statistics.median(spent[1::2]) / 8,
        peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )
    benchmark.pedantic(bent, rounds=1)  # type: ignore[attr-defined]
    assert ratio <= 1.1


@pytest.mark.benchmark(group="curve")
@pytest.mark.parametrize("family", ["star", "simplex", "geodesic", "band"])
def test_a_step_through_many_networks_costs_as_many_plain_steps(benchmark: object, tmp_path: Path, family: str) -> None:
    """In passes through a network: a plain step is three forward passes long; two ends without gradients are two."""
    batch = 32
    dataset = _noise(batch)
    with isolated(0, "ends"):
        model, moving = (ResNet(input_shape=(3, 32, 32), classes=10, norm="batch") for _ in range(2))
    ends = of_model(model), of_model(moving)
    training = SGD(schedule=Constant(), epochs=1, batch_size=batch, learning_rate=0.01, weight_decay=5e-4)
    curves: dict[str, tuple[Callable[..., None], float]] = {
        "star": (Star(training=training).fit_jointly, 1),
        "simplex": (Simplex(training=training, vertices=1).fit, 5),
        "geodesic": (Geodesic(training=training, points=4).fit, 4 + 2 / 3),
        "band": (NudgedElasticBand(training=training, insertions=(4,), lengths=(1,), rates=(1,)).fit, 4 + 2 / 3),
    }
    fit_curve, networks = curves[family]
    spent: list[float] = []

    def note(record: Mapping[str, float]) -> None:
        spent.append(record["seconds"])

    def plain() -> None:
        trainable = NetworkTrainable(model, ends[0])
        fit(model, trainable, dataset, training, seed=0, folder=tmp_path / "plain", on_epoch=note)

    def joined() -> None:
        both = [ends] if family == "star" else ends
        fit_curve(model, *both, dataset, seed=0, folder=tmp_path / "curve", on_epoch=note)

    for run in (plain, joined):
        run()
    spent.clear()
    for _ in range(3):  # in turn, so that a change of the machine's load meets both alike
        plain()
        joined()
    ratio = statistics.median(b / p / networks for p, b in zip(spent[::2], spent[1::2], strict=True))
    benchmark.extra_info.update(ratio=ratio)  # type: ignore[attr-defined] # the fixture of pytest-benchmark
    benchmark.pedantic(joined, rounds=1)  # type: ignore[attr-defined]
    assert ratio <= 1.1
