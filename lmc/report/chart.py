"""A chart of measured paths as hand-made SVG: no script and no font is needed to see it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

from lmc.report.lines import Line, Metric

WIDTH, HEIGHT = 560, 350
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 44
_COLOURS = 6
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


@dataclass(frozen=True)
class Curve:
    """One line to be drawn.

    Attributes:
        settings: numbers of those it belongs to; only an unaligned path may belong to several.
        label: what it is called.
        path: "aligned" or "unaligned".
        split: "train" or "test".
        line: its values.
    """

    settings: tuple[int, ...]
    label: str
    path: str
    split: str
    line: Line

    @property
    def number(self) -> int | None:
        """Number of the setting whose colour it has; None for an unaligned path, which is grey."""
        return None if self.path == "unaligned" else self.settings[0]


@dataclass(frozen=True)
class Scale:
    """The map from (t, value) to SVG units."""

    low: float
    high: float

    def x(self, t: float) -> float:
        """Return the horizontal position of t."""
        return _LEFT + t * (WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        """Return the vertical position of a value; larger values lie higher."""
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def chart(curves: Sequence[Curve], metric: Metric, factor: float, title: str) -> str:
    """Return an SVG element with every curve, its band of one standard deviation, and its ends marked.

    Args:
        curves: drawn in this order, later ones on top.
        metric: what is drawn.
        factor: from the metric to the unit of the axis (100 for %).
        title: name of the vertical axis, with its unit.
    """
    ticks = nice_ticks(_extent(curves, metric, factor))
    scale = Scale(ticks[0], ticks[-1])
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" tabindex="0" role="img" '
        f'aria-label="{escape(title)} along the path; the arrow keys show its values" '
        f'data-metric="{metric}" data-factor="{factor:g}" data-low="{scale.low:.8g}" data-high="{scale.high:.8g}" '
        f'data-box="{_LEFT} {_TOP} {WIDTH - _RIGHT} {HEIGHT - _BOTTOM}">',
        *_axes(scale, ticks, title),
        *(element for place, curve in enumerate(curves) for element in _curve(place, curve, metric, factor, scale)),
        '<circle class="cursor" r="4.5"/>',
        "</svg>",
    ]
    return "\n".join(parts)


def style_of(number: int) -> str:
    """Return the attributes that give a setting its colour and dashes; colours repeat with other dashes."""
    dashes = _DASHES[number // _COLOURS % len(_DASHES)]
    return f'data-colour="{number % _COLOURS}"' + (f' stroke-dasharray="{dashes}"' if dashes else "")


def nice_ticks(extent: tuple[float, float], wished: int = 5) -> list[float]:
    """Return round numbers (1, 2 or 5 times a power of ten apart) from below the lower to above the upper end."""
    low, high = extent
    if not high > low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / wished
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [number * step for number in range(first, last + 1)]


def _extent(curves: Sequence[Curve], metric: Metric, factor: float) -> tuple[float, float]:
    values = np.concatenate([curve.line.mean(metric) * factor for curve in curves] or [np.zeros(1)])
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)


def _axes(scale: Scale, ticks: Sequence[float], title: str) -> Iterable[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))
    for tick in ticks:
        y = scale.y(tick)
        yield f'<line class="grid" x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{_LEFT - 8}" y="{y + 3.5:.1f}" text-anchor="end">{tick + 0.0:.{digits}f}</text>'
    for t in (0, 0.25, 0.5, 0.75, 1):
        yield f'<text class="tick" x="{scale.x(t):.1f}" y="{bottom + 17}" text-anchor="middle">{t:g}</text>'
    yield f'<line class="axis" x1="{_LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}"/>'
    middle = (_LEFT + right) / 2
    yield (
        f'<text class="name" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">'
        "position t on the path (0: fixed, 1: moving network)</text>"
    )
    y = (_TOP + bottom) / 2
    yield (
        f'<text class="name" x="13" y="{y}" text-anchor="middle" transform="rotate(-90 13 {y})">{escape(title)}</text>'
    )


def _curve(place: int, curve: Curve, metric: Metric, factor: float, scale: Scale) -> Iterable[str]:
    setting = "" if curve.number is None else f' data-setting="{curve.number}" {style_of(curve.number)}'
    names = f'data-curve="{place}" data-path="{curve.path}" data-split="{curve.split}"{setting}'
    line, mean, deviation = curve.line, curve.line.mean(metric) * factor, curve.line.deviation(metric)
    if deviation is not None and curve.number is not None:
        low, high = mean - deviation * factor, mean + deviation * factor
        inside = [np.clip(edge, scale.low, scale.high) for edge in (high, low)]
        if np.isfinite(inside).all():
            outline = _commands(np.r_[line.t, line.t[::-1]], np.r_[inside[0], inside[1][::-1]], scale)
            yield f'<path class="band" {names} d="{outline}Z"/>'
    yield f'<path class="line" {names} d="{_commands(line.t, mean, scale)}"><title>{escape(curve.label)}</title></path>'
    for end in (0, -1):
        if math.isfinite(mean[end]):
            yield (
                f'<circle class="end" {names} cx="{scale.x(line.t[end]):.1f}" cy="{scale.y(mean[end]):.1f}" r="3.2"/>'
            )


def _commands(t: NDArray[np.float64], values: NDArray[np.float64], scale: Scale) -> str:
    """SVG path data; a value that is not finite breaks the line."""
    commands, pen = [], "M"
    for position, value in zip(t, values, strict=True):
        if not math.isfinite(value):
            pen = "M"
            continue
        commands.append(f"{pen}{scale.x(position):.1f} {scale.y(value):.1f}")
        pen = "L"
    return "".join(commands)
