"""Figures as a paper prints them: loss and accuracy along the path, legible in one column."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from lmc.report.grouping import label_of
from lmc.report.lines import Line, Metric
from lmc.results import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), told apart with every common colour blindness; without yellow, which is lost on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#767676"
_PATH_COLOURS = {"unaligned": "#D55E00", "aligned": "#0072B2"}
_SPLIT_STYLES: dict[str, Any] = {"train": "-", "validation": ":", "test": "--"}
_CORRECTION_STYLES: dict[str, Any] = {"before": ":", "after": "-"}  # the correction of the merged network
PANELS: tuple[tuple[Metric, str, float], ...] = (("loss", "loss (nats)", 1.0), ("accuracy", "accuracy (%)", 100.0))
COLUMN_INCHES = 3.4
_COLUMNS = 4
_SHORT_LABEL = 20
STYLE: Any = {  # matplotlib types its keys one by one, differently in each version
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 3.6,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.2,
    "svg.hashsalt": "lmc",  # the same figure gives the same bytes
    "svg.fonttype": "path",
}

MOST_PANELS = 16
"""More panels could not be told apart on a page, and take minutes to draw."""

T = TypeVar("T")
Lines = Mapping[tuple[str, str], Line]


def run_figure(lines: Lines) -> "Figure":
    """Return the figure of one run: unaligned beside aligned, train solid and test dashed, every pair thin."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure, panels = _panels(height=4.3)
        for axes, (metric, _, scale) in zip(panels, PANELS, strict=True):
            for (path, split), line in _ordered(lines):
                _draw(axes, line, metric, scale, _PATH_COLOURS[path], _SPLIT_STYLES[split], members=True)
        colours = [_key(_PATH_COLOURS[path], "-", path) for path in _PATH_COLOURS if any(p == path for p, _ in lines)]
        figure.legend(handles=[*colours, *_split_keys(lines)], loc="outside upper center", ncols=4)
        return figure


