"""A paper's table in Markdown, CSV, LaTeX and plain text, ours beside the published numbers."""

import csv
from collections.abc import Sequence
from io import StringIO

from lmc.experiment.table import Column
from lmc.report.costs import Cost, missing_costs, total
from lmc.report.paper import Cell, PaperTable
from lmc.report.tables import escape_latex
from lmc.report.text import as_text

LEGEND = (
    "Ours [published, difference]; mean ± sample standard deviation over seeds. ✓ within the tolerance of the column, "
    "✗ outside it (judged only where the recipe is the paper's). † a lead: the number was not read in the paper or its "
    "code. – not measured yet."
)
FINDING, MISSING = "Finding", "Missing"
_HEADS = (
    *("experiment", "budget", "changed", "row", "column", "unit", "mean", "std", "n"),
    *("published", "published_std", "lead", "source", "difference", "tolerance", "within"),
    *("command", "commit", "versions", "hardware"),
)


def markdown_paper(found: PaperTable) -> str:
    """Return a section: the table, and below it what has to be known of it."""
    heads, body = _heads(found), _body(found)
    lines = [heads, ["---", *("---:" for _ in heads[1:])], *body]
    table = "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)
    below = "\n".join(f"- {line}" for line in [LEGEND, *(f"{kind}: {text}" for kind, text in notes(found))])
    return f"## {found.table.title}\n\n**{found.banner}**\n\n{found.table.paper}\n\n{table}\n{below}\n"


def notes(found: PaperTable) -> list[tuple[str, str]]:
    """Return what has to be known of a table, and of which kind it is: FINDING, MISSING (the first is the sum), ..."""
    sources = dict.fromkeys(cell.published.source for cell in found.all_cells if cell.published is not None)
    made = dict.fromkeys(_made(run.made) for runs in found.runs.values() for run in runs if run.made)
    lines = [("Published numbers", source) for source in sources if source]
    lines += [("Ours", f"`{found.command}`"), *(("Made with", line) for line in made)]
    costs = {cost.job: cost for cost in missing_costs(found)}
    if found.missing:
        altogether = f", {total(list(costs.values()))} in all" if costs else ""
        lines.append((MISSING, f"{missing_jobs(found)}{altogether}"))
        lines += [(MISSING, f"{job}{_about(costs.get(job))}") for job in found.missing]
    return [*lines, *((FINDING, finding) for finding in found.table.findings)]


def missing_jobs(found: PaperTable) -> str:
    """Return how many jobs of the table no run stands for, and how many of them its budget leaves out anyway."""
    left_out = len(set(found.missing) - found.table.within(found.budget))
    by_budget = f" ({left_out} of them left out by budget={found.budget})" if left_out else ""
    return f"{len(found.missing)} of {len(found.table.jobs())} jobs{by_budget}"


def comma_separated_papers(tables: Sequence[PaperTable]) -> str:
    """Return all cells of all tables as CSV in full precision, in the units of the columns, with what made them."""
    stream = StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_HEADS)
    for found in tables:
        for cell in found.all_cells:
            made = [run.made for run in found.runs.get(cell.job, ()) if run.made]
            versions = dict.fromkeys(" ".join(f"{k}={v}" for k, v in one["versions"].items()) for one in made)
            published = cell.published
            writer.writerow(
                [
                    *(found.experiment, found.budget, " ".join(found.changed), cell.row, cell.column.label),
                    "" if cell.column.measure is None else cell.column.measure.unit,
                    *map(_plain, (cell.mean, cell.deviation)),
                    cell.ours.count if cell.ours else 0,
                    *(("", "", "", "") if published is None else _reference(cell)),
                    *map(_plain, (cell.difference, cell.column.tolerance)),
                    "" if cell.within is None else str(cell.within).lower(),
                    found.command,
                    "; ".join(dict.fromkeys(str(one["commit"]) for one in made)),
                    "; ".join(versions),
                    "; ".join(dict.fromkeys(one["hardware"] for one in made)),
                ]
            )
    return stream.getvalue()


def latex_paper(found: PaperTable) -> str:
    """Return a tabular for a document that uses booktabs and amssymb."""
    heads, body = _heads(found), _body(found)
    lines = [
        r"% \usepackage{booktabs,amssymb}",
        f"% {found.table.title}. {found.table.paper}",
        f"% {found.banner}",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        _latex_row(heads),
        r"\midrule",
        *map(_latex_row, body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def plain_paper(found: PaperTable) -> str:
    """Return the table as text for the terminal, with its banner."""
    heads, body = _heads(found), _body(found)
    missing = f"\nmissing: {missing_jobs(found)}" if found.missing else ""
    return f"{as_text(f'{found.table.title} ({found.banner})', heads, body, names=1)}{LEGEND}{missing}"


def ours(cell: Cell) -> str:
    """Return our number as it is printed: "88.20 ± 0.15"; a dash if it was not measured."""
    if cell.mean is None or cell.column.measure is None:
        return "–"
    digits = cell.column.measure.digits
    return f"{cell.mean:.{digits}f}" + ("" if cell.deviation is None else f" ± {cell.deviation:.{digits}f}")


def published(cell: Cell) -> str:
    """Return the paper's number as it is printed: "87.4 ± 0.1", a lead with "†"; empty if there is none."""
    if cell.published is None:
        return ""
    deviation = "" if cell.published.deviation is None else f" ± {cell.published.deviation:g}"
    return f"{cell.published.mean:g}{deviation}{'†' if cell.published.lead else ''}"


def difference(cell: Cell) -> str:
    """Return the difference as it is printed: "+0.80 ✓"; empty if there is none."""
    if cell.difference is None or cell.column.measure is None:
        return ""
    mark = {None: "", True: " ✓", False: " ✗"}[cell.within]
    return f"{cell.difference:+.{cell.column.measure.digits}f}{mark}"


def heading(column: Column) -> str:
    """Return the heading of a column, with its unit."""
    unit = column.measure.unit if column.measure is not None else ""
    return f"{column.label} ({unit})" if unit else column.label


def _heads(found: PaperTable) -> list[str]:
    return ["", *map(heading, found.table.columns)]


def _body(found: PaperTable) -> list[list[str]]:
    return [[row, *map(_text, cells)] for row, cells in zip(found.table.rows, found.cells, strict=True)]


def _text(cell: Cell | None) -> str:
    if cell is None:
        return ""
    beside = ", ".join(part for part in (published(cell), difference(cell)) if part)
    return ours(cell) + (f" [{beside}]" if beside else "")


def _reference(cell: Cell) -> tuple[str, str, str, str]:
    one = cell.published
    assert one is not None
    return _plain(one.mean), _plain(one.deviation), str(one.lead).lower(), one.source


def _plain(value: float | None) -> str:
    return "" if value is None else repr(value)


def _made(made: object) -> str:
    assert isinstance(made, dict)
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version)
    return f"{versions}; commit {made['commit'] or 'unknown'}; {made['hardware']}"


def _about(cost: Cost | None) -> str:
    return "" if cost is None else f" ({cost.text}, judged by {cost.like})"


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(_in_latex(cell) for cell in cells) + r" \\"


def _in_latex(text: str) -> str:
    escaped = escape_latex(text)
    for sign, command in (("±", r"$\pm$"), ("✓", r"\checkmark{}"), ("✗", r"$\times$"), ("†", r"\textdagger{}")):
        escaped = escaped.replace(sign, command)
    return escaped
