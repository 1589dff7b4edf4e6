"""Loss and accuracy on the plane through three networks."""

import csv
import itertools
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path as FilePath
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.analysis.span import Place, Span
from lmc.curve.linear import Linear
from lmc.errors import UserError
from lmc.evaluation.measure import Measurement

log = logging.getLogger(__name__)

POINTS_FILE = "plane.csv"
GEOMETRY_FILE = "plane.json"
_TRACE = tuple(step / 32 for step in range(33))
"""The t at which the curve is drawn on the plane."""

_EXTREMES: Mapping[str, Callable[[Sequence[float]], float]] = {"plane_minimum": min, "plane_maximum": max}
_SECONDS_BETWEEN_SYNCS = 5.0


@dataclass(frozen=True, kw_only=True)
class PlanePoint:
    """One point of the plane on one split.

    Attributes:
        x, y: its coordinates (see `lmc.analysis.span.Span`).
        split: "train" or "test".
        loss: mean cross-entropy in nats.
        accuracy: fraction of examples classified correctly.
        examples: how many there were.
    """

    x: float
    y: float
    split: str
    loss: float
    accuracy: float
    examples: int


@dataclass(frozen=True, kw_only=True)
class Plane:
    """Measure the networks on a rectangular grid of the plane through three networks (Garipov et al. 2018, fig. 1).

    The correction of merged networks (group `statistics`) is made at every point, with the convex weights of the ends
    that `Span.weights` gives; one that reads images therefore costs what it costs along a path, once a point.

    Args:
        through: "middle": for each pair, its two networks and the middle of their curve. The control point of a
            quadratic Bezier curve, and all of the curve, lies in that plane. "networks": once, the first three
            networks, in the frame of the first.
        grid: number of points on each axis, or on the first and on the second; odd, at least 3.
        margin: how far the grid goes beyond the outermost points of the networks and of the curve, in shares of their
            span on each axis.

    Raises:
        UserError: a grid of an even number of points, of less than 3, or not of one or two numbers.
    """

    files: ClassVar[tuple[str, ...]] = (POINTS_FILE, GEOMETRY_FILE)

    through: Literal["middle", "networks"] = "middle"
    grid: PositiveInt | list[PositiveInt] = 21
    margin: Annotated[float, Field(ge=0)] = 0.2

    def __post_init__(self) -> None:
        if len(self.counts) != 2 or any(count < 3 or count % 2 == 0 for count in self.counts):
            raise UserError(
                f"analysis.plane.grid={self.grid} is no grid with a middle; give one odd number, at least 3, or two of "
                "them, [points on the first axis, on the second]"
            )

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of points on each axis."""
        return (self.grid, self.grid) if isinstance(self.grid, int) else tuple(self.grid)

    @property
    def together(self) -> bool:
        """Whether it looks at all networks at once instead of at each pair."""
        return self.through == "networks"

    def steps(self, setting: Setting) -> int | None:
        """Return the number of points."""
        return math.prod(self.counts)

    def check(self, setting: Setting) -> None:
        """Refuse what is known to have no plane.

        Raises:
            UserError: the curve is a straight line, or there are fewer than three networks.
        """
        if self.together and len(setting.labels) < 3:
            raise UserError(
                f"analysis.plane.through=networks needs three networks, and there are {len(setting.labels)}; give more "
                "seeds, or set analysis.plane.through=middle"
            )
        if not self.together and isinstance(setting.curve, Linear):
            raise UserError(
                "analysis.plane.through=middle needs a curve that bends: the middle of a straight line lies on one "
                "line with its ends; set curve=bezier, or analysis.plane.through=networks with three seeds"
            )

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Measure every point, row by row, and write plane.csv (`PlanePoint`) and plane.json.

        plane.json holds `through`, the coordinates of the three `networks`, the `grid`, and of `curve` the places
        (t, x, y, distance from the plane); of networks together there is no curve. What an earlier, killed attempt has
        measured of the same plane is kept.

        Args:
            subject: two networks and their path, or at least three networks.
            folder: where the files are written.
            on_step: called after each point, also for those that are there already, with x, y, and the losses and
                accuracies ("train_loss", ...).

        Returns:
            The smallest and the largest loss and error of each split, among those that are finite; and, of a pair, the
            largest distance of the curve from the plane in shares of the distance between its ends.

        Raises:
            UserError: the three networks lie on one line.
        """
        span, trace = self._span(subject)
        outermost = [*span.corners, *((place.x, place.y) for _, place in trace)]
        ranges = [spread([point[axis] for point in outermost], self.counts[axis], self.margin) for axis in (0, 1)]
        positions = [(x, y) for y, x in itertools.product(ranges[1], ranges[0])]
        _write_geometry(folder / GEOMETRY_FILE, self, span, trace)
        splits = tuple(subject.splits.images)
        points = _stored(folder / POINTS_FILE, positions, splits)
        done = len(points) // len(splits)
        if done:
            log.info("continuing after point %d of %d", done, len(positions))
        with _appending(folder / POINTS_FILE, points) as append:
            for number, (x, y) in enumerate(positions):
                if number < done:
                    measured = points[number * len(splits) : (number + 1) * len(splits)]
                else:
                    measured = _measured(subject, span, x, y)
                    append(measured)
                    points += measured
                on_step(_numbers(measured))
        return _findings(points, span, trace)

    def _span(self, subject: Subject) -> tuple[Span, list[tuple[float, Place]]]:
        """The plane, and the places of the curve with their t."""
        if self.together:
            shares = [[float(end == corner) for end in range(len(subject.networks))] for corner in range(3)]
            names = [f"network {label}" for label in subject.labels[:3]]
            return Span(subject.model, subject.networks[:3], subject.networks, shares, names), []
        names = ["the fixed network", "the moving network", "the middle of their curve"]
        networks = [*subject.networks, subject.joined.state(0.5)]
        span = Span(subject.model, networks, subject.networks, [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], names)
        return span, [(t, span.place(subject.joined.state(t))) for t in _TRACE]


