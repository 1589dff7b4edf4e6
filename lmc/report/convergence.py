"""Figures of what two networks have in common: which units match, what predicts them, how alike their layers are."""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lmc.errors import UserError
from lmc.report.figures import COLUMN_INCHES, GREY, PALETTE, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_UNITS = re.compile(r"(?P<stem>.+_(?P<pair>\d+-\d+))_units\.csv")
_CKA = re.compile(r"(?P<stem>.+_(?P<pair>\d+-\d+))_cka\.csv")
_SHOWN = 3
_NAMED = 24
"""Layers are only numbered where there are more."""
_WRITTEN = 7
"""The values are written into the cells where there are no more layers."""
_LONGEST = 24
_DIVERGING = "RdBu_r"  # white is no correlation
_SEQUENTIAL = "viridis"
_SINGLE = {"one_to_one": "s", "best_unit": "^"}

Row = Mapping[str, str]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class ConvergentLayer:
    """How the n units of one layer of two networks match.

    Attributes:
        name: of the layer.
        between: (n, n) correlations; rows are units of the fixed network.
        match: (n,) the unit of the moving network that each unit of the fixed one is matched with.
        matched: (n,) the correlations of these pairs.
        highest: (n,) the correlation of each unit of the fixed network with its best partner.
        predictions: method to the lines (number of units used, error) of prediction.csv, fewest units first.
    """

    name: str
    between: Matrix
    match: NDArray[np.int64]
    matched: Matrix
    highest: Matrix
    predictions: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Convergence:
    """The units of two networks, of up to three layers: those whose units match best.

    Attributes:
        stem: what its files are called, "convergent_learning_0-1".
        pair: the fixed and the moving network.
        layers: in the order of the network.
    """

    stem: str
    pair: tuple[str, str]
    layers: tuple[ConvergentLayer, ...]


@dataclass(frozen=True)
class LayerSimilarity:
    """The CKA of all L layers of two networks.

    Attributes:
        stem: what its files are called, "representation_similarity_0-1".
        pair: the fixed and the moving network.
        layers: their names, in the order of the network.
        cka: (L, L); rows are layers of the fixed network.
    """

    stem: str
    pair: tuple[str, str]
    layers: tuple[str, ...]
    cka: Matrix


def convergence_figures(folder: Path) -> Iterator[tuple[str, "Figure"]]:
    """Yield the figures of the analyses `convergent_learning` and `representation_similarity` in a run folder.

    Yields:
        The name of the figure's files without their ending, and the figure.

    Raises:
        UserError: a file that a figure is made of is missing or damaged.
    """
    for path in _files(folder, _UNITS):
        found = read_convergence(path)
        if found.layers:
            yield f"{found.stem}_matrices", matrices_figure(found)
            yield found.stem, units_figure(found)
    for path in _files(folder, _CKA):
        similarity = read_similarity(path)
        yield similarity.stem, similarity_figure(similarity)


def _files(folder: Path, name: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in folder.iterdir() if name.fullmatch(path.name))


def read_convergence(path: Path) -> Convergence:
    """Read <analysis>_<pair>_units.csv and the files beside it, as the analysis `convergent_learning` leaves them.

    Raises:
        UserError: one of them is missing or damaged; names the file.
    """
    stem, pair = _named(path, _UNITS)
    matrices, predicted = (path.with_name(f"{stem}_{end}") for end in ("units.safetensors", "prediction.csv"))
    units: dict[str, list[tuple[int, float, float]]] = {}
    for row in _rows(path, ("layer", "end", "match", "correlation", "highest", "chosen")):
        if row["end"] == "fixed":
            entry = (int(row["match"]), float(row["correlation"]), float(row["highest"]))
            units.setdefault(row["layer"], []).append(entry)
    best = sorted(units, key=lambda layer: -float(np.mean([correlation for _, correlation, _ in units[layer]])))[
        :_SHOWN
    ]
    predictions = _predictions(predicted)
    layers = []
    for name in (layer for layer in units if layer in best):
        match, matched, highest = (np.array(column) for column in zip(*units[name], strict=True))
        between = _matrix(matrices, f"between/{name}")
        if between.shape != (len(match),) * 2:
            raise UserError(f"{matrices}: the matrix of layer {name!r} does not fit {path.name}; run it again")
        layers.append(ConvergentLayer(name, between, match, matched, highest, predictions.get(name, {})))
    return Convergence(stem, pair, tuple(layers))


