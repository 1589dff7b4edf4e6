"""The picture of a symmetry: the network from left to right, its groups as bands over the layers that they permute."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmc.errors import UserError, refusal
from lmc.inspection.stacking import Band, layers_of, stack
from lmc.symmetry.structure import Symmetry

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito (2008), told apart with every common colour blindness; without yellow, which is lost on white.
_PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GREY, _INK = "#b9b9b9", "#333333"
_FORMATS = (".png", ".svg", ".pdf")
_LEFT, _RIGHT = 0.55, 0.2  # margins in inches
_LABEL = 6.5  # points
_STYLE: Any = {  # matplotlib types its keys one by one, differently in each version
    "font.size": 8,
    "hatch.linewidth": 0.4,
    "svg.hashsalt": "lmc",  # the same picture gives the same bytes
    "svg.fonttype": "none",
}


def check_target(path: Path) -> None:
    """Raise a `UserError` unless a picture can be written to `path`, before anything is computed."""
    if path.suffix.lower() not in _FORMATS:
        raise UserError(f"--plot {path}: a picture ends in {', '.join(_FORMATS)}")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--plot {path}: there is no folder {path.parent}; make it first")


def write(figure: "Figure", path: Path) -> None:
    """Write `figure` to `path` in the format that its ending names.

    Raises:
        UserError: the file system refuses.
    """
    from matplotlib import rc_context

    try:
        with rc_context(_STYLE):
            metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
            figure.savefig(path, dpi=200, metadata=metadata)
    except OSError as error:
        raise UserError(f"--plot {path}: {refusal(error) or error}") from None


def picture(symmetry: Symmetry, title: str, subtitle: str = "", order: Sequence[str] = ()) -> "Figure":
    """Return the picture of `symmetry`.

    Every column is a layer, in the order of `order`; every band is a group: its height is the number of units, it
    spans the layers from the first to the last that it permutes, dark where it acts on a tensor of the layer and pale
    where it only passes by. An outer group (heads) is a frame around those inside its units. Grey units stay.

    Args:
        symmetry: what is drawn.
        title: the name of the network.
        subtitle: a line below it.
        order: tensor names in the order in which the network uses them, others are not drawn; the state dict's where
            empty.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    layers = layers_of(symmetry, order)
    plain = _top(stack(symmetry, layers))
    bands = stack(symmetry, layers, frame=plain * 0.011)
    paper = _Paper(layers, _top(bands))
    frames = frozenset(outer for group in symmetry.groups.values() for outer in group.outer)
    colours = _colours(bands)
    with rc_context(_STYLE):
        figure = Figure(figsize=paper.size)
        axes = figure.add_axes(paper.box)
        _prepare(axes, paper)
        for number, band in enumerate(bands):
            if band.group is None:
                _draw_fixed(axes, band, paper, f"fixed-{number}")
            elif band.group in frames:
                _draw_frame(axes, band, paper, colours[band.group], f"group-{number}")
                _write_above(axes, band, paper, band.group, symmetry.groups[band.group].size)
            else:
                _draw_band(axes, band, paper, colours[band.group], f"group-{number}")
                _write_inside(axes, band, paper, band.group, "×".join(map(str, symmetry.lattice(band.group))))
        _head(figure, paper, title, subtitle, bool(frames), [band for band in bands if band.group is None])
        return figure


def _top(bands: Sequence[Band]) -> float:
    return max((band.bottom + band.height for band in bands), default=1.0)


