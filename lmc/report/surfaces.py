"""The section of the HTML page that shows planes as surfaces to turn."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from numpy.typing import NDArray

from lmc.report.contours import CAPPED
from lmc.report.page_parts import of_setting
from lmc.report.planes import MeasuredPlane

_TEMPLATE = Path(__file__).with_name("planes.html")


def surfaces(planes: Sequence[tuple[int, MeasuredPlane]], settings: Sequence[str]) -> str:
    """Return the section as HTML, script included; empty for no planes.

    Args:
        planes: each with the number of its setting.
        settings: their labels.
    """
    if not planes:
        return ""
    labels = [f"{settings[number]}, {plane.pair}" for number, plane in planes]
    splits = list(dict.fromkeys(split for _, plane in planes for split in plane.loss))
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        splits="\n".join(_button(split, pressed=split == splits[0]) for split in splits),
        figures="\n".join(
            _figure(place, label, of_setting(number))
            for place, (label, (number, _)) in enumerate(zip(labels, planes, strict=True))
        ),
        capped=CAPPED,
        data=_data(labels, [plane for _, plane in planes]),
    )


def _button(split: str, *, pressed: bool) -> str:
    state = str(pressed).lower()
    return f'<button type="button" data-split="{escape(split)}" aria-pressed="{state}">{escape(split)}</button>'


def _figure(place: int, label: str, setting: str) -> str:
    name = f"{escape(label)}: loss on the plane; the arrow keys turn it"
    return (
        f'<figure{setting}><figcaption>{escape(label)}</figcaption><canvas data-plane="{place}" tabindex="0" '
        f'role="img" aria-label="{name}"></canvas></figure>'
    )


def _data(labels: Sequence[str], planes: Sequence[MeasuredPlane]) -> str:
    """The planes as JSON for the script; "<" is escaped so that no text can end the script element."""
    entries = [
        {
            "label": label,
            "x": _rounded(plane.x),
            "y": _rounded(plane.y),
            "networks": [[name, *_rounded([x, y])] for name, x, y in plane.networks],
            "curve": [_rounded(place) for place in plane.curve],
            "loss": {split: _rounded(values.flat) for split, values in plane.loss.items()},
            "accuracy": {split: _rounded(values.flat) for split, values in plane.accuracy.items()},
        }
        for label, plane in zip(labels, planes, strict=True)
    ]
    return json.dumps(entries, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _rounded(values: NDArray[Any] | Any) -> list[float | None]:
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values]
