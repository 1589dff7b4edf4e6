"""How alike the layers of two networks represent images, whatever the basis of their units."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path as FilePath
from typing import Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.evaluation.along_curve import observable
from lmc.evaluation.representation_layers import layers_of
from lmc.evaluation.representation_similarity import Similarities, Spatial, layer_passes, layer_similarities
from lmc.state import of_model

LAYERS_FILE = "layers.csv"
CKA_FILE = "cka.csv"
_LAYER_HEADS = (
    *("layer", "units", "positions", "samples", "cka", "svcca", "svcca_squared", "procrustes"),
    *("components_fixed", "components_moving"),
)
_CKA_HEADS = ("fixed", "moving", "samples", "cka")
_METRICS = ("cka", "svcca", "svcca_squared", "procrustes")


@dataclass(frozen=True, kw_only=True)
class RepresentationSimilarity:
    """Compare the layers of two networks as they were trained, by measures that no rotation of the units changes.

    Linear CKA (Kornblith et al. 2019), SVCCA (Raghu et al. 2017) and the orthogonal Procrustes similarity (Ding et al.
    2021), at every value behind a nonlinearity, on training images without augmentation, each unit centred. CKA also
    compares every layer of one network with every layer of the other. Nothing is corrected or aligned before: an
    alignment by permutations would change none of them. CKA and SVCCA are too high where there are not many more
    samples than units.

    Args:
        images: at most so many training images, the first ones, without augmentation; None: all.
        spatial: what a sample is: "positions", every position of a feature map (between layers with different numbers
            of positions: the mean over them); "mean", always the mean over the positions of an image.
        variance: share of the variance that the principal components of the SVCCA hold.
        batch_size: images in a batch, whose activations are held; changes nothing but rounding.
        memory: GiB of covariances that are held at a time; layers without room are compared in further passes.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size", "memory"})
    files: ClassVar[tuple[str, ...]] = (LAYERS_FILE, CKA_FILE)
    together: ClassVar[bool] = False

    images: PositiveInt | None = 10_000
    spatial: Spatial = "positions"
    variance: Annotated[float, Field(gt=0, le=1)] = 0.99
    batch_size: PositiveInt = 200
    memory: Annotated[float, Field(gt=0)] = 4.0

    def steps(self, setting: Setting) -> int:
        """Return the number of batches in all passes."""
        layers = layers_of(setting.model, setting.symmetry, of_model(setting.model), setting.dataset)
        passes = len(layer_passes(layers, self.spatial, self.memory))
        return passes * math.ceil(self._examples(setting) / self.batch_size)

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if no unit can be observed."""
        observable(setting.symmetry)

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Compare all layers and write layers.csv (the same layer of both) and cka.csv (every layer with every layer).

        Returns:
            "representation_similarity": each measure of each layer, and its mean over layers; "layers_found": the share
            of layers of the fixed network that are most like the same layer of the moving one (by CKA).
        """
        found = layer_similarities(
            subject.model,
            subject.symmetry,
            (subject.trained[0][-1], subject.trained[1][-1]),
            subject.dataset,
            examples=self.images,
            batch_size=self.batch_size,
            spatial=self.spatial,
            variance=self.variance,
            memory=self.memory,
            on_batch=on_step,
        )
        _write(folder / LAYERS_FILE, _LAYER_HEADS, _layer_rows(found))
        _write(folder / CKA_FILE, _CKA_HEADS, _cka_rows(found))
        return list(_findings(found, self._examples(subject)))

    def _examples(self, setting: Setting) -> int:
        count = len(setting.dataset.train)
        return count if self.images is None else min(count, self.images)


def _layer_rows(found: Similarities) -> Iterator[Sequence[Any]]:
    for layer, samples, equal in zip(found.layers, found.samples, found.equal, strict=True):
        values = [getattr(equal, metric) for metric in _METRICS]
        yield layer.name, layer.units, layer.positions, samples, *values, *equal.components


def _cka_rows(found: Similarities) -> Iterator[Sequence[Any]]:
    names = [layer.name for layer in found.layers]
    for row, column in product(range(len(names)), repeat=2):
        samples = "positions" if found.by_position[row, column] else "mean"
        yield names[row], names[column], samples, found.cka[row, column].item()


def _write(file: FilePath, heads: Sequence[str], rows: Iterator[Sequence[Any]]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([heads, *rows])


def _findings(found: Similarities, examples: int) -> Iterator[Finding]:
    of = partial(Finding, split="train", examples=examples)
    what = partial(of, what="representation_similarity", unit="")
    for metric in _METRICS:
        values = [getattr(equal, metric) for equal in found.equal]
        yield what(metric=metric, value=sum(values) / len(values))
        for layer, value in zip(found.layers, values, strict=True):
            yield what(metric=metric, value=value, more={"layer": layer.name})
    yield of(what="layers_found", metric="cka", unit="fraction", value=found.found)
