"""What was found, as text for the terminal."""

from collections.abc import Iterable
from io import StringIO

from lmc.inspection.inspection import Inspection
from lmc.inspection.stacking import layer_of
from lmc.symmetry.structure import Axis

_SHOWN, _STEM = 4, 10


def as_text(found: Inspection, width: int = 120, colour: bool = False) -> str:
    """Return a table of the groups, then the counts, the proof and the cost in lines.

    Args:
        found: what is shown.
        width: of a line, in characters.
        colour: whether to use the terminal's colours.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    network, symmetry = found.network, found.symmetry
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("group", "size", "kind", "permutes: layer[dimension]"):
        table.add_column(Text(head), justify="right" if head == "size" else "left", overflow="fold")
    for group in symmetry.groups.values():
        size = "×".join(map(str, symmetry.lattice(group.name)))
        parent = group.outer[-1] if group.outer else ""
        is_beside = bool(parent) and group.name.startswith(f"{parent}/")
        name = f"  {group.name.removeprefix(parent)}" if is_beside else group.name
        kind = "units inside" if is_beside and len(group.outer) == 1 else found.kind(group)
        table.add_row(*map(Text, (name, size, kind, abbreviated(group.axes))))
    stream = StringIO()
    console = Console(
        file=stream, width=width, color_system="standard" if colour else None, force_terminal=colour, highlight=False
    )
    console.print(Text(f"{network.spec}: {network.parameters:,} parameters, input {network.input_text}", style="bold"))
    if symmetry.groups:
        console.print(table)
    for line in summary(found):
        console.print(Text(line))
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def summary(found: Inspection) -> Iterable[str]:
    """Yield the lines below the table."""
    symmetry = found.symmetry
    count = len(symmetry.groups)
    total = found.movable + found.still
    groups = f"{count} group{'' if count == 1 else 's'}"
    yield f"{groups}; {found.movable:,} of {total:,} hidden units move ({found.share:.1%})"
    for reason, units in sorted(symmetry.fixed.items(), key=lambda item: -item[1]):
        yield f"{units:>9,} stay: {reason}"
    yield f"equivalent networks: 10^{symmetry.log10_size:,.1f}"
    yield from proof_lines(found)
    spent = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in found.seconds.items())
    yield f"cost: {spent}; peak memory {found.peak_bytes / 2**30:.2f} GiB"


def proof_lines(found: Inspection) -> Iterable[str]:
    """Yield what running showed, in words."""
    if found.proof is None and found.network.is_meta:
        yield "not verified: there are no weights on the meta device, so nothing can be run"
    elif found.proof is None:
        yield "not verified, as you asked (--no-verify)"
    elif not found.symmetry.groups:
        yield "nothing to verify: no unit can move"
    else:
        error = f"{found.proof.error:.1e} (float64, relative)"
        yield f"verified: permuting everything at random changes the outputs by {error}"
        yield f"control: permuting one tensor of a group without the others, by {found.proof.control:.1e} or more"


def abbreviated(axes: Iterable[Axis], shown: int = _SHOWN) -> str:
    """Return the axes as layer[dimension], in order, those in the middle counted.

    "conv1[0], bn1[0], 9 more, fc[1]"; what all names begin with is written once: "layers.3.mlp.{0[0], 3[1]}".
    """
    names = list(dict.fromkeys(f"{layer_of(axis.tensor)}[{axis.dim}]" for axis in axes))
    if len(names) > shown + 1:
        names = [*names[: shown - 1], f"{len(names) - shown} more", names[-1]]
        return ", ".join(names)
    parts = [name.split(".")[:-1] for name in names]
    shared = [here[0] for here in zip(*parts, strict=False) if len(set(here)) == 1]
    stem = ".".join(shared if parts[0][: len(shared)] == shared else ())
    if len(names) == 1 or len(stem) < _STEM:
        return ", ".join(names)
    return f"{stem}.{{{', '.join(name.removeprefix(f'{stem}.') for name in names)}}}"
