"""The HTML page of a sweep: one file that needs nothing else, with charts to point at and tables to sort and filter."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from lmc.report.agreement import Agreements
from lmc.report.chart import Curve, chart
from lmc.report.lines import Line
from lmc.report.looks import SweepLooks
from lmc.report.page_filters import setting_filters, setting_values
from lmc.report.page_parts import bullets, of_setting, swatch
from lmc.report.page_tables import AGREEMENT, LOOKS, agreement_section, looks_section, results
from lmc.report.paper import PaperTable
from lmc.report.paper_page import paper_sections
from lmc.report.planes import MeasuredPlane
from lmc.report.surfaces import surfaces
from lmc.report.tables import SweepTable

__all__ = ["AGREEMENT", "LOOKS", "Named", "page"]

_HERE = Path(__file__).parent
# Of more settings than this the bands would cover each other: only that of the path pointed at is drawn.
_MOST_BANDS = 8

Named = Sequence[tuple[str, Mapping[tuple[str, str], Line]]]


def page(
    papers: Sequence[PaperTable],
    table: SweepTable,
    named: Named,
    planes: Sequence[tuple[int, MeasuredPlane]],
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
        planes: number of the setting and values of each measured plane.
        looks: what analyses found.
        agreements: of the permutations; None: there are not two of them.
        problems: one line for everything that is missing.
        definitions: lines that say what the numbers are.
    """
    curves = _curves(named)
    runs = sum(len(setting.runs) for setting in table.settings)
    return Template(_file("page.html")).substitute(
        style=_file("page.css"),
        script=_file("page.js"),
        summary=f"{_count(runs, 'run')}, {_count(len(table.settings), 'setting')}, {_count(sum(table.pairs), 'pair')}",
        papers=paper_sections(papers),
        filters=setting_filters(table),
        charts="charts many" if len(named) > _MOST_BANDS else "charts",
        loss_chart=chart(curves, "loss", 1.0, "loss (nats)"),
        accuracy_chart=chart(curves, "accuracy", 100.0, "accuracy (%)"),
        legend="\n".join(_legend_entry(number, label) for number, (label, _) in enumerate(named)),
        table=results(table),
        planes=surfaces(planes, [label for label, _ in named]),
        looks=looks_section(looks, [setting.label for setting in table.settings]),
        agreements=agreement_section(agreements),
        definitions="\n".join(f"<p>{escape(line)}</p>" for line in definitions),
        problems=_problems(problems),
        data=_data(curves, setting_values(table)),
    )


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _curves(named: Named) -> list[Curve]:
    """Every line to draw, unaligned ones first (behind) and each of them once, though many settings share it."""
    unaligned: dict[tuple[object, ...], Curve] = {}
    aligned: list[Curve] = []
    for number, (label, own) in enumerate(named):
        for (path, split), line in own.items():
            if path == "unaligned":
                same = (split, line.t.tobytes(), line.loss.tobytes())
                shared = unaligned[same].settings if same in unaligned else ()
                unaligned[same] = Curve((*shared, number), "unaligned", path, split, line)
            else:
                aligned.append(Curve((number,), label, path, split, line))
    return [*unaligned.values(), *aligned]


def _data(curves: Sequence[Curve], settings: Sequence[Mapping[str, str]]) -> str:
    """What the script needs as JSON; "<" is escaped so that no text can end the script element."""
    entries = [
        {
            "settings": curve.settings,
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
    document = {"settings": settings, "curves": entries}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _rounded(values: Any) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]


def _legend_entry(number: int, label: str) -> str:
    inside = f"{swatch(number)}<span>{escape(label)}</span>"
    return f'<button type="button"{of_setting(number)} aria-pressed="true">{inside}</button>'


def _problems(problems: Sequence[str]) -> str:
    if not problems:
        return ""
    return f'<section class="card problems"><h2>Missing</h2>{bullets(problems)}</section>'


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
