"""One network after the other along a path, and the barrier of what is measured of them."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path as FilePath

from lmc.analysis.base import Finding, OnStep, Subject
from lmc.evaluation.measure import Measurement
from lmc.evaluation.path import equal_grid
from lmc.results import path_statistics
from lmc.state import State

_COLUMNS = ("t", "loss", "accuracy", "distance", "examples")


def along_path(
    name: str, subject: Subject, grid: int, measure: Callable[[State], Measurement], file: FilePath, on_step: OnStep
) -> list[Finding]:
    """Measure the networks at equally spaced t, each corrected as on the path itself, and write the raw points.

    Args:
        name: of what is measured: its metrics are "<name>_loss" and "<name>_error".
        subject: a joined pair.
        grid: number of points, odd, so that 0, 1/2 and 1 are among them.
        measure: what is measured of each network, on test images.
        file: a CSV file of t, loss (nats), accuracy (fraction), distance (length of the path up to t) and examples.
        on_step: called after each point with t, loss and accuracy.

    Returns:
        Loss and error at each t ("point", with t beside), and every barrier and summary of `path_statistics`.

    Raises:
        UserError: the grid is even, or less than 3.
    """
    points = equal_grid(grid)
    distances = subject.joined.distance(points)
    found: list[Measurement] = []
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(_COLUMNS)
        for t, distance in zip(points, distances, strict=True):
            found.append(measure(subject.correction(subject.joined.state(t), (1 - t, t))))
            measured = found[-1]
            writer.writerow((t, measured.loss, measured.accuracy, distance, measured.examples))
            on_step({"t": t, f"{name}_loss": measured.loss, f"{name}_accuracy": measured.accuracy})
    examples = found[0].examples
    findings = []
    for metric, unit, values in (
        (f"{name}_loss", "nats", [measured.loss for measured in found]),
        (f"{name}_error", "fraction", [1 - measured.accuracy for measured in found]),
    ):
        of = partial(Finding, metric=metric, unit=unit, split="test", examples=examples)
        findings += [of(what="point", value=value, more={"t": t}) for t, value in zip(points, values, strict=True)]
        statistics = path_statistics(points, values, distances)
        findings += [of(what=what, value=value) for what, value in statistics.items()]
    return findings
