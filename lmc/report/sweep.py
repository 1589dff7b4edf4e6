"""The report of a sweep: one row per setting, in Markdown, CSV, LaTeX and HTML, and the paths laid over each other."""

from collections.abc import Sequence
from pathlib import Path

from lmc.errors import UserError
from lmc.report.agreement import Agreements, compare, with_agreement
from lmc.report.figures import save, sweep_figure
from lmc.report.grouping import Setting
from lmc.report.lines import Line, lines
from lmc.report.looks import SweepLooks, comma_separated_looks, markdown_looks, sweep_looks
from lmc.report.page import AGREEMENT, LOOKS, page
from lmc.report.paper import PaperTable, paper_tables
from lmc.report.paper_texts import comma_separated_papers, latex_paper, markdown_paper, plain_paper
from lmc.report.planes import MeasuredPlane
from lmc.report.runs import collect
from lmc.report.tables import SweepTable, comma_separated, latex, markdown, markdown_matrix, plain, tabulate
from lmc.report.trends import Trend, trend, trend_figure

FIGURE_STEM = "paths"
TREND_STEM = "trend"
_FIGURES = {
    FIGURE_STEM: "loss and accuracy along the paths",
    TREND_STEM: "barriers against a setting that is a number",
}
DEFINITIONS = (
    "barrier: max over t of L(t) - [(1-t) L(0) + t L(1)]; midpoint barrier: L(1/2) - (L(0) + L(1)) / 2; nothing is "
    "clipped.",
    "midpoint: t = 1/2. L2 reduction: by how much the alignment brings the weights closer, in shares of their "
    "distance. Matched correlation: of the activations of matched units on training images. Accuracy change: of the "
    "networks themselves, by an alignment that mixes units. Cycle error: units that do not come back to themselves "
    "around three networks. As weight matching: units matched alike.",
    "Error barriers are in percentage points. mean ± sample standard deviation over pairs (endpoints: over networks).",
)


def write_sweep(folders: Sequence[Path], out: Path) -> str:
    """Write report.md, report.csv, report.tex, report.html and the figures paths and trend (.png, .svg) into `out`.

    What analyses found is in looks.csv too, if there were any. The table of a paper, with the published numbers beside
    ours, comes first in all of them, and is in table.csv.

    Args:
        folders: searched, with everything below them, for run folders. Runs that differ only in their seeds, the
            device, the store, the tracker or the batch size of a measurement make one row.
        out: made if it does not exist.

    Returns:
        The text to be printed: a short table, what is missing, and where the files are.

    Raises:
        UserError: a folder does not exist, or no run in them has ended.
    """
    found = collect(folders)
    if not found.runs:
        names = ", ".join(map(str, folders))
        more = "".join(f"; {problem}" for problem in found.problems[:1])
        raise UserError(f"no finished run below {names}{more}; run the experiment, or give another folder")
    out.mkdir(parents=True, exist_ok=True)
    papers, wrong = paper_tables(found.runs)
    problems = [*found.problems, *wrong]
    table = tabulate(with_agreement(found.runs))
    looks = sweep_looks(table.settings)
    against = trend(table, looks)
    agreements = compare(table.settings)
    curves = [lines(run.points for run in setting.runs) for setting in table.settings]
    named = [(setting.label, own) for setting, own in zip(table.settings, curves, strict=True)]
    files = {
        "report.md": _markdown_report(
            papers,
            table,
            looks,
            agreements,
            problems,
            [*([FIGURE_STEM] if any(curves) else []), *([TREND_STEM] if against else [])],
        ),
        "report.csv": comma_separated(table),
        "report.tex": "\n".join([*map(latex_paper, papers), latex(table)]),
        "report.html": page(papers, table, named, _planes(table.settings), looks, agreements, problems, DEFINITIONS),
    }
    if papers:
        files["table.csv"] = comma_separated_papers(papers)
    if looks.looks:
        files["looks.csv"] = comma_separated_looks(looks, table.columns, table.settings)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
    drawn = _draw(table.settings, curves, out) + _draw_trend(against, out)
    missing = [f"missing: {problem}" for problem in problems]
    shown = [*map(plain_paper, papers)] or [plain(table)]
    return "\n".join([*shown, *missing, f"report: {out / 'report.html'} (.md, .csv, .tex){drawn}"])


def _planes(settings: Sequence[Setting]) -> list[tuple[int, MeasuredPlane]]:
    """Every plane with the number of its setting; one that several runs share (the same experiment twice) once."""
    found: dict[tuple[object, ...], tuple[int, MeasuredPlane]] = {}
    for number, setting in enumerate(settings):
        for plane in (plane for run in setting.runs for plane in run.planes):
            values = tuple(grid.tobytes() for grid in plane.loss.values())
            found.setdefault((number, plane.stem, *values), (number, plane))
    return list(found.values())


def _draw(settings: Sequence[Setting], curves: Sequence[dict[tuple[str, str], Line]], out: Path) -> str:
    with_curves = [(setting.values, own) for setting, own in zip(settings, curves, strict=True) if own]
    if not with_curves:
        return ""
    png, _ = save(sweep_figure(with_curves), out / FIGURE_STEM)
    return f"\nfigure: {png} (.svg)"


def _draw_trend(against: Trend | None, out: Path) -> str:
    if against is None:
        return ""
    png, _ = save(trend_figure(against), out / TREND_STEM)
    return f"\nfigure: {png} (.svg)"


def _markdown_report(
    papers: Sequence[PaperTable],
    table: SweepTable,
    looks: SweepLooks,
    agreements: Agreements | None,
    problems: Sequence[str],
    figures: Sequence[str],
) -> str:
    parts = [
        "# Report",
        *map(markdown_paper, papers),
        *(["## All settings"] if papers else []),
        markdown(table),
        "\n".join(f"- {line}" for line in DEFINITIONS),
    ]
    parts += [f"![{_FIGURES[stem]}]({stem}.png)" for stem in figures]
    if looks.looks:
        parts.append(f"## {LOOKS}\n\n{markdown_looks(looks, [setting.label for setting in table.settings])}")
    if agreements is not None:
        parts.append(f"## {AGREEMENT}\n\n{markdown_matrix(agreements)}")
    if problems:
        parts.append("## Missing\n\n" + "\n".join(f"- {problem}" for problem in problems))
    return "\n\n".join(part.rstrip() for part in parts) + "\n"
