"""The filters of the HTML page: a group of buttons for everything that has several values."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from lmc.report.tables import SweepTable


def setting_values(table: SweepTable) -> list[dict[str, str]]:
    """Return name to value of what differs between settings, for each of them."""
    return [dict(zip(table.columns, setting.values, strict=True)) for setting in table.settings]


def setting_filters(table: SweepTable) -> str:
    """Return the card that filters everything which belongs to settings; empty if there is nothing to choose."""
    found = filters(setting_values(table), "settings")
    return f'<section class="card" id="filters"><h2>Show only</h2>{found}</section>' if found else ""


def filters(values: Iterable[Mapping[str, str]], noun: str) -> str:
    """Return a group of buttons for every name with several values; empty if there is none.

    Filters of one name are one filter, wherever on the page they stand.

    Args:
        values: name to value, of everything that is filtered.
        noun: what is counted: "settings", or the "cells" of the table in the same section.
    """
    found: dict[str, dict[str, None]] = {}
    for one in values:
        for name, value in one.items():
            found.setdefault(name, {})[value] = None
    groups = [_group(name, list(own)) for name, own in found.items() if len(own) > 1]
    if not groups:
        return ""
    state = (
        f'<p class="state"><output data-noun="{noun}"></output>'
        '<button type="button" class="all" disabled>Show all</button></p>'
    )
    return f'<div class="filters">{"".join(groups)}{state}</div>'


def _group(name: str, values: Sequence[str]) -> str:
    buttons = "".join(
        f'<button type="button" data-name="{escape(name)}" data-is="{escape(value)}" aria-pressed="false">'
        f"{escape(value)}</button>"
        for value in values
    )
    return (
        f'<div class="filter" role="group" aria-label="{escape(name)}"><span>{escape(name)}</span>'
        f'<div class="values">{buttons}</div></div>'
    )
