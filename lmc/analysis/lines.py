"""Straight lines between many pairs of networks, each measured once and kept in a file as soon as it is measured."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import ClassVar, Literal

from pydantic import PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.analysis.resumed import Key, resumed
from lmc.curve.linear import LinearPath
from lmc.errors import UserError
from lmc.evaluation.path import equal_grid, measure_at
from lmc.results import path_statistics
from lmc.state import State
from lmc.symmetry.permutation import Permutation

UNITS = {"loss": "nats", "error": "fraction"}
Barriers = Mapping[tuple[str, str], float]
"""(split, "loss" | "error") to a barrier, in nats or as a fraction."""

_NUMBERS = ("loss", "accuracy", "distance", "examples")


@dataclass(frozen=True)
class Line:
    """A straight line that is to be measured.

    Attributes:
        label: what it is known by in the file.
        ends: called for the two networks, in one frame, only if the line has not been measured.
    """

    label: Key
    ends: Callable[[], tuple[State, State]]


@dataclass(frozen=True, kw_only=True)
class OnLines:
    """What analyses have in common that measure straight lines between many pairs of networks.

    Args:
        grid: number of equally spaced points on each line, odd, at least 3.
        barrier: which of the barriers of `lmc.results.path_statistics`: "barrier", the largest excess over the straight
            line between both losses; "barrier_mean_endpoints", the largest over their mean; "barrier_midpoint", the
            midpoint's over their mean, which may be negative.

    Raises:
        UserError: an even grid, or one of less than 3 points.
    """

    files: ClassVar[tuple[str, ...]] = ("lines.csv",)
    absent_at_default: ClassVar[frozenset[str]] = frozenset({"barrier"})

    grid: PositiveInt = 3
    barrier: Literal["barrier", "barrier_mean_endpoints", "barrier_midpoint"] = "barrier"

    def __post_init__(self) -> None:
        equal_grid(self.grid)

    def measured(
        self, subject: Subject, folder: FilePath, columns: Sequence[str], lines: Sequence[Line], on_step: OnStep
    ) -> Iterator[Barriers]:
        """Yield the barriers of one line after the other, those that `barrier` names.

        What an earlier, killed attempt left in the folder is not measured again.

        Args:
            subject: gives the model, the images, and what is done to a network merged from two others.
            folder: lines.csv is written there, all points: `columns`, t, split, loss, accuracy, distance and examples.
            columns: what the parts of a label are called.
            lines: in the order in which they are measured.
            on_step: called after each line with its test loss barrier.
        """
        points, splits = equal_grid(self.grid), list(subject.splits.images)

        def compute(number: int) -> list[tuple[float | int, ...]]:
            ends = lines[number].ends()
            correction = subject.bind(ends)
            raw = measure_at(subject.model, LinearPath(*ends), correction, subject.splits, points)
            return [tuple(getattr(point, name) for name in _NUMBERS) for point in raw]

        (file,) = self.files
        steps = [[(*line.label, t, split) for t in points for split in splits] for line in lines]
        for values in resumed(folder / file, (*columns, "t", "split", *_NUMBERS), steps, compute):
            found: dict[tuple[str, str], float] = {}
            for place, split in enumerate(splits):
                losses, accuracies, *_ = zip(*values[place :: len(splits)], strict=True)
                found[split, "loss"] = path_statistics(points, losses)[self.barrier]
                errors = [1 - accuracy for accuracy in accuracies]
                found[split, "error"] = path_statistics(points, errors)[self.barrier]
            on_step({"barrier": found["test", "loss"]})
            yield found


def findings(what: str, values: Barriers, examples: Mapping[str, int], **more: object) -> list[Finding]:
    """Return one finding for each (split, metric) of `values`; `examples` says how many images a split has."""
    return [
        Finding(
            what=what, metric=metric, unit=UNITS[metric], value=value, split=split, examples=examples[split], more=more
        )
        for (split, metric), value in values.items()
    ]


def summary(of: Callable[[Sequence[float]], float], barriers: Iterable[Barriers]) -> Barriers:
    """Return what `of` (max, a mean, ...) makes of many lines, for each (split, metric)."""
    every = list(barriers)
    return {name: of([one[name] for one in every]) for name in every[0]}


def examples_of(subject: Subject) -> dict[str, int]:
    """Return how many images of each split are measured on."""
    return {split: len(images) for split, images in subject.splits.images.items()}


def refuse_soft(setting: Setting, name: str) -> None:
    """Raise a `UserError` unless the alignment gives permutations, which can be tried on other networks."""
    if setting.alignment.is_soft:
        raise UserError(
            f"analysis={name} tries a permutation on other networks, and the chosen alignment gives none; choose one "
            "that does, for example alignment=weight_matching"
        )


def permutation(subject: Subject, fixed: Sequence[State], moving: Sequence[State]) -> Permutation:
    """Return what brings `moving` to `fixed`, each given as its checkpoints, by the alignment of the experiment."""
    return subject.match(fixed, moving, lambda numbers: None).permutation
