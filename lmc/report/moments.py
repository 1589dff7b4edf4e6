"""The figure of simultaneous connectivity: the permutation of each moment tried at every moment."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lmc.report.figures import COLUMN_INCHES, STYLE
from lmc.results import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHAT = "moment_barrier"
_NONE = "none"
_DARK = 0.55
"""Above this share of the largest value a cell is so dark that its number is written in white."""


def moments(rows: Sequence[Row]) -> tuple[str, list[str], list[str], NDArray[np.float64]] | None:
    """Return what the rows of a run give for the figure, or None if they have no such matrix.

    Returns:
        The name of the axis; the names of the columns (the moments at which a permutation was found, "none" first) and
        of the rows (the moments at which it was tried); the test loss barriers (rows, columns), mean over pairs.
    """
    chosen = [row for row in rows if (row.what, row.split, row.metric) == (WHAT, "test", "loss")]
    if not chosen:
        return None
    found = list(dict.fromkeys(row.more.get("found_at") for row in chosen))
    applied = list(dict.fromkeys(row.more["applied_at"] for row in chosen))
    cells: dict[tuple[object, object], list[float]] = {}
    for row in chosen:
        cells.setdefault((row.more["applied_at"], row.more.get("found_at")), []).append(row.value)
    values = np.array([[np.mean(cells[at, by]) for by in found] for at in applied])
    columns = [_NONE if by is None else _written(by) for by in found]
    return chosen[0].more["axis"], columns, [_written(at) for at in applied], values


def moments_figure(axis: str, columns: Sequence[str], applied: Sequence[str], values: NDArray[np.float64]) -> "Figure":
    """Return the heat map of `moments`: a column for each permutation, a row for each moment at which it is tried."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "axes.grid": False}):
        height = 0.9 + 0.62 * COLUMN_INCHES * len(applied) / len(columns)
        figure = Figure(figsize=(COLUMN_INCHES, height), layout="constrained")
        axes = figure.subplots()
        drawn = axes.imshow(values, cmap="viridis_r", vmin=min(0.0, float(values.min())), aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            is_dark = value > values.min() + _DARK * np.ptp(values)
            colour = "white" if is_dark else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=6, color=colour)
        axes.set_xticks(range(len(columns)), columns)
        axes.set_yticks(range(len(applied)), applied)
        axes.axvline(0.5, color="white", linewidth=2)
        axes.set_xlabel(f"permutation found at {axis}")
        axes.set_ylabel(f"tried at {axis}")
        bar = figure.colorbar(drawn, ax=axes, pad=0.02)
        bar.set_label("test loss barrier (nats)")
        bar.outline.set_linewidth(0.5)
        return figure


def _written(moment: float) -> str:
    return f"{moment:.3g}"