def sweep_figure(settings: Sequence[tuple[tuple[str, ...], Lines]]) -> "Figure":
    """Return the figure of a sweep: the mean aligned path of every setting, the unaligned ones grey behind them.

    More settings than there are colours get panels: one for each value of the column that has most of them.

    Args:
        settings: values and lines of each setting, in the order of the legend.
    """
    from matplotlib import rc_context

    with rc_context(STYLE):
        if len(settings) > len(PALETTE):
            return _panels_of_settings(settings)
        labels = [label_of(values) for values, _ in settings]
        columns = 2 if max(map(len, labels)) <= _SHORT_LABEL else 1
        figure, panels = _panels(height=4.4 + 0.17 * -(-len(settings) // columns))
        for axes, (metric, _, scale) in zip(panels, PANELS, strict=True):
            _draw_settings(axes, [lines for _, lines in settings], range(len(settings)), metric, scale)
        _legends(figure, settings, list(zip(PALETTE, labels, strict=False)), columns)
        return figure


def _panels_of_settings(settings: Sequence[tuple[tuple[str, ...], Lines]]) -> "Figure":
    """The loss alone, a panel for each value of one column, a colour for each combination of the others."""
    from matplotlib.figure import Figure

    counts = [len({values[place] for values, _ in settings}) for place in range(len(settings[0][0]))]
    column = counts.index(max(counts))
    everything = list(dict.fromkeys(values[column] for values, _ in settings))
    titles = spread(everything)
    others = list(dict.fromkeys(values[:column] + values[column + 1 :] for values, _ in settings))
    rows = -(-len(titles) // _COLUMNS)
    keys = [(PALETTE[n % len(PALETTE)], label_of(values)) for n, values in enumerate(others) if values]
    figure = Figure(figsize=(2 * COLUMN_INCHES, 0.9 + 1.45 * rows + 0.17 * -(-len(keys) // 3)), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, title in zip(panels, titles, strict=False):
        own = [(values, lines) for values, lines in settings if values[column] == title]
        colours = [others.index(values[:column] + values[column + 1 :]) for values, _ in own]
        _draw_settings(axes, [lines for _, lines in own], colours, *PANELS[0][::2])
        axes.set_title(title)
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    for axes in panels[len(titles) :]:
        axes.set_axis_off()
    for number, axes in enumerate(panels[: len(titles)]):
        if number % _COLUMNS == 0:
            axes.set_ylabel(PANELS[0][1])
        if number + _COLUMNS >= len(titles):
            axes.set_xlabel("t (0: fixed, 1: moving)")
            axes.tick_params(labelbottom=True)
    if len(titles) < len(everything):
        figure.suptitle(few_of_many(len(titles), len(everything)))
    _legends(figure, settings, keys, 3)
    return figure


def spread(panels: Sequence[T]) -> list[T]:
    """Return all panels if a page has room for them, else as many as it has room for, at equal distances."""
    if len(panels) <= MOST_PANELS:
        return list(panels)
    return [panels[round(place)] for place in np.linspace(0, len(panels) - 1, MOST_PANELS)]


def few_of_many(shown: int, number: int) -> str:
    """Return the title of a figure that does not show everything."""
    return f"{shown} of {number} panels; all numbers are in report.html"


def _draw_settings(
    axes: "Axes", settings: Sequence[Lines], colours: Iterable[int], metric: Metric, scale: float
) -> None:
    for line, split in _distinct_unaligned(settings):
        _draw(axes, line, metric, scale, GREY, _SPLIT_STYLES[split], members=False)
    for lines, number in zip(settings, colours, strict=True):
        for (path, split), line in lines.items():
            if path != "unaligned":
                colour = PALETTE[number % len(PALETTE)]
                _draw(axes, line, metric, scale, colour, _SPLIT_STYLES[split], members=False)


def _legends(
    figure: "Figure",
    settings: Sequence[tuple[tuple[str, ...], Lines]],
    keys: Sequence[tuple[str, str]],
    columns: int,
) -> None:
    merged = {name: line for _, lines in settings for name, line in lines.items()}
    common = [_key(GREY, "-", "unaligned"), *_split_keys(merged)]
    figure.legend(handles=common, loc="outside upper center", ncols=4)
    if keys:
        own = [_key(colour, "-", label) for colour, label in keys]
        figure.legend(handles=own, loc="outside lower center", ncols=columns)


def variance_figure(rows: Sequence[Row]) -> "Figure":
    """Return what is left of the variance in every layer in the middle of the path, before and after correction.

    Args:
        rows: those of `lmc.results.VARIANCE`, in the order of the network; the mean over pairs is drawn.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = list(dict.fromkeys(row.more["layer"] for row in rows))
    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, 2.7), layout="constrained")
        axes = figure.subplots()
        shown = {path: colour for path, colour in _PATH_COLOURS.items() if any(row.path == path for row in rows)}
        for path, colour in shown.items():
            for when, style in _CORRECTION_STYLES.items():
                of = [row for row in rows if row.path == path and row.metric == when]
                means = [np.mean([row.value for row in of if row.more["layer"] == layer]) for layer in layers]
                axes.plot(range(1, len(means) + 1), means, style, color=colour, marker="o", markersize=2.6)
        axes.axhline(1, color=GREY, linewidth=0.8, zorder=0)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("variance, share of the ends'")
        colours = [_key(colour, "-", path) for path, colour in shown.items()]
        styles = [_key("#333333", style, f"{when} correction") for when, style in _CORRECTION_STYLES.items()]
        figure.legend(handles=[*colours, *styles], loc="outside upper center", ncols=2)
        return figure


def save(figure: "Figure", stem: Path) -> list[Path]:
    """Write `figure` as <stem>.png (300 dots per inch) and <stem>.svg (the same bytes each time); return both."""
    from matplotlib import rc_context

    png, svg = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".svg")
    with rc_context(STYLE):
        figure.savefig(png, dpi=300)
        figure.set_layout_engine("none")  # it has found the places of everything, which takes as long as the drawing
        figure.savefig(svg, metadata={"Date": None})
    return [png, svg]


def _panels(height: float) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN_INCHES, height), layout="constrained")
    panels = list(figure.subplots(len(PANELS), 1, sharex=True))
    for axes, (_, label, _) in zip(panels, PANELS, strict=True):
        axes.set_ylabel(label)
        axes.set_xlim(-0.03, 1.03)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
    panels[-1].set_xlabel("position t on the path (0: fixed, 1: moving network)")
    return figure, panels


def _draw(axes: "Axes", line: Line, metric: Metric, scale: float, colour: str, style: Any, *, members: bool) -> None:
    if members and len(line.loss) > 1:
        for values in line.of(metric):
            axes.plot(line.t, values * scale, style, color=colour, linewidth=0.5, alpha=0.35)
    mean = line.mean(metric) * scale
    axes.plot(line.t, mean, style, color=colour)
    axes.plot(line.t[[0, -1]], mean[[0, -1]], "o", color=colour, markerfacecolor="white", clip_on=False, zorder=3)


def _distinct_unaligned(settings: Sequence[Lines]) -> list[tuple[Line, str]]:
    """The unaligned paths and their splits; settings of the same networks share theirs, which is drawn once."""
    found = {
        (split, line.loss.tobytes()): (line, split)
        for lines in settings
        for (path, split), line in lines.items()
        if path == "unaligned"
    }
    return list(found.values())


def _ordered(lines: Lines) -> list[tuple[tuple[str, str], Line]]:
    """The lines from back to front: unaligned first, so that what the figure is about is not covered."""
    return sorted(lines.items(), key=lambda item: (item[0][0] != "unaligned", item[0][1]))


def _split_keys(lines: Lines) -> list[Any]:
    present = {split for _, split in lines}
    return [_key("#333333", style, split) for split, style in _SPLIT_STYLES.items() if split in present]


def _key(colour: str, style: Any, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style, label=label)
