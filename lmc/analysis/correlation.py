"""How alike units answer along a curve, and whether its middle would be matched otherwise."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import ClassVar

from pydantic import PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.evaluation.along_curve import Rematching, UnitCorrelations, correlations_along, observable, rematch
from lmc.evaluation.path import equal_grid

_ENDS = ("fixed", "moving")


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """Correlate the units of the networks along the path with those of both ends (Tatro et al. 2020, section 5.1).

    The correlation (Pearson) is that of equally placed units, behind their nonlinearity, over training images; layer by
    layer (group by group) and over all units. The middle of the path is also matched anew with each end, by activation
    matching: how many units would move, and how much would be gained by it.

    Args:
        grid: number of equally spaced t, odd, at least 3.
        images: at most so many training images, the first ones, without augmentation; None: all.
        batch_size: images in a batch; changes nothing but rounding.

    Raises:
        UserError: an even grid, or one of less than 3 points.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    files: ClassVar[tuple[str, ...]] = ()
    together: ClassVar[bool] = False

    grid: PositiveInt = 5
    images: PositiveInt | None = 10_000
    batch_size: PositiveInt = 500

    def __post_init__(self) -> None:
        equal_grid(self.grid)

    def steps(self, setting: Setting) -> int:
        """Return the number of points, and two for the matchings of the middle."""
        return self.grid + 2

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if no unit can be observed."""
        observable(setting.symmetry)

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return "unit_correlation" at each t and "rematched" of the middle: the share of units "moved", the "gain"."""
        of = (subject.model, subject.symmetry, subject.joined, subject.correction, subject.dataset)
        count = len(subject.dataset.train)
        examples = count if self.images is None else min(count, self.images)
        findings: list[Finding] = []
        points = correlations_along(
            *of, equal_grid(self.grid), examples=self.images, batch_size=self.batch_size, on_point=on_step
        )
        for point in points:
            for end, found in zip(_ENDS, (point.fixed, point.moving), strict=True):
                findings += _correlations(point.t, end, found, examples)
        middle = rematch(*of, examples=self.images, batch_size=self.batch_size, on_end=on_step)
        for end, matching in zip(_ENDS, middle, strict=True):
            findings += _rematched(end, matching, examples)
        return findings


def _correlations(t: float, end: str, found: UnitCorrelations, examples: int) -> Iterator[Finding]:
    of = partial(Finding, what="unit_correlation", metric="correlation", unit="correlation", split="train")
    yield of(value=found.total, examples=examples, more={"t": t, "end": end})
    for group, value in found.groups.items():
        yield of(value=value, examples=examples, more={"t": t, "end": end, "layer": group})


def _rematched(end: str, found: Rematching, examples: int) -> Iterator[Finding]:
    values = {"moved": ("fraction", found.total(found.moved)), "gain": ("correlation", found.gain)}
    for metric, (unit, value) in values.items():
        yield Finding(
            what="rematched", metric=metric, unit=unit, value=value, split="train", examples=examples, more={"end": end}
        )
