"""Loss and accuracy along a path: the raw points from which every barrier is computed."""

import csv
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path as FilePath
from typing import ClassVar, Literal

import numpy as np
from pydantic import PositiveInt
from torch import nn

from lmc.curve.base import Path
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.measure import Splits
from lmc.results import PathPoint
from lmc.statistics.base import Correction

RAW_FILE = "points.csv"


@dataclass(frozen=True, kw_only=True)
class RawPoint:
    """One point of a path on one split; the fields are those of `lmc.results.PathPoint` without pair and path."""

    t: float
    split: str
    loss: float
    accuracy: float
    distance: float
    examples: int


@dataclass(frozen=True, kw_only=True)
class PathEvaluation:
    """Measure the networks at some points of a path, each on training and test images without augmentation.

    Args:
        grid: number of equally spaced points, odd so that 1/2 is one of them, and at least 3; or the points
            themselves, increasing, from 0 to 1.
        train_examples: how many training images, a fixed stratified subset; None: all.
        test_examples: how many test images, likewise.
        batch_size: images in a batch; does not change a result.
        spacing: what the grid divides: "t", or "length": the same fractions of the path's arc length.

    Raises:
        UserError: a grid without 0 and 1, not increasing, or of an even number of points.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    absent_at_default: ClassVar[frozenset[str]] = frozenset({"spacing"})

    grid: PositiveInt | list[float] = 25
    train_examples: PositiveInt | None = None
    test_examples: PositiveInt | None = None
    batch_size: PositiveInt = 500
    spacing: Literal["t", "length"] = "t"

    def __post_init__(self) -> None:
        _ = self.points

    @property
    def points(self) -> tuple[float, ...]:
        """The grid from 0 to 1: values of t, or with `spacing` "length" fractions of a path's length."""
        return equal_grid(self.grid) if isinstance(self.grid, int) else _checked_grid(self.grid)

    def places(self, path: Path) -> tuple[float, ...]:
        """Return the values of t at which `path` is measured, one for each of `points`."""
        return self.points if self.spacing == "t" else along_length(path, self.points)

    def splits(self, dataset: Dataset) -> Splits:
        """Return the images of `dataset` that are measured on."""
        return Splits(dataset, self.train_examples, self.test_examples, self.batch_size)

    def measure(
        self,
        model: nn.Module,
        path: Path,
        correction: Correction,
        dataset: Dataset,
        on_point: Callable[[Mapping[str, float]], None] | None = None,
    ) -> list[RawPoint]:
        """Return the raw points of `path`: for each t one of split "train" and one of split "test".

        Args:
            model: the architecture; put back as it was.
            path: gives the network at t and the length of the path up to there.
            correction: what is done to each network before it is measured, with the weights (1 - t, t); at t = 0 and
                1 too, so that all points of the path are treated alike.
            dataset: networks are measured on its device.
            on_point: called after each t with t and the losses and accuracies ("train_loss", ...); once for each of
                `points`.
        """
        return measure_at(model, path, correction, self.splits(dataset), self.places(path), on_point)


def measure_at(
    model: nn.Module,
    path: Path,
    correction: Correction,
    splits: Splits,
    places: Sequence[float],
    on_point: Callable[[Mapping[str, float]], None] | None = None,
) -> list[RawPoint]:
    """Return the raw points of `path` at the values `places` of t, as `PathEvaluation.measure` does.

    Args:
        model, path, correction, on_point: as there.
        splits: what is measured on.
        places: increasing.
    """
    raw = []
    for t, distance in zip(places, path.distance(places), strict=True):
        found = splits.measure(model, correction(path.state(t), (1 - t, t)))
        raw += [RawPoint(t=t, split=split, distance=distance, **vars(of)) for split, of in found.items()]
        if on_point is not None:
            losses = {f"{split}_loss": of.loss for split, of in found.items()}
            on_point({"t": t, **losses, **{f"{split}_accuracy": of.accuracy for split, of in found.items()}})
    return raw


def equal_grid(points: int) -> tuple[float, ...]:
    """Return `points` equally spaced values of t; 0, 1/2 and 1 are among them exactly.

    Raises:
        UserError: an even number, or less than 3.
    """
    if points < 3 or points % 2 == 0:
        raise UserError(f"a grid of {points} points has not 0, 1/2 and 1 in it; give an odd number, at least 3")
    return tuple(place / (points - 1) for place in range(points))


def along_length(path: Path, fractions: Sequence[float]) -> tuple[float, ...]:
    """Return the t at which `path` has come these fractions of its length, to 1e-12; 0 and 1 stay exact.

    By bisection, all at once. A path without length has come as far as its t.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    (whole,) = path.distance([1.0])
    if whole == 0:
        return tuple(shares.tolist())
    low, high = np.zeros_like(shares), np.ones_like(shares)
    for _ in range(40):
        middle = (low + high) / 2
        short = np.asarray(path.distance(middle.tolist())) < shares * whole
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    found = np.where(shares == 0, 0.0, np.where(shares == 1, 1.0, (low + high) / 2))
    return tuple(found.tolist())


def _checked_grid(grid: Sequence[float]) -> tuple[float, ...]:
    if not grid or grid[0] != 0 or grid[-1] != 1:
        raise UserError(f"a grid without 0 and 1: {list(grid)}; the first point must be 0 and the last one 1")
    if any(not first < second for first, second in itertools.pairwise(grid)):
        raise UserError(f"a grid that does not increase: {list(grid)}; sort the points and give each once")
    return tuple(float(t) for t in grid)


def path_points(raw: Iterable[RawPoint], pair: tuple[int, int], path: str) -> list[PathPoint]:
    """Return `raw` as points of the results: with the seeds of the networks, and "aligned" or "unaligned"."""
    return [PathPoint(pair=pair, path=path, **vars(point)) for point in raw]


def write_raw(folder: FilePath, points: Sequence[RawPoint]) -> None:
    """Write `points` to points.csv in `folder`; floats are written so that they are read back bit for bit."""
    with (folder / RAW_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(field.name for field in fields(RawPoint))
        writer.writerows(astuple(point) for point in points)


def read_raw(folder: FilePath) -> list[RawPoint]:
    """Read what `write_raw` wrote.

    Raises:
        UserError: a line is incomplete; names the line.
    """
    path = folder / RAW_FILE
    points = []
    with path.open(encoding="utf-8", newline="") as file:
        for number, entry in enumerate(csv.DictReader(file), 2):
            try:
                numbers = {name: float(entry[name]) for name in ("t", "loss", "accuracy", "distance")}
                points.append(RawPoint(split=entry["split"], examples=int(entry["examples"]), **numbers))
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a whole point ({error}); delete the folder") from None
    return points
