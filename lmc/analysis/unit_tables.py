"""The tables of convergent learning: what is written of units, predictions and clusters, and what they come to."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path as FilePath
from typing import Any

from lmc.analysis.base import Finding
from lmc.evaluation.convergent_learning import Partners, UnitCorrelations

ENDS = ("fixed", "moving")


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A line of units.csv: a unit of the network `end`, and its partners in the other network (-1: none).

    Attributes:
        layer: its group.
        end: "fixed" or "moving".
        unit: its number.
        live: 1, or 0 if it is constant.
        match: its partner in the one-to-one matching, and their `correlation`.
        best: the unit that correlates most with it, and their correlation `highest`.
        chosen: of how many units of the other network it is the best.
    """

    layer: str
    end: str
    unit: int
    live: int
    match: int
    correlation: float
    best: int
    highest: float
    chosen: int


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """A line of prediction.csv: the units of the fixed network, predicted from those of the moving one.

    Attributes:
        layer: the group.
        method: "lasso"; "one_to_one" or "best_unit" (from the matched unit alone, or the one with the highest absolute
            correlation); "least_squares" (from all).
        penalty: of the lasso; empty for the others.
        error: mean over the targets of 1 - explained variance, on the images that the map was fitted to.
        used: mean number of units that a target is predicted from.
        gap: the largest duality gap.
        targets: how many units are predicted: those that are not dead.
    """

    layer: str
    method: str
    penalty: float | None = None
    error: float
    used: float
    gap: float = 0.0
    targets: int


@dataclass(frozen=True, kw_only=True)
class Clustered:
    """A line of clusters.csv; see `lmc.evaluation.clustering.Mixing`.

    Attributes:
        layer: the group.
        share: how many clusters were asked for, in shares of the units of one network.
        units: of both networks, without the dead ones.
        clusters, mixed, by_chance, alone: of the clusters that were found.
    """

    layer: str
    share: float
    units: int
    clusters: int
    mixed: float
    by_chance: float
    alone: float


@dataclass(frozen=True, kw_only=True)
class Part:
    """What was found of one group."""

    units: list[Unit]
    predicted: list[Predicted]
    clustered: list[Clustered]


def units_of(found: UnitCorrelations, pairs: Partners) -> Iterator[Unit]:
    """Yield the lines of both networks' units of one group."""
    back = pairs.match.argsort()
    matches = (pairs.match, back), (pairs.matched, pairs.matched[back])
    for side, end in enumerate(ENDS):
        columns = [
            column.tolist()
            for column in (
                *(found.live[side].int(), matches[0][side], matches[1][side]),
                *(pairs.best[side], pairs.highest[side], pairs.chosen[side]),
            )
        ]
        for unit, (live, match, correlation, best, highest, chosen) in enumerate(zip(*columns, strict=True)):
            yield Unit(
                layer=found.group, end=end, unit=unit, live=live, match=match, correlation=correlation,
                best=best, highest=highest, chosen=chosen,
            )  # fmt: skip


def read_part(file: FilePath) -> Part:
    """Read what was found of one group from its JSON file."""
    content = json.loads(file.read_text(encoding="utf-8"))
    return Part(
        units=[Unit(**row) for row in content["units"]],
        predicted=[Predicted(**row) for row in content["predicted"]],
        clustered=[Clustered(**row) for row in content["clustered"]],
    )


def write_rows(file: FilePath, kind: type[Any], rows: Sequence[Any]) -> None:
    """Write rows of one dataclass as CSV, None as an empty field."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(kind)])
        writer.writeheader()
        writer.writerows(map(asdict, rows))


def summarise(parts: Sequence[Part], examples: int, *, by_layer: bool = False) -> Iterator[Finding]:
    """The means over the units of `parts`."""
    units = [row for part in parts for row in part.units]
    layer = {"layer": units[0].layer} if by_layer else {}
    of = partial(Finding, split="train", examples=examples)
    correlation = partial(of, metric="correlation", unit="correlation")
    fixed = [row for row in units if row.end == "fixed"]
    yield correlation(what="one_to_one", value=_average([row.correlation for row in fixed]), more=layer)
    for end in ENDS:
        own = [row for row in units if row.end == end]
        live = [row for row in own if row.live] or own  # where all are dead, all are chosen never
        more = {**layer, "end": end}
        yield correlation(what="semi_matching", value=_average([row.highest for row in own]), more=more)
        shares = {
            ("semi_matching", "never_chosen"): [row.chosen == 0 for row in live],
            ("semi_matching", "chosen_again"): [row.chosen > 1 for row in live],
            ("units", "dead"): [not row.live for row in own],
        }
        for (what, metric), values in shares.items():
            yield of(what=what, metric=metric, unit="fraction", value=_average(values), more=more)
    yield from _prediction_findings([row for part in parts for row in part.predicted], layer, of)
    yield from _cluster_findings([row for part in parts for row in part.clustered], layer, of)


def _prediction_findings(
    rows: Sequence[Predicted], layer: Mapping[str, Any], of: partial[Finding]
) -> Iterator[Finding]:
    """The error of each method; of the lasso at each penalty, with the units that it uses and the duality gap."""
    for method, penalty in dict.fromkeys((row.method, row.penalty) for row in rows if row.targets):
        own = [row for row in rows if (row.method, row.penalty) == (method, penalty)]
        more = layer if penalty is None else {**layer, "penalty": penalty}
        targets = [row.targets for row in own]
        error = _average([row.error for row in own], targets)
        yield of(what="prediction_error", metric=method, unit="fraction", value=error, more=more)
        if penalty is not None:
            used = _average([row.used for row in own], targets)
            yield of(what="prediction_units", metric=method, unit="units", value=used, more=more)
            gap = max(row.gap for row in own)
            yield of(what="prediction_gap", metric=method, unit="fraction", value=gap, more=more)


def _cluster_findings(rows: Sequence[Clustered], layer: Mapping[str, Any], of: partial[Finding]) -> Iterator[Finding]:
    """How mixed the clusters are, for each number of them and on average over these numbers."""
    for share in [None, *dict.fromkeys(row.share for row in rows)] if rows else ():
        own = [row for row in rows if share in (None, row.share)]
        more = layer if share is None else {**layer, "clusters": share}
        for metric in ("mixed", "by_chance", "alone"):
            value = _average([getattr(row, metric) for row in own], [row.units for row in own])
            yield of(what="clusters", metric=metric, unit="fraction", value=value, more=more)


def _average(values: Sequence[float], weights: Sequence[float] | None = None) -> float:
    weights = weights or [1.0] * len(values)
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
