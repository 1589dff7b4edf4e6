"""What an analysis is shown, made by hand: networks on a path, images of noise."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from lmc.alignment.none import NoAlignment
from lmc.alignment.problem import Matching
from lmc.analysis.base import OnStep, Subject
from lmc.curve.base import Path
from lmc.curve.linear import Linear
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset, Images
from lmc.endpoints.base import Moments
from lmc.evaluation.measure import Splits
from lmc.seeding import generator
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.structure import Symmetry


def images(count: int, shape: tuple[int, ...] = (1, 2, 2), classes: int = 1) -> Images:
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator(0, "pixels"))
    return Images(pixels, torch.arange(count) % classes)


def data(shape: tuple[int, ...] = (1, 2, 2), classes: int = 1, train: int = 4, test: int = 3) -> Dataset:
    splits = images(train, shape, classes), images(2, shape, classes), images(test, shape, classes)
    return Dataset("noise", *splits, classes, (0.5,), (0.25,), Augmentation(), "-")


def plain(merged: State, weights: Sequence[float]) -> State:
    return dict(merged)


def unmatched(fixed: Sequence[State], moving: Sequence[State], on_step: OnStep) -> Matching:
    raise AssertionError("this subject has no alignment")


def subject(
    model: nn.Module,
    networks: Sequence[State],
    path: Path | None = None,
    dataset: Dataset | None = None,
    correction: Callable[[State, Sequence[float]], State] = plain,
    *,
    curve: Any = None,
    symmetry: Symmetry | None = None,
    alignment: Any = None,
    moments: Moments | None = None,
    trained: Sequence[Sequence[State]] | None = None,
    match: Callable[[Sequence[State], Sequence[State], OnStep], Matching] = unmatched,
    seed: int = 0,
) -> Subject:
    """Return a subject; what is not given is as plain as can be: a line, no alignment, one checkpoint."""
    dataset = dataset or data()
    return Subject(
        model=model,
        symmetry=symmetry or discover(model, torch.zeros(2, *dataset.input_shape)),
        dataset=dataset,
        splits=Splits(dataset),
        curve=curve or Linear(),
        alignment=alignment or NoAlignment(),
        moments=moments or Moments("epoch", (1.0,)),
        labels=tuple(range(len(networks))),
        networks=networks,
        trained=trained or [(network,) for network in networks],
        path=path,
        correction=correction,
        bind=lambda states: correction,
        seed=seed,
        match=match,
    )
