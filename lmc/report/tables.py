"""The table of a sweep in Markdown, CSV, LaTeX and plain text."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import StringIO

from lmc.measures import MEASURES, Measure
from lmc.report.agreement import Agreements
from lmc.report.estimates import Estimate, estimate, pairs, written
from lmc.report.grouping import Setting, group
from lmc.report.runs import FinishedRun
from lmc.report.text import as_text

# What the terminal has room for.
_SHORT = ("aligned_train_loss_barrier", "aligned_test_loss_barrier", "unaligned_train_loss_barrier")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    **{character: "\\" + character for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class SweepTable:
    """The numbers of a sweep.

    Attributes:
        columns: names of the settings that differ.
        settings: one for each row.
        pairs: how many pairs each row was measured on.
        measures: the columns with numbers; those that nothing was measured for are left out.
        estimates: [row][measure].
    """

    columns: list[str]
    settings: list[Setting]
    pairs: list[int]
    measures: list[Measure]
    estimates: list[list[Estimate | None]]


def tabulate(runs: Sequence[FinishedRun]) -> SweepTable:
    """Group `runs` by setting and take mean and deviation of every measure."""
    columns, settings = group(runs)
    found = {measure: [estimate(measure, setting.runs) for setting in settings] for measure in MEASURES}
    measures = [measure for measure in MEASURES if any(value is not None for value in found[measure])]
    estimates = [[found[measure][row] for measure in measures] for row in range(len(settings))]
    return SweepTable(columns, settings, [pairs(setting) for setting in settings], measures, estimates)


def markdown(table: SweepTable) -> str:
    """Return a pipe table; numbers set to the right."""
    heads = [*table.columns, "pairs", *(measure.heading for measure in table.measures)]
    rules = [*("---" for _ in table.columns), *("---:" for _ in heads[len(table.columns) :])]
    lines = [heads, rules, *_cells(table, str)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def markdown_matrix(agreements: Agreements) -> str:
    """Return a pipe table of the shares in per cent."""
    heads = ["", *agreements.labels]
    lines = [heads, ["---", *("---:" for _ in agreements.labels)]]
    lines += [[label, *map(percent, row)] for label, row in zip(agreements.labels, agreements.shares, strict=True)]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def percent(share: float | None) -> str:
    """Return a share as it is printed."""
    return "–" if share is None else f"{100 * share:.1f}"


def comma_separated(table: SweepTable) -> str:
    """Return CSV in full precision and the units of results.jsonl: mean, standard deviation and count of each."""
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    parts = ("mean", "std", "n")
    writer.writerow([*table.columns, "pairs", *(f"{m.name}_{part}" for m in table.measures for part in parts)])
    for setting, count, estimates in zip(table.settings, table.pairs, table.estimates, strict=True):
        numbers = [(e.mean, e.deviation, e.count) if e else ("", "", 0) for e in estimates]
        writer.writerow([*setting.values, count, *(number for triple in numbers for number in triple)])
    return stream.getvalue()


def latex(table: SweepTable) -> str:
    """Return a tabular for a document that uses booktabs."""
    names = len(table.columns)
    groups: list[tuple[str, int]] = []
    for measure in table.measures:
        same = groups and groups[-1][0] == measure.group
        groups = [*groups[:-1], (measure.group, groups[-1][1] + 1)] if same else [*groups, (measure.group, 1)]
    spans, rules, at = [""] * (names + 1), [], names + 2
    for title, width in groups:
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{escape_latex(title)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    heads = [*table.columns, "pairs", *(measure.own_heading for measure in table.measures)]
    body = [_latex_row(cells) for cells in _cells(table, escape_latex, r"$\pm$", "--")]
    lines = [
        r"% \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{'l' * names}{'r' * (1 + len(table.measures))}}}",
        r"\toprule",
        _latex_row(spans),
        " ".join(rules),
        _latex_row([escape_latex(head) for head in heads]),
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def plain(table: SweepTable) -> str:
    """Return the main columns as text for the terminal."""
    shown = [number for number, measure in enumerate(table.measures) if measure.name in _SHORT]
    heads = [
        *table.columns,
        "pairs",
        *(f"{table.measures[number].path} {table.measures[number].label}" for number in shown),
    ]
    names = len(table.columns)
    body = [[*cells[: names + 1], *(cells[names + 1 + n] for n in shown)] for cells in _cells(table, str)]
    return as_text("Loss barrier in nats, mean ± standard deviation over pairs", heads, body, names=names)


def escape_latex(text: str) -> str:
    """Return `text` with every character that LaTeX gives a meaning escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def _cells(table: SweepTable, name: Callable[[str], str], plus_minus: str = "±", absent: str = "–") -> list[list[str]]:
    return [
        [
            *(name(value) for value in setting.values),
            str(count),
            *(written(m, e, plus_minus, absent) for m, e in zip(table.measures, estimates, strict=True)),
        ]
        for setting, count, estimates in zip(table.settings, table.pairs, table.estimates, strict=True)
    ]


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
