"""The figure of a plane: filled contours of loss and accuracy, with the networks and the curve."""

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmc.report.figures import COLUMN_INCHES, PANELS, STYLE
from lmc.report.planes import MeasuredPlane

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Sequential, even in lightness, and told apart with every common colour blindness; what is good is dark.
_COLOURS = {"loss": "viridis", "accuracy": "viridis_r"}
_SPLITS = {"loss": "train", "accuracy": "test"}
_BANDS = 10
_STEEPNESS = 250.0
"""The width of a band grows with the distance from the best value: by this factor over the whole range."""

CAPPED = 0.9
"""Losses above this quantile are drawn as if they were at it: the highest corner would flatten everything else."""


def plane_figure(plane: MeasuredPlane) -> "Figure":
    """Return the figure of one plane: the training loss, and the test accuracy below it.

    The levels lie the closer the better the value is (as in Garipov et al. 2018, fig. 1), up to the `CAPPED` share.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width, height = np.ptp(plane.x), np.ptp(plane.y)
    shape = float(np.clip(height / width, 0.6, 1.1))
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(COLUMN_INCHES, 0.6 + 2 * (0.12 + 2.05 * shape)), layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        for axes, (metric, label, scale) in zip(panels, PANELS, strict=True):
            split = _SPLITS[metric]
            values = plane.of(metric)
            split = split if split in values else next(iter(values))
            drawn = _contours(axes, plane, values[split] * scale, metric)
            bar = figure.colorbar(drawn, ax=axes, pad=0.02, aspect=18 * shape, format="%.3g")
            bar.set_label(f"{split} {label}")
            bar.ax.tick_params(length=2, labelsize=7)
            bar.outline.set_linewidth(0.5)
            _marks(axes, plane)
            if 1 / 2 <= height / width <= 2:
                axes.set_aspect("equal")
            axes.set_ylabel("second axis")
        panels[-1].set_xlabel("first axis (Euclidean distance)")
        return figure


def levels(values: NDArray[np.float64], *, best_is_low: bool) -> NDArray[np.float64]:
    """Return the edges of the bands, increasing: geometrically closer towards the best of `values`.

    The worst values beyond the `CAPPED` share are outside; only finite ones count.
    """
    sign = 1.0 if best_is_low else -1.0
    finite = sign * values[np.isfinite(values)]
    low, high = (float(finite.min()), float(np.quantile(finite, CAPPED))) if len(finite) else (0.0, 1.0)
    high = high if high > low else low + max(abs(low), 1.0) * 1e-6
    edges = low + (high - low) * (np.geomspace(1.0, _STEEPNESS, _BANDS + 1) - 1) / (_STEEPNESS - 1)
    return np.sort(sign * edges)


def _contours(axes: "Axes", plane: MeasuredPlane, values: NDArray[np.float64], metric: str) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import BoundaryNorm

    low_is_best = metric == "loss"
    edges = levels(values, best_is_low=low_is_best)
    beyond: Literal["max", "min"] = "max" if low_is_best else "min"
    colours = colormaps[_COLOURS[metric]]
    axes.set_facecolor("#bbbbbb")  # seen where nothing finite was measured
    drawn = axes.contourf(
        plane.x, plane.y, np.ma.masked_invalid(values), edges, cmap=colours, extend=beyond,
        norm=BoundaryNorm(edges, colours.N, extend=beyond),
    )  # fmt: skip
    axes.contour(plane.x, plane.y, np.ma.masked_invalid(values), edges, colors="white", linewidths=0.3, alpha=0.6)
    return drawn


def _marks(axes: "Axes", plane: MeasuredPlane) -> None:
    from matplotlib.patheffects import withStroke

    if len(plane.curve):
        axes.plot(*plane.curve.T, color="black", linewidth=2.6, solid_capstyle="round")
        axes.plot(*plane.curve.T, color="white", linewidth=1.4, solid_capstyle="round")
    places = np.array([place for _, *place in plane.networks])
    outwards = (places - places.mean(0)) / [np.ptp(plane.x), np.ptp(plane.y)]
    for (name, x, y), away in zip(plane.networks, outwards, strict=True):
        axes.plot(x, y, "o", markersize=5.5, markerfacecolor="white", markeredgecolor="black", zorder=4)
        axes.annotate(
            name, (x, y), tuple(9 * away / np.linalg.norm(away)), textcoords="offset points", ha="center", va="center",
            color="black", zorder=5, path_effects=[withStroke(linewidth=2.2, foreground="white")],
        )  # fmt: skip
