"""Tables as plain text, for the terminal and the log."""

from collections.abc import Sequence
from io import StringIO

_WIDTH = 160


def as_text(title: str, heads: Sequence[str], body: Sequence[Sequence[str]], names: int) -> str:
    """Return a table as lines of text, ended by a newline; empty for an empty body.

    Args:
        title: written above the table.
        heads: heading of each column.
        body: cells, a sequence for each row.
        names: how many columns at the left hold names; the rest hold numbers, set to the right.
    """
    if not body:
        return ""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, title=Text(title), title_justify="left", title_style="bold", pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if number < names else "right", overflow="fold")
    for cells in body:
        table.add_row(*(Text(cell) for cell in cells))
    stream = StringIO()
    Console(file=stream, width=_WIDTH, color_system=None, force_terminal=False).print(table)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join(line for line in lines if line) + "\n"
