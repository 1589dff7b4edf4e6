"""What the analyses of a run or of a sweep found, as tables."""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import NamedTuple

from lmc.report.estimates import Estimate, of_values
from lmc.report.grouping import Setting
from lmc.report.text import as_text
from lmc.results import ANALYSIS, Row

_HEADS = ("analysis", "what", "metric", "split", "unit")
_SHOWN_BESIDE = "end"
_DIGITS = 4


class Look(NamedTuple):
    """One quantity that an analysis found; `split` is a dash where no data is involved."""

    analysis: str
    what: str
    metric: str
    split: str
    unit: str


@dataclass(frozen=True)
class SweepLooks:
    """What the analyses of a sweep found.

    Attributes:
        looks: one for each row.
        estimates: [row][setting], over pairs of networks; None where it was not measured.
    """

    looks: list[Look]
    estimates: list[list[Estimate | None]]


def looks_table(rows: Sequence[Row]) -> str:
    """Return the numbers that say something of a whole path, mean over pairs; not those of single points of it."""
    found = _values(rows)
    body = [[*look, shown(of_values(list(values.values())))] for look, values in found.items()]
    return as_text("Further looks", [*_HEADS, "value"], body, names=len(_HEADS))


def sweep_looks(settings: Sequence[Setting]) -> SweepLooks:
    """Return the same numbers for every setting of a sweep; what several runs share counts once."""
    found = [_values(row for run in setting.runs for row in run.rows) for setting in settings]
    looks = list(dict.fromkeys(look for values in found for look in values))
    return SweepLooks(looks, [[of_values(list(of.get(look, {}).values())) for of in found] for look in looks])


def markdown_looks(looks: SweepLooks, labels: Sequence[str]) -> str:
    """Return a pipe table with a column for each setting; empty if no analysis found anything."""
    if not looks.looks:
        return ""
    rules = [*("---" for _ in _HEADS), *("---:" for _ in labels)]
    body = [[*look, *map(shown, own)] for look, own in zip(looks.looks, looks.estimates, strict=True)]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in [[*_HEADS, *labels], rules, *body]]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def comma_separated_looks(looks: SweepLooks, columns: Sequence[str], settings: Sequence[Setting]) -> str:
    """Return CSV with a line for each quantity of each setting: full precision, the units of results.jsonl."""
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*columns, *_HEADS, "mean", "std", "n"])
    for look, estimates in zip(looks.looks, looks.estimates, strict=True):
        for setting, found in zip(settings, estimates, strict=True):
            if found is not None:
                writer.writerow([*setting.values, *look, found.mean, found.deviation, found.count])
    return stream.getvalue()


def shown(found: Estimate | None) -> str:
    """Return "mean ± deviation" as printed."""
    if found is None:
        return "–"
    return f"{found.mean:.{_DIGITS}f}" + (f" ± {found.deviation:.{_DIGITS}f}" if found.count > 1 else "")


def _values(rows: Iterable[Row]) -> dict[Look, dict[tuple[tuple[int, ...], str], float]]:
    """Every quantity of a whole path to its value for each pair and artifact."""
    found: dict[Look, dict[tuple[tuple[int, ...], str], float]] = {}
    for row in rows:
        if ANALYSIS not in row.more or set(row.more) - {ANALYSIS, _SHOWN_BESIDE}:
            continue
        metric = f"{row.metric}, {row.more[_SHOWN_BESIDE]}" if _SHOWN_BESIDE in row.more else row.metric
        look = Look(row.more[ANALYSIS], row.what, metric, row.split or "–", row.unit)
        found.setdefault(look, {})[row.pair, row.key] = row.value
    return found
