"""Means and spreads of the numbers of a report, and how they are written."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmc.measures import MEASURES, Measure
from lmc.report.grouping import Setting
from lmc.report.runs import FinishedRun
from lmc.results import mean_and_deviation


@dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation of `count` values; the deviation of one value is NaN."""

    mean: float
    deviation: float
    count: int


def estimate(measure: Measure, runs: Iterable[FinishedRun]) -> Estimate | None:
    """Return the mean over all networks or pairs of some runs; None if it was not measured.

    A number that several runs share (an endpoint in two pairs, a run that was started twice) counts once.
    """
    values: dict[tuple[tuple[int, ...], str, str], float] = {}
    for run in runs:
        for row in run.rows:
            if measure.fits(row):
                one = row.pair, row.key, json.dumps(row.more, sort_keys=True)
                values[one] = 1 - row.value if measure.complement else row.value
    return of_values(list(values.values()))


def of_values(values: Sequence[float]) -> Estimate | None:
    """Return the estimate of plain numbers; None if there are none."""
    return Estimate(*mean_and_deviation(values), len(values)) if values else None


def pairs(setting: Setting) -> int:
    """Return how many pairs of networks a setting was measured on."""
    return len({(row.pair, row.key) for run in setting.runs for row in run.rows if MEASURES[0].fits(row)})


def written(measure: Measure, value: Estimate | None, plus_minus: str = "±", absent: str = "–") -> str:
    """Return "mean ± deviation" as printed, or the mean alone if there is no deviation."""
    if value is None:
        return absent
    mean = measure.shown(value.mean)
    return mean if math.isnan(value.deviation) else f"{mean} {plus_minus} {measure.shown(value.deviation)}"
