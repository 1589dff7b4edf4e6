"""The figure of layer-wise barriers: one layer alone, and more and more of them, beside random directions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lmc.report.figures import COLUMN_INCHES, GREY, PALETTE, STYLE
from lmc.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAYER_BARRIER = "layer_barrier"
_TITLES = {
    "single": "one layer",
    "window": "neighbouring layers",
    "bottom": "all layers up to",
    "top": "all layers from",
}
_STYLES: dict[str, Any] = {"fixed": "-", "moving": "--"}
_WAYS = {"moving": (PALETTE[0], "towards the other network"), "random": (GREY, "random direction")}
_LONGEST = 18


def layers_figure(rows: Sequence[Row]) -> "Figure":
    """Return the test loss barriers of networks of which some layers are merged, a panel for each way to choose them.

    Args:
        rows: those of the analysis `layer_barrier`, in the order of the network; the mean over pairs is drawn, with
            the sample deviation as a bar.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = [row for row in rows if (row.split, row.metric) == ("test", "loss")]
    modes = [mode for mode in _TITLES if any(row.more["mode"] == mode for row in shown)]
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, 0.5 + 2.1 * len(modes)), layout="constrained")
        panels = figure.subplots(len(modes), 1, squeeze=False)[:, 0]
        for axes, mode in zip(panels, modes, strict=True):
            _draw(axes, [row for row in shown if row.more["mode"] == mode])
            axes.set_title(_TITLES[mode])
            axes.set_ylabel("test loss barrier (nats)")
        keys = [Line2D([], [], color=colour, label=label) for colour, label in _WAYS.values()]
        keys += [
            Line2D([], [], color="#333333", linestyle=style, label=f"rest {rest}") for rest, style in _STYLES.items()
        ]
        figure.legend(handles=keys, loc="outside upper center", ncols=2)
        return figure


def _draw(axes: "Axes", rows: Sequence[Row]) -> None:
    layers = list(dict.fromkeys(row.more["layer"] for row in rows))
    places = np.arange(len(layers))
    for way, (colour, _) in _WAYS.items():
        for rest, style in _STYLES.items():
            values = [[row.value for row in rows if _is(row, layer, way, rest)] for layer in layers]
            if not all(values):
                continue
            means = [float(np.mean(of)) for of in values]
            bars = [float(np.std(of, ddof=1)) if len(of) > 1 else 0.0 for of in values]
            axes.errorbar(places, means, bars, fmt=style, color=colour, marker="o", capsize=2, elinewidth=0.8)
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    is_few = len(layers) <= 10
    names = [name if len(name) <= _LONGEST else "…" + name[-_LONGEST:] for name in layers]
    axes.set_xticks(places, names if is_few else [str(place + 1) for place in places])
    axes.tick_params(axis="x", rotation=30 if is_few else 90, labelsize=6)


def _is(row: Row, layer: str, way: str, rest: str) -> bool:
    return (row.more["layer"], row.more["direction"].split()[0], row.more["rest"]) == (layer, way, rest)