class _Paper:
    """How large things are, in inches; a unit of the horizontal axis is a layer, of the vertical axis a hidden unit."""

    def __init__(self, layers: Sequence[str], top: float) -> None:
        self.columns = max(1, len(layers))
        self.top = 1.01 * top
        self.width = min(18.0, max(6.5, 0.16 * self.columns))
        self.height = 4.6 if self.columns > 8 else 3.4
        self.ticks = _ticks(layers, most=int(self.width / 0.2), apart=0.13 * self.columns / self.width)
        self.below = 0.25 + 0.05 * max((len(text) for _, text in self.ticks), default=0)
        self.above = 0.85
        self.size = (self.width + _LEFT + _RIGHT, self.height + self.below + self.above)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, bottom, width and height of the network as shares of the figure."""
        wide, tall = self.size
        return (_LEFT / wide, self.below / tall, self.width / wide, self.height / tall)

    def points(self, columns: float, units: float) -> tuple[float, float]:
        """Width and height in points."""
        return columns * self.width / self.columns * 72, units / self.top * self.height * 72

    def units(self, points: float) -> float:
        """The height of `points` in units."""
        return points / 72 / self.height * self.top


def _prepare(axes: "Axes", paper: _Paper) -> None:
    axes.set_xlim(0, paper.columns)
    axes.set_ylim(0, paper.top)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_yticks([])
    places, texts = [place for place, _ in paper.ticks], [text for _, text in paper.ticks]
    axes.set_xticks([p + 0.5 for p in places], texts, rotation=60, ha="right", rotation_mode="anchor", fontsize=6.5)
    axes.tick_params(axis="x", length=2, pad=1)
    for place in places:
        axes.axvline(place, color="#ececec", lw=0.5, zorder=0)
    bar = 2 ** max(0, math.floor(math.log2(max(1.0, 0.3 * paper.top))))
    left = -0.1 / paper.width * paper.columns
    axes.plot([left] * 2, [0, bar], color=_INK, lw=1.5, clip_on=False)
    axes.text(1.6 * left, bar / 2, f"{bar} units", rotation=90, ha="right", va="center", fontsize=7)


def _ticks(layers: Sequence[str], most: int, apart: float) -> list[tuple[int, str]]:
    """The first layer of every module, at the deepest level of the network at which there are at most `most`.

    Of labels that would be fewer than `apart` layers from each other, that of the larger module is kept.
    """
    deepest = max((layer.count(".") + 1 for layer in layers), default=1)
    starts = {level: _starts(layers, level) for level in range(1, deepest + 1)}
    chosen = max((level for level, places in starts.items() if len(places) <= most), default=1)
    kept: list[int] = []
    for level in range(1, chosen + 1):
        for place in starts[level]:
            if all(abs(place - other) >= apart for other in kept):
                kept.append(place)
    return [(place, _short(".".join(layers[place].split(".")[:chosen]))) for place in sorted(kept)]


def _starts(layers: Sequence[str], level: int) -> list[int]:
    stems = [layer.split(".")[:level] for layer in layers]
    return [n for n, stem in enumerate(stems) if n == 0 or stems[n - 1] != stem]


def _short(name: str, most: int = 24) -> str:
    """The last parts of a dotted name that fit."""
    parts = name.split(".")
    while len(parts) > 1 and len(".".join(parts)) > most:
        parts = parts[1:]
    kept = ".".join(parts)
    return kept if len(kept) <= most else kept[: most - 1] + "…"


def _colours(bands: Sequence[Band]) -> dict[str, str]:
    """A colour for each group, different from those of the bands that it touches where possible."""
    found: dict[str, str] = {}
    used = dict.fromkeys(_PALETTE, 0)
    for band in bands:
        if band.group is not None:
            near = {found[other.group] for other in bands if other.group in found and _touch(band, other)}
            free = [colour for colour in _PALETTE if colour not in near] or list(_PALETTE)
            found[band.group] = min(free, key=lambda colour: used[colour])
            used[found[band.group]] += 1
    return found


def _touch(one: Band, two: Band) -> bool:
    aside = one.first <= two.last + 1 and two.first <= one.last + 1
    return aside and one.bottom <= two.bottom + two.height and two.bottom <= one.bottom + one.height


def _draw_band(axes: "Axes", band: Band, paper: _Paper, colour: str, gid: str) -> None:
    from matplotlib.patches import Rectangle

    gap = min(paper.units(0.8), 0.1 * band.height)
    low, high = band.bottom + gap / 2, max(band.height - gap, paper.units(1.2))
    columns = band.last - band.first + 1
    axes.add_patch(Rectangle((band.first + 0.08, low), columns - 0.16, high, fc=colour, ec="none", alpha=0.38, gid=gid))
    for column in sorted(band.acts):
        axes.add_patch(Rectangle((column + 0.08, low), 0.84, high, fc=colour, ec="none"))


def _draw_frame(axes: "Axes", band: Band, paper: _Paper, colour: str, gid: str) -> None:
    from matplotlib.patches import Rectangle

    corner = (band.first + 0.02, band.bottom + paper.units(0.5))
    size = (band.last - band.first + 0.96, band.height - paper.units(1.0))
    axes.add_patch(Rectangle(corner, *size, fc=colour, ec="none", alpha=0.14, gid=gid))
    axes.add_patch(Rectangle(corner, *size, fc="none", ec=colour, lw=0.8))


def _draw_fixed(axes: "Axes", band: Band, paper: _Paper, gid: str) -> None:
    from matplotlib.patches import Rectangle

    low, high = band.bottom + paper.units(0.5), max(band.height - paper.units(1.0), paper.units(1.2))
    hatch = "////" if band.is_cut else None
    edge = "#8a8a8a" if band.is_cut else "none"
    axes.add_patch(Rectangle((band.first + 0.08, low), 0.84, high, fc=_GREY, ec=edge, lw=0, hatch=hatch, gid=gid))
    _write_inside(axes, band, paper, "", str(band.units))


def _write_inside(axes: "Axes", band: Band, paper: _Paper, name: str, size: str) -> None:
    """Write the name and the size, or the size alone, along the band or upright, wherever they fit."""
    wide, high = paper.points(band.last - band.first + 0.84, band.height)
    for text in dict.fromkeys((f"{_short(name)} · {size}" if name else size, size)):
        long = 0.62 * _LABEL * len(text)
        if long <= wide and high >= 1.3 * _LABEL:
            rotation = 0
        elif long <= high and wide >= 1.3 * _LABEL:
            rotation = 90
        else:
            continue
        place = ((band.first + band.last + 1) / 2, band.bottom + band.height / 2)
        box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.82}
        axes.text(*place, text, ha="center", va="center", rotation=rotation, fontsize=_LABEL, color=_INK, bbox=box)
        return


def _write_above(axes: "Axes", band: Band, paper: _Paper, name: str, blocks: int) -> None:
    """Write the name and how many blocks there are into the head of their frame, or the number alone, if it fits."""
    wide, _ = paper.points(band.last - band.first + 1, 0)
    for text in (f"{_short(name)} · {blocks} ×", f"{blocks} ×"):
        if 0.62 * _LABEL * len(text) <= wide:
            place = ((band.first + band.last + 1) / 2, band.bottom + band.height - paper.units(1.5))
            axes.text(*place, text, ha="center", va="top", fontsize=_LABEL, color=_INK)
            return


def _head(figure: "Figure", paper: _Paper, title: str, subtitle: str, frames: bool, fixed: Sequence[Band]) -> None:
    """The title, the line below it, and what the colours mean."""
    from matplotlib.patches import Patch

    wide, tall = paper.size
    figure.text(0.15 / wide, 1 - 0.1 / tall, title, fontsize=11, weight="bold", va="top")
    figure.text(0.15 / wide, 1 - 0.32 / tall, subtitle, fontsize=8, color=_INK, va="top")
    handles = [
        Patch(fc=_PALETTE[0], label="acts on the layer"),
        Patch(fc=_PALETTE[0], alpha=0.38, label="passes by"),
    ]
    if frames:
        handles.append(Patch(fc="#f2f2f2", ec=_INK, lw=0.8, label="blocks of units"))
    if fixed:
        handles.append(Patch(fc=_GREY, label="units that stay"))
    if any(band.is_cut for band in fixed):
        handles.append(Patch(fc=_GREY, ec="#8a8a8a", lw=0, hatch="////", label="cut short"))
    corner = (0.05 / wide, 1 - 0.5 / tall)
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=corner,
        ncols=5,
        frameon=False,
        fontsize=7.5,
        handlelength=1.6,
        columnspacing=1.4,
        borderpad=0.2,
    )
