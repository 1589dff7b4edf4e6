"""The tables of the HTML page that belong to any sweep: the results, what analyses found, and agreements."""

import math
from collections.abc import Sequence
from html import escape

from lmc.measures import Measure
from lmc.report.agreement import Agreements
from lmc.report.estimates import Estimate
from lmc.report.grouping import ABSENT
from lmc.report.looks import Look, SweepLooks, shown
from lmc.report.page_parts import head, of_setting, sortable, swatch, tip
from lmc.report.tables import SweepTable, percent

LOOKS = "What the analyses found"
AGREEMENT = "Units that two alignments match alike, %"
_MISSING = f'<td class="number" data-value="">{ABSENT}</td>'


def results(table: SweepTable) -> str:
    """Return head and body of the table with a row for each setting."""
    spans = [f'<td colspan="{len(table.columns) + 1}"></td>']
    groups: list[list[str]] = []
    for measure in table.measures:
        if groups and groups[-1][0] == measure.group:
            groups[-1].append(measure.label)
        else:
            groups.append([measure.group, measure.label])
    spans += [f'<th scope="colgroup" colspan="{len(own)}">{escape(title)}</th>' for title, *own in groups]
    heads = [head(name, number=False) for name in table.columns] + [head("pairs")]
    heads += [head(measure.label, measure.unit) for measure in table.measures]
    best = [_best(measure, [row[n] for row in table.estimates]) for n, measure in enumerate(table.measures)]
    body = "\n".join(_row(table, number, best) for number in range(len(table.settings)))
    return f"<thead><tr>{''.join(spans)}</tr>\n<tr>{''.join(heads)}</tr></thead>\n<tbody>\n{body}\n</tbody>"


def looks_section(looks: SweepLooks, labels: Sequence[str]) -> str:
    """Return the section with a row for each quantity and a column for each setting; empty if nothing was found.

    Args:
        looks: what analyses found.
        labels: of the settings.
    """
    if not looks.looks:
        return ""
    heads = [head(name, number=False) for name in Look._fields]
    heads += [head(label, attributes=of_setting(number)) for number, label in enumerate(labels)]
    rows = "\n".join(
        f"<tr>{''.join(_name(cell) for cell in look)}{''.join(_found(look, value) for value in estimates)}</tr>"
        for look, estimates in zip(looks.looks, looks.estimates, strict=True)
    )
    return _section(LOOKS, f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{rows}\n</tbody>")


def agreement_section(agreements: Agreements | None) -> str:
    """Return the section with the matrix of agreements; empty if there is none."""
    if agreements is None:
        return ""
    heads = "".join(f'<th scope="col" class="number">{escape(label)}</th>' for label in agreements.labels)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(_shade(share) for share in shares)}</tr>'
        for label, shares in zip(agreements.labels, agreements.shares, strict=True)
    )
    return _section(
        AGREEMENT, f"<thead><tr><td></td>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>", kind=' class="matrix"'
    )


def _section(title: str, table: str, kind: str = "") -> str:
    return (
        f'<section class="card"><h2>{escape(title)}</h2><div class="scroll"><table{kind}>\n{table}\n'
        "</table></div></section>"
    )


def _row(table: SweepTable, number: int, best: Sequence[int | None]) -> str:
    cells = [_name(value) for value in table.settings[number].values]
    if cells:
        cells[0] = cells[0].replace(">", f">{swatch(number)}", 1)
    cells.append(f'<td class="number"{sortable(table.pairs[number])}>{table.pairs[number]}</td>')
    for measure, value, winner in zip(table.measures, table.estimates[number], best, strict=True):
        cells.append(_cell(measure, value, is_best=winner == number))
    return f"<tr{of_setting(number)}>{''.join(cells)}</tr>"


def _name(value: str) -> str:
    return f'<td data-value="{"" if value == ABSENT else escape(value)}">{escape(value)}</td>'


def _cell(measure: Measure, value: Estimate | None, *, is_best: bool) -> str:
    if value is None or math.isnan(value.mean):
        return _MISSING
    spread = "" if math.isnan(value.deviation) else f' <span class="spread">± {measure.shown(value.deviation)}</span>'
    kind = "number best" if is_best else "number"
    more = tip(f"{measure.group} {measure.label}", precise(value, measure.scale, measure.unit))
    return f'<td class="{kind}"{sortable(value.mean)}{more}>{measure.shown(value.mean)}{spread}</td>'


def precise(value: Estimate, scale: float, unit: str) -> str:
    """Return an estimate with ten digits, in a unit that is `scale` times as small as its own."""
    spread = "" if math.isnan(value.deviation) else f" ± {value.deviation * scale:.10g}"
    return f"{value.mean * scale:.10g}{spread}{' ' if unit else ''}{unit}, n = {value.count}"


def _found(look: Look, value: Estimate | None) -> str:
    if value is None:
        return _MISSING
    more = tip(f"{look.what}, {look.metric}", precise(value, 1.0, look.unit))
    return f'<td class="number"{sortable(value.mean)}{more}>{escape(shown(value))}</td>'


def _best(measure: Measure, column: Sequence[Estimate | None]) -> int | None:
    """The row with the best mean, if there are rows to choose from and it is a contest."""
    known = [(value.mean, row) for row, value in enumerate(column) if value is not None and not math.isnan(value.mean)]
    if len({mean for mean, _ in known}) < 2 or measure.lower_is_better is None:
        return None
    return (min(known) if measure.lower_is_better else max(known))[1]


def _shade(share: float | None) -> str:
    return f'<td class="number" style="--share: {share or 0:.3f}">{percent(share)}</td>'
