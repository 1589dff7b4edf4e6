"""Small parts that the sections of the HTML page are made of; whatever is given as text is escaped here."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape

from lmc.report.chart import style_of


def head(label: str, unit: str = "", *, number: bool = True, attributes: str = "") -> str:
    """Return the heading of a column that a click sorts by; `unit` stands behind it, `attributes` in its tag."""
    kind = ' class="number"' if number else ""
    suffix = f" <small>{escape(unit)}</small>" if unit else ""
    inside = f'<button type="button">{escape(label)}{suffix}</button>'
    return f'<th scope="col"{kind} aria-sort="none"{attributes}>{inside}</th>'


def of_setting(number: int) -> str:
    """Return the attribute of what belongs to a setting, so that filters find it."""
    return f' data-setting="{number}"'


def of_values(values: Mapping[str, str]) -> str:
    """Return the attribute of what belongs to no single setting, so that filters find it; empty without values."""
    return f' data-values="{escape(json.dumps(values, ensure_ascii=False))}"' if values else ""


def sortable(value: float | None) -> str:
    """Return the attribute that a row is sorted by; a number that is missing or not one comes last."""
    if value is None or math.isnan(value):
        return ' data-value=""'
    return f' data-value="{value!r}"'.replace("inf", "Infinity")


def tip(*lines: str) -> str:
    """Return the attribute with what is shown when a cell is pointed at, a line each."""
    return ' data-tip="' + "&#10;".join(escape(line.replace("\n", " ")) for line in lines if line) + '"'


def swatch(number: int) -> str:
    """Return a short piece of the line of a setting, in its colour and dashes."""
    return f'<svg class="swatch" viewBox="0 0 26 8"><path class="line" {style_of(number)} d="M1 4L25 4"/></svg>'


def bullets(lines: Sequence[str]) -> str:
    """Return a list; what stands between backticks is code."""
    return f"<ul>{''.join(f'<li>{with_code(line)}</li>' for line in lines)}</ul>"


def with_code(text: str) -> str:
    """Return `text` as HTML in which what stands between backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without its second one
        return escape(text)
    return "".join(f"<code>{escape(part)}</code>" if n % 2 else escape(part) for n, part in enumerate(parts))
