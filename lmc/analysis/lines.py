"""Straight lines between many pairs of networks, each measured once and kept in a file as soon as it is."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path as FilePath

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.curve.linear import LinearPath
from lmc.errors import UserError
from lmc.evaluation.path import RawPoint, equal_grid, measure_at
from lmc.results import path_statistics
from lmc.state import State
from lmc.symmetry.permutation import Permutation

UNITS = {"loss": "nats", "error": "fraction"}
Label = tuple[str, ...]
Barriers = Mapping[tuple[str, str], float]
"""(split, "loss" | "error") to a barrier, in nats or as a fraction."""
_POINT = tuple(field.name for field in fields(RawPoint))


class Lines:
    """The lines of one analysis, with their raw points in one CSV file.

    What an earlier, killed attempt left in the file is not measured again; a line that was cut in half is.

    Args:
        subject: gives the model, the images, and what is done to a network merged from two others.
        grid: number of equally spaced points on each line, odd, at least 3.
        file: where the raw points are kept: the columns of a label, then those of `lmc.evaluation.path.RawPoint`.
        columns: what the parts of a label are called.
        on_step: called after each line with its test loss barrier.
    """

    def __init__(self, subject: Subject, grid: int, file: FilePath, columns: Sequence[str], on_step: OnStep) -> None:
        self._subject, self._file, self._columns, self._on_step = subject, file, tuple(columns), on_step
        self._points = equal_grid(grid)
        whole = len(self._points) * len(subject.splits.images)
        self._known = {label: raw for label, raw in _read(file, self._columns).items() if len(raw) == whole}
        with file.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerow((*self._columns, *_POINT))
        for label, raw in self._known.items():
            self._append(label, raw)

    def barriers(self, label: Iterable[object], fixed: State, moving: State, by: Permutation | None = None) -> Barriers:
        """Return (split, "loss" | "error") to the barrier of the line from `fixed` to `moving`, permuted by `by`.

        The barrier is the largest excess over the straight line between the ends (`lmc.results.path_statistics`).

        Args:
            label: what this line is known by in the file.
            fixed, moving: the networks.
            by: what brings `moving` to the frame of `fixed`; None: it is there.
        """
        name = tuple(map(str, label))
        if name not in self._known:
            subject, ends = self._subject, (fixed, by.apply(moving) if by else moving)
            path = LinearPath(*ends)
            self._known[name] = measure_at(subject.model, path, subject.bind(ends), subject.splits, self._points)
            self._append(name, self._known[name])
        found = {
            (split, metric): path_statistics(self._points, values)["barrier"]
            for split in self._subject.splits.images
            for metric, values in _values(self._known[name], split).items()
        }
        self._on_step({"barrier": found["test", "loss"]})
        return found

    def _append(self, label: Label, raw: Iterable[RawPoint]) -> None:
        with self._file.open("a", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows((*label, *astuple(point)) for point in raw)


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


def _values(raw: Sequence[RawPoint], split: str) -> dict[str, list[float]]:
    points = [point for point in raw if point.split == split]
    return {"loss": [point.loss for point in points], "error": [1 - point.accuracy for point in points]}


def _read(file: FilePath, columns: Sequence[str]) -> dict[Label, list[RawPoint]]:
    """The lines in a file that a killed attempt may have left; nothing of what cannot be read."""
    found: dict[Label, list[RawPoint]] = {}
    if not file.is_file():
        return found
    with file.open(encoding="utf-8", newline="") as stream:
        for entry in csv.DictReader(stream):
            try:
                point = RawPoint.of(entry)
            except (ValueError, KeyError, TypeError):
                continue  # the line at which the attempt was killed; it is measured again
            found.setdefault(tuple(entry[name] for name in columns), []).append(point)
    return found
