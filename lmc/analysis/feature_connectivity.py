"""Whether the features of merged networks are mixtures of those of their ends, and whether layers commute."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path as FilePath
from typing import ClassVar

from pydantic import PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.evaluation.feature_connectivity import (
    ConnectedFeatures,
    LayerCommutativity,
    PlaceAngles,
    feature_connectivity,
    mean,
)
from lmc.evaluation.layer_features import PROBED, Observer
from lmc.evaluation.path import equal_grid
from lmc.state import of_model

FEATURES_FILE = "features.csv"
COMMUTATIVITY_FILE = "commutativity.csv"
_ANGLES = ("cosine", "coefficient", "ends", "fixed", "moving")
_DISTANCES = ("commutativity", "weights", "features", "outputs")
_UNITS = {"coefficient": "ratio"}
_HALF = 0.5


@dataclass(frozen=True, kw_only=True)
class FeatureConnectivity:
    """Compare features along the path with those of both ends, layer by layer (Zhou et al. 2023, LLFC).

    Of every layer and every nonlinearity, on training images: the cosine of the features f_t with (1 - t) f_0 + t f_1,
    example by example, the coefficient between them, and as controls the cosines of f_0, f_1 and f_t with each other.
    Of every layer of the two ends: how nearly (W_0 - W_1)(H_0 - H_1) is zero, beside how far weights, features and
    outputs are apart (see `lmc.evaluation.feature_connectivity`).

    Args:
        grid: number of equally spaced t, odd, at least 3; the ends, where there is nothing to find out, are left out.
        images: at most so many training images, a fixed stratified subset, without augmentation; None: all.
        batch_size: images in a batch; changes nothing but rounding.

    Raises:
        UserError: an even grid, or one of less than 3 points.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    files: ClassVar[tuple[str, ...]] = (FEATURES_FILE, COMMUTATIVITY_FILE)
    together: ClassVar[bool] = False

    grid: PositiveInt = 3
    images: PositiveInt | None = 10_000
    batch_size: PositiveInt = 100

    def __post_init__(self) -> None:
        equal_grid(self.grid)

    def steps(self, setting: Setting) -> int:
        """Return the number of points between the ends."""
        return self.grid - 2

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if the network has no layer, or its examples cannot be told apart in some value."""
        images = setting.dataset.train.images
        state = {name: tensor.to(images.device) for name, tensor in of_model(setting.model).items()}
        Observer(setting.model, state, setting.dataset.normalise(images[:PROBED]))

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Write features.csv and commutativity.csv, and return their numbers.

        Without further fields: at t = 1/2 the mean over all places ("features"), and the mean over all layers whose
        features differ ("layers"): the first layer reads the same images in both networks, and always commutes.
        """
        count = len(subject.dataset.train)
        found = feature_connectivity(
            subject.model,
            subject.joined,
            subject.correction,
            subject.dataset,
            equal_grid(self.grid)[1:-1],
            examples=count if self.images is None else min(count, self.images),
            batch_size=self.batch_size,
            on_point=on_step,
        )
        _write_features(folder / FEATURES_FILE, found)
        _write(folder / COMMUTATIVITY_FILE, [f.name for f in fields(LayerCommutativity)], map(astuple, found.layers))
        findings = [*_whole(found), *_single(found)]
        return [finding for finding in findings if math.isfinite(finding.value)]


def _write(file: FilePath, columns: Sequence[str], rows: Iterator[tuple[object, ...]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def _write_features(file: FilePath, found: ConnectedFeatures) -> None:
    rows = (
        (t, one.place.layer, one.place.kind, one.examples, *(getattr(one, name) for name in _ANGLES))
        for t, angles in found.angles.items()
        for one in angles
    )
    _write(file, ("t", "layer", "kind", "examples", *_ANGLES), rows)


def _whole(found: ConnectedFeatures) -> Iterator[Finding]:
    of = partial(Finding, split="train", examples=found.examples)
    for metric in _ANGLES:
        value = mean([getattr(one, metric) for one in found.angles[_HALF]])
        yield of(what="features", metric=metric, unit=_UNITS.get(metric, "correlation"), value=value)
    for metric in _DISTANCES:
        value = mean([getattr(layer, metric) for layer in found.layers if layer.features > 0])
        yield of(what="layers", metric=metric, unit="", value=value)


def _single(found: ConnectedFeatures) -> Iterator[Finding]:
    of = partial(Finding, split="train", examples=found.examples)
    places: Mapping[float, Sequence[PlaceAngles]] = found.angles
    for t, angles in places.items():
        for one in angles:
            more = {"t": t, "layer": one.place.layer, "kind": one.place.kind}
            for metric in _ANGLES:
                unit, value = _UNITS.get(metric, "correlation"), getattr(one, metric)
                yield of(what="features", metric=metric, unit=unit, value=value, more=more)
    for layer in found.layers:
        for metric in _DISTANCES:
            yield of(what="layers", metric=metric, unit="", value=getattr(layer, metric), more={"layer": layer.layer})
