"""What the analyses of a run found, as a table."""

from collections.abc import Sequence

from lmc.report.measures import of_values
from lmc.report.text import as_text
from lmc.results import ANALYSIS, Row

_HEADS = ("analysis", "what", "metric", "split", "unit", "value")
_SHOWN_BESIDE = "end"
_DIGITS = 4


def looks_table(rows: Sequence[Row]) -> str:
    """Return the numbers that say something of a whole path, mean over pairs; not those of single points of it."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if ANALYSIS not in row.more or set(row.more) - {ANALYSIS, _SHOWN_BESIDE}:
            continue
        metric = f"{row.metric}, {row.more[_SHOWN_BESIDE]}" if _SHOWN_BESIDE in row.more else row.metric
        name = (row.more[ANALYSIS], row.what, metric, row.split or "–", row.unit)
        groups.setdefault(name, []).append(row.value)
    return as_text("Further looks", list(_HEADS), [[*name, _shown(values)] for name, values in groups.items()], names=5)


def _shown(values: Sequence[float]) -> str:
    found = of_values(values)
    if found is None:
        return "–"
    return f"{found.mean:.{_DIGITS}f}" + (f" ± {found.deviation:.{_DIGITS}f}" if found.count > 1 else "")