def read_similarity(path: Path) -> LayerSimilarity:
    """Read <analysis>_<pair>_cka.csv, as the analysis `representation_similarity` leaves it.

    Raises:
        UserError: it is missing or damaged.
    """
    stem, pair = _named(path, _CKA)
    rows = [(row["fixed"], float(row["cka"])) for row in _rows(path, ("fixed", "moving", "samples", "cka"))]
    layers = tuple(dict.fromkeys(layer for layer, _ in rows))
    if not layers or len(rows) != len(layers) ** 2:
        raise UserError(f"{path}: {len(rows)} lines are no square of {len(layers)} layers; run the experiment again")
    return LayerSimilarity(stem, pair, layers, np.array([value for _, value in rows]).reshape(len(layers), -1))


def _named(path: Path, name: re.Pattern[str]) -> tuple[str, tuple[str, str]]:
    found = name.fullmatch(path.name)
    if found is None:
        raise UserError(f"{path} is not named as a file of this analysis; expected <analysis>_<pair>_... ")
    fixed, moving = found["pair"].split("-")
    return found["stem"], (fixed, moving)


def _rows(path: Path, numbers: Sequence[str]) -> Iterator[Row]:
    """Yield the lines of a CSV file, each with all of some columns filled in."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                if any(row.get(column) in (None, "") for column in numbers):
                    raise UserError(f"{path}, line {number}: not a whole line; run the experiment again")
                yield row
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); run the experiment again") from None


def _predictions(path: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    found: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in _rows(path, ("layer", "method", "error", "used", "targets")):
        point = (float(row["used"]), float(row["error"]))
        found.setdefault(row["layer"], {}).setdefault(row["method"], []).append(point)
    return {layer: {method: sorted(points) for method, points in of.items()} for layer, of in found.items()}


def _matrix(path: Path, name: str) -> Matrix:
    try:
        with safe_open(path, framework="np") as file:
            return np.asarray(file.get_tensor(name), dtype=np.float64)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); run the experiment again") from None


def matrices_figure(found: Convergence) -> "Figure":
    """Return the correlations between two networks, in their own order and matched one to one, a row for each layer.

    Matched pairs are on the diagonal, the highest correlation first (as in Li et al. 2015, fig. 2).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(COLUMN_INCHES, 0.75 + 1.62 * len(found.layers)), layout="constrained")
        panels = figure.subplots(len(found.layers), 2, squeeze=False, sharex="row", sharey="row")
        bound = max(float(np.abs(layer.between).max()) for layer in found.layers) or 1.0
        for layer, (before, after) in zip(found.layers, panels, strict=True):
            order = np.argsort(-layer.matched, kind="stable")
            for axes, matrix in ((before, layer.between), (after, layer.between[order][:, layer.match[order]])):
                drawn = axes.imshow(
                    matrix, cmap=_DIVERGING, vmin=-bound, vmax=bound, interpolation="nearest", aspect="equal"
                )
                axes.tick_params(length=2, labelsize=7)
            before.set_ylabel(f"{_short(layer.name)}\nunits of network {found.pair[0]}")
        panels[0, 0].set_title("own order")
        panels[0, 1].set_title("matched one to one")
        panels[-1, 0].set_xlabel(f"units of network {found.pair[1]}")
        panels[-1, 1].set_xlabel("pairs, highest first")
        bar = figure.colorbar(drawn, ax=panels, location="bottom", aspect=40, pad=0.02, shrink=0.9)
        bar.set_label("correlation")
        bar.ax.tick_params(length=2, labelsize=7)
        bar.outline.set_linewidth(0.5)
        return figure


