"""The HTML page of a sweep: one file that needs nothing else, with charts to point at and a table to sort."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from lmc.measures import Measure
from lmc.report.agreement import Agreements
from lmc.report.chart import Curve, chart, style_of
from lmc.report.estimates import Estimate
from lmc.report.lines import Line
from lmc.report.looks import Look, SweepLooks, shown
from lmc.report.paper import PaperTable
from lmc.report.paper_page import paper_sections
from lmc.report.planes import MeasuredPlane
from lmc.report.surfaces import surfaces
from lmc.report.tables import SweepTable, percent

_TEMPLATE = Path(__file__).with_name("page.html")
_SPLITS = ("train", "test")
LOOKS = "What the analyses found"
AGREEMENT = "Units that two alignments match alike, %"

Named = Sequence[tuple[str, Mapping[tuple[str, str], Line]]]


def page(
    papers: Sequence[PaperTable],
    table: SweepTable,
    named: Named,
    planes: Sequence[tuple[str, MeasuredPlane]],
    looks: SweepLooks,
    agreements: Agreements | None,
    problems: Sequence[str],
    definitions: Sequence[str],
) -> str:
    """Return the page as text.

    Args:
        papers: tables of papers that the runs belong to.
        table: the numbers.
        named: label and curves of each setting, in the order of the table's rows.
        planes: label and values of each measured plane.
        looks: what analyses found.
        agreements: of the permutations; None: there are not two of them.
        problems: one line for everything that is missing.
        definitions: lines that say what the numbers are.
    """
    curves = _curves(named)
    runs = sum(len(setting.runs) for setting in table.settings)
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        summary=f"{_count(runs, 'run')}, {_count(len(table.settings), 'setting')}, {_count(sum(table.pairs), 'pair')}",
        papers=paper_sections(papers),
        loss_chart=chart(curves, "loss", 1.0, "loss (nats)"),
        accuracy_chart=chart(curves, "accuracy", 100.0, "accuracy (%)"),
        legend="\n".join(_legend_entry(number, label) for number, (label, _) in enumerate(named)),
        table=_table(table),
        planes=surfaces(planes),
        looks=_looks(looks, [setting.label for setting in table.settings]),
        agreements=_matrix(agreements),
        definitions="\n".join(f"<p>{escape(line)}</p>" for line in definitions),
        problems=_problems(problems),
        data=_data(curves),
    )


def _curves(named: Named) -> list[Curve]:
    """Every line to draw, unaligned ones first (behind) and each of them once, though many settings share it."""
    unaligned: dict[tuple[object, ...], Curve] = {}
    aligned: list[Curve] = []
    for number, (label, own) in enumerate(named):
        for (path, split), line in own.items():
            if path == "unaligned":
                same = (split, line.t.tobytes(), line.loss.tobytes())
                unaligned.setdefault(same, Curve(None, "unaligned", path, split, line))
            else:
                aligned.append(Curve(number, label, path, split, line))
    return [*unaligned.values(), *aligned]


def _data(curves: Sequence[Curve]) -> str:
    """The curves as JSON for the script; "<" is escaped so that no text can end the script element."""
    entries = [
        {
            "setting": curve.number,
            "label": curve.label,
            "path": curve.path,
            "split": curve.split,
            "pairs": len(curve.line.loss),
            "t": _rounded(curve.line.t),
            **{metric: _rounded(curve.line.mean(metric)) for metric in ("loss", "accuracy")},
            **{
                f"{metric}_deviation": None if (spread := curve.line.deviation(metric)) is None else _rounded(spread)
                for metric in ("loss", "accuracy")
            },
        }
        for curve in curves
    ]
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _rounded(values: Any) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _legend_entry(number: int, label: str) -> str:
    inside = f"{_swatch(number)}<span>{escape(label)}</span>"
    return f'<button type="button" data-setting="{number}" aria-pressed="true">{inside}</button>'


def _swatch(number: int) -> str:
    return f'<svg class="swatch" viewBox="0 0 26 8"><path class="line" {style_of(number)} d="M1 4L25 4"/></svg>'


def _table(table: SweepTable) -> str:
    names = len(table.columns)
    spans = [f'<td colspan="{names + 1}"></td>']
    groups: list[list[Any]] = []
    for measure in table.measures:
        if groups and groups[-1][0] == measure.group:
            groups[-1][1] += 1
        else:
            groups.append([measure.group, 1])
    spans += [f'<th scope="colgroup" colspan="{width}">{escape(title)}</th>' for title, width in groups]
    heads = [_head(name, "", number=False) for name in table.columns] + [_head("pairs", "")]
    heads += [_head(measure.label, measure.unit) for measure in table.measures]
    best = [_best(measure, [row[n] for row in table.estimates]) for n, measure in enumerate(table.measures)]
    body = "\n".join(_row(table, number, best) for number in range(len(table.settings)))
    return f"<thead><tr>{''.join(spans)}</tr>\n<tr>{''.join(heads)}</tr></thead>\n<tbody>\n{body}\n</tbody>"


def _head(label: str, unit: str, *, number: bool = True) -> str:
    kind = ' class="number"' if number else ""
    suffix = f" <small>{escape(unit)}</small>" if unit else ""
    return f'<th scope="col"{kind} aria-sort="none"><button type="button">{escape(label)}{suffix}</button></th>'


def _row(table: SweepTable, number: int, best: Sequence[int | None]) -> str:
    setting = table.settings[number]
    cells = [f'<td data-value="{escape(value)}">{escape(value)}</td>' for value in setting.values]
    if cells:
        cells[0] = cells[0].replace(">", f">{_swatch(number)}", 1)
    cells.append(f'<td class="number" data-value="{table.pairs[number]}">{table.pairs[number]}</td>')
    for measure, value, winner in zip(table.measures, table.estimates[number], best, strict=True):
        cells.append(_cell(measure, value, is_best=winner == number))
    return f'<tr data-setting="{number}">{"".join(cells)}</tr>'


def _cell(measure: Measure, value: Estimate | None, *, is_best: bool) -> str:
    if value is None or math.isnan(value.mean):
        return '<td class="number" data-value="">–</td>'
    spread = "" if math.isnan(value.deviation) else f' <span class="spread">± {measure.shown(value.deviation)}</span>'
    kind = "number best" if is_best else "number"
    tip = f"{value.mean:.6g}, n = {value.count}"
    return f'<td class="{kind}" data-value="{value.mean!r}" title="{tip}">{measure.shown(value.mean)}{spread}</td>'


def _best(measure: Measure, column: Sequence[Estimate | None]) -> int | None:
    """The row with the best mean, if there are rows to choose from and it is a contest."""
    known = [(value.mean, row) for row, value in enumerate(column) if value is not None and not math.isnan(value.mean)]
    if len({mean for mean, _ in known}) < 2 or measure.lower_is_better is None:
        return None
    return (min(known) if measure.lower_is_better else max(known))[1]


def _matrix(agreements: Agreements | None) -> str:
    if agreements is None:
        return ""
    heads = "".join(f'<th scope="col" class="number">{escape(label)}</th>' for label in agreements.labels)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(label)}</th>{"".join(_shade(share) for share in shares)}</tr>'
        for label, shares in zip(agreements.labels, agreements.shares, strict=True)
    )
    table = f"<thead><tr><td></td>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    return (
        f'<section class="card"><h2>{AGREEMENT}</h2><div class="scroll"><table class="matrix">\n{table}\n'
        "</table></div></section>"
    )


def _looks(looks: SweepLooks, labels: Sequence[str]) -> str:
    if not looks.looks:
        return ""
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in [*Look._fields, *labels])
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in look)
        + "".join(f'<td class="number">{escape(shown(value))}</td>' for value in estimates)
        + "</tr>"
        for look, estimates in zip(looks.looks, looks.estimates, strict=True)
    )
    table = f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    return f'<section class="card"><h2>{LOOKS}</h2><div class="scroll"><table>\n{table}\n</table></div></section>'


def _shade(share: float | None) -> str:
    return f'<td class="number" style="--share: {share or 0:.3f}">{percent(share)}</td>'


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    entries = "".join(f"<li>{escape(problem)}</li>" for problem in problems)
    return f'<section class="card problems"><h2>Missing</h2><ul>{entries}</ul></section>'


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
