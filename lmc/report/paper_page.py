"""A paper's table as a section of the HTML page."""

from collections.abc import Mapping, Sequence
from html import escape

from lmc.experiment.table import Column
from lmc.report.costs import missing_costs
from lmc.report.grouping import ABSENT
from lmc.report.page_filters import filters
from lmc.report.page_parts import bullets, head, of_values, sortable, tip, with_code
from lmc.report.page_tables import precise
from lmc.report.paper import Cell, PaperTable
from lmc.report.paper_texts import FINDING, MISSING, difference, heading, notes, ours, published

_FOLDERS = 4
_LEAD = "† a lead: the number was not read in the paper or its code"
_HOW = (
    "In large letters ours, mean ± sample standard deviation over seeds; below it the paper's number and the "
    "difference, ✓ within the tolerance of the column, ✗ outside it (judged only where the recipe is the paper's). "
    f"{_LEAD}. Point at a cell, or go to it with Tab and the arrow keys, to read all that is known of it."
)

Values = dict[str, str]


def paper_sections(tables: Sequence[PaperTable]) -> str:
    """Return a section for each table."""
    return "\n".join(map(_section, tables))


def _section(found: PaperTable) -> str:
    rows, columns = _row_values(found), [_values(column.set) for column in found.table.columns]
    each = [
        {**rows[cell.row], **own}
        for line in found.cells
        for cell, own in zip(line, columns, strict=True)
        if cell is not None
    ]
    kind = "departs" if found.departs else "whole"
    return (
        f'<section class="card paper {kind}"><h2>{escape(found.table.title)}</h2><p>{escape(found.table.paper)}</p>'
        f'<p class="banner">{with_code(found.banner)}</p>{filters(each, "cells")}'
        f'<div class="scroll"><table>\n{_table(found, rows, columns)}\n</table></div>\n{_below(found)}</section>'
    )


def _table(found: PaperTable, rows: Mapping[str, Values], columns: Sequence[Values]) -> str:
    costs = {cost.job: f"missing, {cost.text}" for cost in missing_costs(found)}
    absent = {job: costs.get(job, "missing") for job in found.missing}
    heads = [head("row", number=False)]
    for column, own in zip(found.table.columns, columns, strict=True):
        unit = "" if column.measure is None else column.measure.unit
        heads.append(head(column.label, unit, attributes=of_values(own)))
    body = "\n".join(
        f'<tr{of_values(rows[label])}><th scope="row" data-value="{escape(label)}">{escape(label)}</th>'
        f"{''.join(_cell(found, cell, absent) for cell in cells)}</tr>"
        for label, cells in zip(found.table.rows, found.cells, strict=True)
    )
    return f"<thead><tr>{''.join(heads)}</tr></thead>\n<tbody>\n{body}\n</tbody>"


def _cell(found: PaperTable, cell: Cell | None, absent: Mapping[str, str]) -> str:
    if cell is None:
        return '<td class="number" data-value=""></td>'
    more = tip(*_more(found, cell, absent))
    return f'<td class="number"{sortable(cell.mean)}{more}>{_ours(cell, absent)}{_beside(cell)}</td>'


def _ours(cell: Cell, absent: Mapping[str, str]) -> str:
    if cell.mean is None:
        return f'<span class="absent">{escape(absent.get(cell.job, "not measured"))}</span>'
    mean, sign, deviation = ours(cell).partition(" ± ")
    spread = f' <span class="spread">± {deviation}</span>' if sign else ""
    return f'<span class="ours">{mean}{spread}</span>'


def _beside(cell: Cell) -> str:
    """The published number and the difference, in small letters below ours."""
    if cell.published is None:
        return ""
    verdict = {None: "", True: " within", False: " outside"}[cell.within]
    apart = f' <span class="difference{verdict}">{difference(cell)}</span>' if difference(cell) else ""
    return f'<span class="beside">paper {escape(published(cell))}{apart}</span>'


def _more(found: PaperTable, cell: Cell, absent: Mapping[str, str]) -> list[str]:
    """Everything that is known of a cell, a line each."""
    measure, runs = cell.column.measure, found.runs.get(cell.job, ())
    unit = f" {measure.unit}" if measure is not None and measure.unit else ""
    lines = [f"{cell.row}, {heading(cell.column)}"]
    if cell.ours is not None and measure is not None:
        how = " (not by the recipe)" if found.departs else ""
        lines.append(f"ours{how}: {precise(cell.ours, measure.scale, measure.unit)}")
    else:
        lines.append(f"ours: {absent.get(cell.job, 'not measured by the finished runs of this job')}")
    lines += _of_published(cell, unit)
    lines.append(f"job: {' '.join(found.table.jobs()[cell.job]) or 'no overrides'}")
    folders = list(dict.fromkeys(str(run.folder) for run in runs))
    lines += [f"run: {folder}" for folder in folders[:_FOLDERS]]
    return [*lines, *([f"and {len(folders) - _FOLDERS} more runs"] if len(folders) > _FOLDERS else [])]


def _of_published(cell: Cell, unit: str) -> list[str]:
    if cell.published is None:
        return []
    source = f", from {cell.published.source}" if cell.published.source else ""
    lines = [f"paper: {published(cell)}{unit}{source}", *([_LEAD] if cell.published.lead else [])]
    tolerance = cell.column.tolerance
    if cell.difference is None:
        return lines
    verdict = {None: "not judged", True: "✓ within", False: "✗ outside"}[cell.within]
    allowed = "no tolerance is set" if tolerance is None else f"{verdict}, tolerance {tolerance:g}{unit}"
    return [*lines, f"difference: {cell.difference:+.10g}{unit}; {allowed}"]


def _below(found: PaperTable) -> str:
    """The notes: findings first, what is missing folded up, the rest as it is; this page has a legend of its own."""
    known = notes(found)
    findings, missing = ([text for kind, text in known if kind == wanted] for wanted in (FINDING, MISSING))
    rest = [f"{kind}: {text}" for kind, text in known if kind not in (FINDING, MISSING)]
    parts = [f'<div class="findings"><h3>Findings</h3>{bullets(findings)}</div>'] if findings else []
    if missing:
        parts.append(f"<details><summary>Missing: {escape(missing[0])}</summary>{bullets(missing[1:])}</details>")
    return "".join([*parts, '<div class="notes">', *(f"<p>{with_code(line)}</p>" for line in [_HOW, *rest]), "</div>"])


def _values(overrides: Sequence[str]) -> Values:
    """Overrides as name to value."""
    return {name.lstrip("+"): value for name, _, value in (line.partition("=") for line in overrides)}


def _row_values(found: PaperTable) -> dict[str, Values]:
    """Row to name and value of all that rows set, so that filters find those, too, that leave it at its default."""
    own = {label: _values(overrides) for label, overrides in found.table.rows.items()}
    names = dict.fromkeys(name for values in own.values() for name in values)
    return {
        label: {name: values.get(name) or _default(found, label, name) for name in names}
        for label, values in own.items()
    }


def _default(found: PaperTable, row: str, name: str) -> str:
    """What the runs of a row say that they chose; a dash where none does."""
    columns: list[Column] = [column for column in found.table.columns if row in column.rows]
    runs = (run for column in columns for run in found.runs.get(found.table.job(row, column), ()))
    return next((run.choices[name] for run in runs if name in run.choices), ABSENT)
