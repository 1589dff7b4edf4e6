"""Whether an alignment turns the singular vectors of two networks towards each other."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, ClassVar

from pydantic import Field

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.errors import UserError
from lmc.evaluation.singular_vectors import (
    LayerVectors,
    NetworkVectors,
    compare_singular_vectors,
    weight_matrices,
)
from lmc.state import to_device

FILE = "singular_vectors.csv"
_COLUMNS = ("layer", "rows", "columns", "gamma", "moment", "count", "r", "l2_reduction", "l2_limit")
_MOMENTS = ("before", "after")


@dataclass(frozen=True, kw_only=True)
class SingularVectors:
    """Compare singular vectors before and after the networks were brought together (Ito, Yamada, Kumagai 2025).

    R of every layer and of all layers (see `lmc.evaluation.singular_vectors`), with the share of the Euclidean distance
    that the alignment took away, and the largest share that it could have. Needs no images.

    Args:
        gammas: shares of a layer's largest singular value below which pairs of singular vectors do not count, each in
            [0, 1]; 0: all count but those of singular values that are zero.

    Raises:
        UserError: no gamma, or one of them twice.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset()
    files: ClassVar[tuple[str, ...]] = (FILE,)
    together: ClassVar[bool] = False

    gammas: list[Annotated[float, Field(ge=0, le=1)]]

    def __post_init__(self) -> None:
        if not self.gammas or len(set(self.gammas)) < len(self.gammas):
            raise UserError(
                f"analysis.singular_vectors.gammas={self.gammas}: expected at least one number, each once; set "
                "analysis.singular_vectors.gammas=[0,0.3]"
            )

    def steps(self, setting: Setting) -> int:
        """Return the number of weight matrices."""
        return len(weight_matrices(setting.model, setting.symmetry))

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if the network has no weight matrix."""
        if not weight_matrices(setting.model, setting.symmetry):
            raise UserError(
                "no tensor of this network is the matrix of a layer, so there are no singular vectors to compare; "
                "choose another architecture or leave this analysis out"
            )

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Write singular_vectors.csv, and return R ("r_<gamma>") and the L2 reduction of all layers and of each.

        The file has a row for each layer, gamma and moment ("before", "after"); `count` is the number of pairs of
        singular vectors. L2 reductions are left out where an alignment changed the networks and did not only permute
        them: distances between other networks would be compared.
        """
        device = subject.dataset.train.images.device
        fixed, moving = (to_device(checkpoints[-1], device) for checkpoints in subject.trained)
        first, second = (to_device(network, device) for network in subject.networks)
        found = compare_singular_vectors(
            subject.model, subject.symmetry, (fixed, moving), (first, second), self.gammas, on_layer=on_step
        )
        with (folder / FILE).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(_COLUMNS)
            for layer in found.layers:
                writer.writerows(_rows(layer, self.gammas))
        return [*_whole(found, self.gammas), *(one for layer in found.layers for one in _of_layer(layer, self.gammas))]


def _rows(layer: LayerVectors, gammas: Sequence[float]) -> Iterator[tuple[object, ...]]:
    for moment, found in zip(_MOMENTS, (layer.before, layer.after), strict=True):
        for gamma, pairs in zip(gammas, found, strict=True):
            yield (
                *(layer.layer, *layer.shape, gamma, moment, pairs.count, pairs.ratio),
                *(layer.l2_reduction, layer.l2_limit),
            )


def _whole(found: NetworkVectors, gammas: Sequence[float]) -> Iterator[Finding]:
    for moment, values in zip(_MOMENTS, (found.before, found.after), strict=True):
        for gamma, value in zip(gammas, values, strict=True):
            yield Finding(what=f"singular_vectors_{moment}", metric=f"r_{gamma:g}", unit="correlation", value=value)
    if found.l2_reduction is not None:
        yield Finding(what="singular_vectors_after", metric="l2_reduction", unit="fraction", value=found.l2_reduction)


def _of_layer(layer: LayerVectors, gammas: Sequence[float]) -> Iterator[Finding]:
    more = {"layer": layer.layer}
    for moment, found in zip(_MOMENTS, (layer.before, layer.after), strict=True):
        of = partial(Finding, what=f"singular_vectors_{moment}", unit="correlation", more=more)
        for gamma, pairs in zip(gammas, found, strict=True):
            yield of(metric=f"r_{gamma:g}", value=pairs.ratio)
    reductions = {"l2_reduction": layer.l2_reduction, "l2_limit": layer.l2_limit}
    for metric, value in reductions.items():
        if value is not None:
            yield Finding(what="singular_vectors_after", metric=metric, unit="fraction", value=value, more=more)
