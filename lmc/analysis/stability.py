"""How sure the matching of two networks is, by weights and by activations."""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.errors import UserError
from lmc.evaluation.along_curve import observable
from lmc.evaluation.stability import SEARCHES, Certainty, GroupStability, Softness, stability
from lmc.state import to_device

FILE = "stability.csv"
_CERTAINTY = ("kept", "agreement", "entropy", "margin")
_UNITS = {"margin": "deviations"}


@dataclass(frozen=True, kw_only=True)
class Stability:
    """Ask how sure the matching of two networks is that lie in one frame (Sharma et al. 2024; Adnan et al. 2025).

    Group by group and over all units, by the weights and by the activations of the networks: the share of units that
    the best matching would leave where they are, the share that two searches match alike, the entropy of the soft
    matching and the margin to the next one (see `lmc.evaluation.stability`); and the share of units that the alignment
    matched with the unit at their own place, as if nothing were to be permuted. Units inside blocks are refused.

    Args:
        temperature: of the soft matching, in units of the spread of the similarities.
        iterations: at most, of the Sinkhorn operator.
        tolerance: distance of a row sum from 1 at which they end.
        images: at most so many training images, a fixed stratified subset, without augmentation, in both halves
            together; None: all.
        batch_size: images in a batch; changes nothing but rounding.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    files: ClassVar[tuple[str, ...]] = (FILE,)
    together: ClassVar[bool] = False

    temperature: Annotated[float, Field(gt=0)] = 0.5
    iterations: PositiveInt = 1000
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    images: Annotated[int, Field(ge=2)] | None = 10_000
    batch_size: PositiveInt = 500

    def steps(self, setting: Setting) -> int:
        """Return the number of halves and of descents."""
        return 2 * SEARCHES

    def check(self, setting: Setting) -> None:
        """Refuse what cannot be matched twice, group by group.

        Raises:
            UserError: units live inside blocks, none can be observed, or there are fewer than two images.
        """
        inside = next(iter(setting.symmetry.outer), None)
        if inside is not None:
            raise UserError(
                "analysis=stability looks at each group on its own, and units of this network are inside blocks "
                f"({inside!r}: dimensions of attention heads, channels of a grouped convolution); choose another "
                "architecture or leave this analysis out"
            )
        observable(setting.symmetry)
        if len(setting.dataset.train) < SEARCHES:
            raise UserError(
                f"analysis=stability compares two halves of the training images, and there are "
                f"{len(setting.dataset.train)}; use a larger dataset"
            )

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Write stability.csv, a row for each group and kind of similarity, and return its numbers.

        Those without further fields are means over all units. Fixed points are left out where the alignment changed
        the networks and did not only permute them.
        """
        device = subject.dataset.train.images.device
        fixed, moving = (to_device(checkpoints[-1], device) for checkpoints in subject.trained)
        first, second = (to_device(network, device) for network in subject.networks)
        groups = stability(
            subject.model,
            subject.symmetry,
            (fixed, moving),
            (first, second),
            subject.dataset,
            Softness(temperature=self.temperature, iterations=self.iterations, tolerance=self.tolerance),
            seed=subject.seed,
            images=self.images,
            batch_size=self.batch_size,
            on_search=on_step,
        )
        _write(folder / FILE, groups)
        count = len(subject.dataset.train)
        examples = count if self.images is None else min(count, self.images)
        found = [finding for group in groups for finding in _of(group, examples)]
        return [*_whole(groups, found), *found]


def _write(file: FilePath, groups: Sequence[GroupStability]) -> None:
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("group", "units", "fixed_points", "kind", *_CERTAINTY, "violation"))
        for group in groups:
            for kind, sure in _kinds(group):
                values = (getattr(sure, name) for name in (*_CERTAINTY, "violation"))
                writer.writerow((group.group, group.units, group.fixed_points, kind, *values))


def _kinds(group: GroupStability) -> Iterator[tuple[str, Certainty]]:
    yield "weights", group.weights
    if group.activations is not None:
        yield "activations", group.activations


def _of(group: GroupStability, examples: int) -> Iterator[Finding]:
    more = {"layer": group.group}
    if group.fixed_points is not None:
        yield Finding(what="matching", metric="fixed_points", unit="fraction", value=group.fixed_points, more=more)
    for kind, sure in _kinds(group):
        of = partial(Finding, what=kind, more=more)
        if kind == "activations":
            of = partial(of, split="train", examples=examples)
        for metric in _CERTAINTY:
            if math.isfinite(value := getattr(sure, metric)):
                yield of(metric=metric, unit=_UNITS.get(metric, "fraction"), value=value)


def _whole(groups: Sequence[GroupStability], found: Sequence[Finding]) -> Iterator[Finding]:
    """The means over units of what was found of groups."""
    units = {group.group: group.units for group in groups}
    for what, metric in dict.fromkeys((finding.what, finding.metric) for finding in found):
        of = [finding for finding in found if (finding.what, finding.metric) == (what, metric)]
        weights = [units[finding.more["layer"]] for finding in of]
        value = sum(n * finding.value for n, finding in zip(weights, of, strict=True)) / sum(weights)
        one = of[0]
        yield Finding(what=what, metric=metric, unit=one.unit, value=value, split=one.split, examples=one.examples)