def spread(values: Sequence[float], count: int, margin: float) -> list[float]:
    """Return `count` equally spaced positions over the range of `values` and `margin` of its length on both sides."""
    beyond = margin * (max(values) - min(values))
    low, high = min(values) - beyond, max(values) + beyond
    return [low + (high - low) * (step / (count - 1)) for step in range(count)]


def _measured(subject: Subject, span: Span, x: float, y: float) -> list[PlanePoint]:
    network = subject.correction(span.state(x, y), span.weights(x, y))
    found = subject.splits.measure(subject.model, network)
    return [PlanePoint(x=x, y=y, split=split, **vars(measurement)) for split, measurement in found.items()]


def _numbers(measured: Sequence[PlanePoint]) -> Mapping[str, float]:
    losses = {f"{point.split}_loss": point.loss for point in measured}
    accuracies = {f"{point.split}_accuracy": point.accuracy for point in measured}
    return {"x": measured[0].x, "y": measured[0].y, **losses, **accuracies}


def _write_geometry(file: FilePath, plane: Plane, span: Span, trace: Sequence[tuple[float, Place]]) -> None:
    content = {
        "through": plane.through,
        "networks": [{"x": x, "y": y} for x, y in span.corners],
        "grid": list(plane.counts),
        "curve": [{"t": t, **asdict(place)} for t, place in trace],
    }
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _stored(file: FilePath, positions: Sequence[tuple[float, float]], splits: Sequence[str]) -> list[PlanePoint]:
    """Return the points at the beginning of `file` that are whole and where they should be; none if it is not there."""
    if not file.is_file():
        return []
    *lines, _ = file.read_text(encoding="utf-8", errors="replace").split("\n")  # the last line may be a half one
    points = []
    expected = ((x, y, split) for x, y in positions for split in splits)
    for entry, (x, y, split) in zip(csv.reader(lines[1:]), expected, strict=False):
        try:
            *place, loss, accuracy, examples = entry
            measured = Measurement(float(loss), float(accuracy), int(examples))
        except ValueError:
            break
        if place != [repr(x), repr(y), split]:
            break
        points.append(PlanePoint(x=x, y=y, split=split, **vars(measured)))
    return points[: len(points) - len(points) % len(splits)]


@contextmanager
def _appending(file: FilePath, points: Sequence[PlanePoint]) -> Iterator[Callable[[Sequence[PlanePoint]], None]]:
    """Write `points` to `file` in place of what it holds; yield what appends further ones.

    A killed process loses nothing that was appended, a machine that loses its power a few seconds.
    """
    beginning = file.with_name(f"{file.name}.new")
    with beginning.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([[field.name for field in fields(PlanePoint)], *map(astuple, points)])
    beginning.replace(file)
    synced = time.monotonic()
    with file.open("a", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)

        def append(measured: Sequence[PlanePoint]) -> None:
            nonlocal synced
            writer.writerows(map(astuple, measured))
            stream.flush()
            if time.monotonic() > synced + _SECONDS_BETWEEN_SYNCS:
                os.fsync(stream.fileno())
                synced = time.monotonic()

        yield append


def _findings(points: Sequence[PlanePoint], span: Span, trace: Sequence[tuple[float, Place]]) -> list[Finding]:
    found = []
    for split in dict.fromkeys(point.split for point in points):
        of = [point for point in points if point.split == split and math.isfinite(point.loss)]
        values = {"loss": ("nats", [p.loss for p in of]), "error": ("fraction", [1 - p.accuracy for p in of])}
        for (what, extreme), metric in itertools.product(_EXTREMES.items() if of else (), values):
            unit, numbers = values[metric]
            value, examples = extreme(numbers), of[0].examples
            found.append(Finding(what=what, metric=metric, unit=unit, value=value, split=split, examples=examples))
    if trace:
        farthest = max(place.distance for _, place in trace) / span.length
        found.append(Finding(what="plane_curve", metric="distance", unit="fraction", value=farthest))
    return found
