"""Barriers against a setting that is a number (the width of a network, its depth, the share of its zeros)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmc.measures import TREND_MEASURES
from lmc.report.estimates import Estimate, estimate
from lmc.report.figures import COLUMN_INCHES, GREY, PALETTE, STYLE, few_of_many, spread
from lmc.report.grouping import label_of
from lmc.report.looks import Look, SweepLooks
from lmc.report.tables import SweepTable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST = 3
"""Of so many values at least a line can be seen."""

_PANELS_IN_A_ROW = 3
Point = tuple[float, Estimate]


@dataclass(frozen=True)
class Trend:
    """How barriers depend on one setting.

    Attributes:
        column: the name of the setting.
        panels: the other settings' values to a quantity to its (value of the setting, estimate), in increasing order.
    """

    column: str
    panels: Mapping[str, Mapping[str, Sequence[Point]]]


def trend(table: SweepTable, looks: SweepLooks) -> Trend | None:
    """Return the test loss barriers of a sweep against the number that has most values; None if none has three."""
    numeric = [place for place in range(len(table.columns)) if len(_numbers(table, place)) >= _LEAST]
    if not numeric:
        return None
    place = max(numeric, key=lambda one: len(_numbers(table, one)))
    panels: dict[str, dict[str, list[Point]]] = {}
    for row, setting in enumerate(table.settings):
        x = float(setting.values[place])
        others = label_of(setting.values[:place] + setting.values[place + 1 :])
        found = {measure.path or measure.name: estimate(measure, setting.runs) for measure in TREND_MEASURES}
        for look, estimates in zip(looks.looks, looks.estimates, strict=True):
            if _is_drawn(look):
                found[f"{look.analysis}: {look.what}".replace("_", " ")] = estimates[row]
        own = panels.setdefault(others, {})
        for name, value in found.items():
            if value is not None:
                own.setdefault(name, []).append((x, value))
    ordered = {
        label: {name: sorted(of, key=lambda p: p[0]) for name, of in own.items()} for label, own in panels.items()
    }
    return Trend(table.columns[place], ordered)


def trend_figure(found: Trend) -> "Figure":
    """Return the figure: a panel for each combination of the other settings; error bars are sample deviations."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = {label: found.panels[label] for label in spread(list(found.panels))}
    names = list(dict.fromkeys(name for own in shown.values() for name in own))
    across = min(_PANELS_IN_A_ROW, len(shown))
    down = math.ceil(len(shown) / across)
    with rc_context(STYLE):
        width = COLUMN_INCHES * (1 if across == 1 else 2)
        figure = Figure(figsize=(width, 0.5 + 2.1 * down + 0.17 * len(names)), layout="constrained")
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        for number, (label, own) in enumerate(shown.items()):
            axes = panels[number // across, number % across]
            for name, points in own.items():
                _draw(axes, points, name, names)
            axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
            axes.set_title(label if len(shown) > 1 else "")
            _scale(axes, [x for points in own.values() for x, _ in points])
        for axes in panels.flatten()[len(shown) :]:
            axes.set_axis_off()
        for axes in panels[-1]:
            axes.set_xlabel(found.column)
        if len(shown) < len(found.panels):
            figure.suptitle(few_of_many(len(shown), len(found.panels)))
        figure.supylabel("test loss barrier (nats)", fontsize=8)
        handles = {
            handle.get_label(): handle for axes in panels.flatten() for handle in axes.get_legend_handles_labels()[0]
        }
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=1 if across == 1 else 2)
        return figure


def _draw(axes: "Axes", points: Sequence[Point], name: str, names: Sequence[str]) -> None:
    xs = [x for x, _ in points]
    deviations = [0.0 if math.isnan(of.deviation) else of.deviation for _, of in points]
    colour = PALETTE[names.index(name) % len(PALETTE)]
    means = [of.mean for _, of in points]
    axes.errorbar(xs, means, deviations, label=name, color=colour, marker="o", capsize=2, elinewidth=0.8)


def _scale(axes: "Axes", xs: Sequence[float]) -> None:
    """Widths that double stand at equal distances."""
    from matplotlib.ticker import NullLocator

    places = sorted(set(xs))
    if places[0] > 0 and places[-1] >= 8 * places[0]:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(places, [f"{place:g}" for place in places])


def _is_drawn(look: Look) -> bool:
    """Barriers in nats on test images; what is the largest of some lines grows with their number."""
    is_barrier = look.what.endswith("_barrier") and "largest" not in look.what
    return is_barrier and (look.split, look.metric) == ("test", "loss")


def _numbers(table: SweepTable, place: int) -> set[float]:
    """The values of a column, if all are numbers."""
    try:
        return {float(setting.values[place]) for setting in table.settings}
    except ValueError:
        return set()
