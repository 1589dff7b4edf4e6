"""The report of one run: its figures, and the table that is printed when it ends."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lmc.errors import UserError
from lmc.report.contours import plane_figure
from lmc.report.convergence import convergence_figures
from lmc.report.estimates import of_values
from lmc.report.figures import run_figure, save, variance_figure
from lmc.report.layers import LAYER_BARRIER, layers_figure
from lmc.report.lines import lines
from lmc.report.looks import looks_table
from lmc.report.moments import moments, moments_figure
from lmc.report.planes import plane_files, read_plane
from lmc.report.runs import read_whole_path
from lmc.report.text import as_text
from lmc.results import ANALYSIS, PATH_FILE, RESULTS_FILE, VARIANCE, Row, read_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_STEM = "barrier"
VARIANCE_STEM = "variance"
MOMENTS_STEM = "moments"
LAYERS_STEM = "layers"
_SHOWN_ONE_BY_ONE = 6
_CELLS = (("train", "loss"), ("test", "loss"), ("train", "error"), ("test", "error"))
_BARRIER_HEADS = ("train loss, nats", "test loss, nats", "train error, %", "test error, %")
_LEVEL_HEADS = ("train loss, nats", "test loss, nats", "train accuracy, %", "test accuracy, %")
_PATHS = ("unaligned", "aligned")
_ALIGNMENT = (
    ("objective", "objective", 1),
    ("l2_reduction", "L2 reduction, %", 100),
    ("matched_correlation", "matched correlation", 1),
    ("accuracy_change", "accuracy change, %", 100),
    ("cycle_error", "cycle error, %", 100),
    ("seconds", "seconds", 1),
)


@dataclass(frozen=True)
class RunReport:
    """What is reported of a run.

    Attributes:
        table: to be printed.
        figures: the images that were drawn (.png; an .svg lies beside each).
    """

    table: str
    figures: tuple[Path, ...]


def write_run(folder: Path) -> RunReport:
    """Draw the figures of a run folder (.png and .svg) and return them with the table to be printed.

    The table has the endpoints, the barrier (and its value at the midpoint) before and after alignment, on train and
    test data, in loss and in error (an error barrier of 5 % is an accuracy barrier of 5 points), and, where there are
    such rows, the barycentre of all networks and what is known of the alignment.

    Raises:
        UserError: results.jsonl is missing or damaged, or a file that a figure is made of is damaged.
    """
    if not (folder / RESULTS_FILE).is_file():
        raise UserError(f"{folder} has no {RESULTS_FILE}; give the folder of a run")
    rows = read_rows(folder / RESULTS_FILE)
    drawn = [save(figure, folder / stem)[0] for stem, figure in _figures(folder, rows)]
    return RunReport(run_table(rows), tuple(drawn))


def _figures(folder: Path, rows: Sequence[Row]) -> Iterator[tuple[str, "Figure"]]:
    """Yield every figure that the results of a run give, with the name of its files."""
    if (folder / PATH_FILE).is_file():
        yield FIGURE_STEM, run_figure(lines([read_whole_path(folder / PATH_FILE)]))
    if variances := [row for row in rows if row.what == VARIANCE]:
        yield VARIANCE_STEM, variance_figure(variances)
    if (matrix := moments(rows)) is not None:
        yield MOMENTS_STEM, moments_figure(*matrix)
    if anatomy := [row for row in rows if row.what == LAYER_BARRIER]:
        yield LAYERS_STEM, layers_figure(anatomy)
    for plane in map(read_plane, plane_files(folder)):
        yield plane.stem, plane_figure(plane)
    yield from convergence_figures(folder)


def run_table(rows: Sequence[Row]) -> str:
    """Return the results of one run as text; empty for no rows."""
    own = [row for row in rows if ANALYSIS not in row.more]
    tables = [
        _levels("Endpoints", "network", list(_each(own, "endpoint"))),
        _barriers("Barrier: largest excess over the straight line between the ends", own, "barrier"),
        _barriers("Barrier at the midpoint: excess over the mean of the ends", own, "barrier_midpoint"),
        _levels("Barycentre of all networks", "path", _by_path([row for row in own if row.what == "barycentre"])),
        _alignments(own),
        looks_table(rows),
    ]
    return "\n".join(table for table in tables if table)


def _levels(title: str, name: str, groups: Sequence[tuple[str, Sequence[Row]]]) -> str:
    body = [[label, *_cells(own, accuracy=True)] for label, own in groups]
    return as_text(title, [name, *_LEVEL_HEADS], body, names=1)


def _barriers(title: str, rows: Sequence[Row], what: str) -> str:
    body = [
        [name, path, *_cells(own, accuracy=False)]
        for name, of_pair in _each(rows, what)
        for path, own in _by_path(of_pair)
    ]
    return as_text(title, ["pair", "path", *_BARRIER_HEADS], body, names=2)


def _alignments(rows: Sequence[Row]) -> str:
    chosen = [
        row for row in rows if row.what == "alignment" and (row.metric, row.split) != ("accuracy_change", "train")
    ]
    columns = [column for column in _ALIGNMENT if any(row.metric == column[0] for row in chosen)]
    joint = [row for row in chosen if len(row.pair) > 2]
    groups = [*_each([row for row in chosen if len(row.pair) == 2], "alignment")]
    groups += [("-".join(map(str, joint[0].pair)), joint)] if joint else []
    body = [
        [name, *(_mean([row.value * scale for row in own if row.metric == metric], 4) for metric, _, scale in columns)]
        for name, own in groups
    ]
    return as_text("Alignment", ["pair", *(head for _, head, _ in columns)], body, names=1)


def _each(rows: Sequence[Row], what: str) -> Iterator[tuple[str, list[Row]]]:
    """Yield the rows of each network or pair under its name, and of all together if there are more than two."""
    chosen = [row for row in rows if row.what == what]
    pairs = list(dict.fromkeys(row.pair for row in chosen))
    if len(pairs) <= _SHOWN_ONE_BY_ONE:
        for pair in pairs:
            yield "-".join(map(str, pair)), [row for row in chosen if row.pair == pair]
    if len(pairs) > 2:
        yield f"mean of {len(pairs)}", chosen


def _by_path(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    by_path = [(path, [row for row in rows if row.path == path]) for path in _PATHS]
    return [(path, own) for path, own in by_path if own]


def _cells(rows: Sequence[Row], *, accuracy: bool) -> list[str]:
    """Loss and error (or accuracy) on train and test data, the last two in per cent."""
    cells = []
    for split, metric in _CELLS:
        values = [row.value for row in rows if row.split == split and row.metric == metric]
        if metric == "error":
            values = [100 * (1 - value if accuracy else value) for value in values]
        cells.append(_mean(values, 2 if metric == "error" else 4))
    return cells


def _mean(values: Sequence[float], digits: int) -> str:
    found = of_values(values)
    if found is None:
        return "–"
    spread = f" ± {found.deviation:.{digits}f}" if found.count > 1 else ""
    return f"{found.mean:.{digits}f}{spread}"