def units_figure(found: Convergence) -> "Figure":
    """Return the sorted correlations of both matchings, and below them what sparse prediction gains by more units."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    with rc_context(STYLE):
        figure = Figure(figsize=(COLUMN_INCHES, 4.9), layout="constrained")
        sorted_axes, traded = figure.subplots(2, 1)
        for colour, layer in zip(PALETTE, found.layers, strict=False):
            _sorted_curves(sorted_axes, layer, colour)
            _trade_off(traded, layer, colour)
        sorted_axes.set_xlim(0, 100)
        sorted_axes.set_ylim(top=1.0)
        sorted_axes.set_xlabel(f"units of network {found.pair[0]}, sorted (%)")
        sorted_axes.set_ylabel(f"correlation with network {found.pair[1]}")
        styles = [_key("#333333", "-", "one to one"), _key("#333333", "--", "best partner")]
        sorted_axes.legend(handles=styles, loc="lower left")
        traded.set_xscale("log")
        traded.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        traded.xaxis.set_minor_locator(NullLocator())
        traded.xaxis.set_major_formatter("{x:g}")
        traded.set_ylim(0, 104)
        traded.set_xlabel(f"units of network {found.pair[1]} used, mean")
        traded.set_ylabel("variance not explained (%)")
        marks = [
            *(_key("#333333", "", "matched unit", marker="s"), _key("#333333", "", "best single unit", marker="^")),
            *(
                _key("#333333", "-", "L1 penalty", marker="o", face="#333333"),
                _key("#333333", "", "all, least squares", marker="D"),
            ),
        ]
        traded.legend(handles=marks, loc="upper right", fontsize=7, handlelength=1.4)
        names = [_key(c, "-", _short(layer.name)) for c, layer in zip(PALETTE, found.layers, strict=False)]
        figure.legend(handles=names, loc="outside upper center", ncols=3 if max(map(_width, names)) < 14 else 1)
        return figure


def _sorted_curves(axes: "Axes", layer: ConvergentLayer, colour: str) -> None:
    places = 100 * (np.arange(len(layer.matched)) + 0.5) / len(layer.matched)
    for values, style in ((layer.matched, "-"), (layer.highest, "--")):
        axes.plot(places, -np.sort(-values), style, color=colour, linewidth=1.2)


def _trade_off(axes: "Axes", layer: ConvergentLayer, colour: str) -> None:
    def points(method: str) -> Matrix:
        return np.array(layer.predictions.get(method, [])).reshape(-1, 2) * (1, 100)

    lasso = points("lasso")
    lasso = lasso[lasso[:, 0] > 0]
    axes.plot(*lasso.T, "-o", color=colour, markersize=3)
    for method, mark in {**_SINGLE, "least_squares": "D"}.items():
        axes.plot(*points(method).T, mark, color=colour, markerfacecolor="white", markersize=4, clip_on=False, zorder=3)


def similarity_figure(found: LayerSimilarity) -> "Figure":
    """Return the CKA of every layer of one network with every layer of the other as a heat map.

    A frame marks, for each layer of the fixed network, the layer of the moving one that is most like it.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    count = len(found.layers)
    with rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        names = [_short(name) for name in found.layers] if count <= _NAMED else [""]
        size = 7 if count <= _NAMED / 2 and max(map(len, names)) <= _LONGEST / 2 else 5
        # The less room the names leave for the cells, the lower the figure: they stay nearly square.
        beside = 0.008 * size * max(map(len, names))
        figure = Figure(figsize=(COLUMN_INCHES, 2.95 - beside), layout="constrained")
        axes = figure.subplots()
        low = np.floor(10 * found.cka.min()) / 10
        edges = (0.5, count + 0.5, count + 0.5, 0.5)  # layers are numbered from 1
        drawn = axes.imshow(found.cka, cmap=_SEQUENTIAL, vmin=low, vmax=1, aspect="auto", extent=edges)
        for row, column in enumerate(found.cka.argmax(1), 1):
            axes.add_patch(Rectangle((column + 0.54, row - 0.46), 0.92, 0.92, fill=False, edgecolor="red", linewidth=1))
        if count <= _WRITTEN:
            for (row, column), value in np.ndenumerate(found.cka):
                colour = "black" if value > (low + 1) / 2 else "white"
                axes.text(column + 1, row + 1, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
        if count <= _NAMED:
            numbers = range(1, count + 1)
            axes.set_xticks(numbers if count <= _NAMED / 2 else numbers[::2])
            axes.set_yticks(numbers, [f"{name}  {n}" for n, name in enumerate(names, 1)], fontsize=size)
        axes.tick_params(length=2)
        axes.tick_params("x", labelsize=7)
        axes.set_xlabel(f"layer of network {found.pair[1]}")
        axes.set_ylabel(f"layer of network {found.pair[0]}")
        axes.set_title("framed: highest of its row", fontsize=7, color=GREY)
        bar = figure.colorbar(drawn, ax=axes, pad=0.02, aspect=22)
        bar.set_label("linear CKA")
        bar.ax.tick_params(length=2, labelsize=7)
        bar.outline.set_linewidth(0.5)
        return figure


def _short(name: str) -> str:
    """The end of a name, which tells layers apart."""
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _width(key: Any) -> int:
    return len(key.get_label())


def _key(colour: str, style: Any, label: str, marker: str = "", face: str = "white") -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, linestyle=style, marker=marker, markerfacecolor=face, label=label)
