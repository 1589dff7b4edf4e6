"""A paper's table as a section of the HTML page."""

from collections.abc import Sequence
from html import escape

from lmc.report.paper import Cell, PaperTable
from lmc.report.paper_texts import difference, heading, notes, ours, published


def paper_sections(tables: Sequence[PaperTable]) -> str:
    """Return a section for each table."""
    return "\n".join(map(_section, tables))


def _section(found: PaperTable) -> str:
    heads = "".join(f'<th scope="col" class="number">{escape(heading(column))}</th>' for column in found.table.columns)
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row)}</th>{"".join(map(_cell, cells))}</tr>'
        for row, cells in zip(found.table.rows, found.cells, strict=True)
    )
    kind = "banner reduced" if found.reduced else "banner"
    return (
        f'<section class="card paper"><h2>{escape(found.table.title)}</h2><p>{escape(found.table.paper)}</p>'
        f'<p class="{kind}">{escape(found.banner)}</p><div class="scroll"><table>\n'
        f"<thead><tr><td></td>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>\n"
        f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in notes(found))}</ul></section>"
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td></td>"
    beside = "".join(f"<small>{escape(text)}</small> " for text in (published(cell), difference(cell)) if text)
    return (
        f'<td class="number" data-value="{"" if cell.mean is None else cell.mean!r}">{escape(ours(cell))} {beside}</td>'
    )
