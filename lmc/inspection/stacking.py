"""Where each group stands in the picture: bands over the layers, stacked without overlap."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lmc.symmetry.structure import Symmetry

_TALLEST = 0.35
"""Largest height of a block of fixed units, as a share of all that moves: a vocabulary would dwarf the network."""


@dataclass(frozen=True)
class Band:
    """A group in the picture.

    Attributes:
        group: its name; None for units that stay.
        first, last: the first and the last of the layers that it spans.
        acts: the layers whose tensors it acts on.
        bottom, height: in units of the vertical axis; those of an inner group are absolute too.
        depth: how many groups it is drawn inside.
        units: how many units it stands for; more than `height` where a tall block of fixed units is cut off.
    """

    group: str | None
    first: int
    last: int
    acts: frozenset[int]
    bottom: float
    height: float
    depth: int
    units: int

    @property
    def is_cut(self) -> bool:
        """Whether the band is lower than its units are many."""
        return self.group is None and self.height < self.units


def layers_of(symmetry: Symmetry, order: Sequence[str]) -> list[str]:
    """Return the modules that own the tensors named in `order`, in that order; all modules where it is empty."""
    return list(dict.fromkeys(layer_of(tensor) for tensor in order or symmetry.shapes if tensor in symmetry.shapes))


def layer_of(tensor: str) -> str:
    """Return the name of the module that owns `tensor`; the tensor's own where that is the network itself."""
    return tensor.rpartition(".")[0] or tensor


def stack(symmetry: Symmetry, layers: Sequence[str], frame: float = 0.0) -> list[Band]:
    """Return a band for each group, outer ones before those inside them, then one for the fixed units of each layer.

    A band lies as low as it can above those that span more layers: long residual streams run below, the layers inside
    their blocks above them. A group inside another lies within the band of that one.

    Args:
        symmetry: of the network.
        layers: the modules from left to right; every module that a group acts on is among them.
        frame: height that an outer group adds below what is inside it, and three times above, in units.
    """
    column = {layer: number for number, layer in enumerate(layers)}
    acts = {
        name: frozenset(column[layer_of(axis.tensor)] for axis in group.axes) for name, group in symmetry.groups.items()
    }
    children: dict[str | None, list[str]] = {}
    for name, group in symmetry.groups.items():
        children.setdefault(group.outer[-1] if group.outer else None, []).append(name)

    def place(name: str) -> list[Band]:
        """The band of a group standing on the ground, with those inside it."""
        inside = _settle([place(child) for child in children.get(name, ())])
        top = max((band.bottom + band.height for band in inside), default=0.0)
        height = top + 4 * frame if inside else float(symmetry.units(name))
        everywhere = acts[name].union(*(band.acts for band in inside))
        own = Band(name, min(everywhere), max(everywhere), acts[name], 0.0, height, 0, symmetry.units(name))
        return [own, *(_lifted(band, frame, 1) for band in inside)]

    moving = _settle([place(name) for name in children.get(None, ())])
    tallest = max((band.bottom + band.height for band in moving), default=1.0)
    return [*moving, *_fixed(symmetry, column, moving, tallest)]


def _settle(families: Sequence[Sequence[Band]]) -> list[Band]:
    """Put families (an outer band on the ground, and those inside it) into the lowest gaps, the widest first."""
    lifts = [0.0] * len(families)
    settled: list[Band] = []
    for number in sorted(range(len(families)), key=lambda n: families[n][0].first - families[n][0].last):
        outer = families[number][0]
        for other in sorted((b for b in settled if _meet(b, outer)), key=lambda b: b.bottom):
            if lifts[number] + outer.height <= other.bottom:
                break
            lifts[number] = max(lifts[number], other.bottom + other.height)
        settled.append(_lifted(outer, lifts[number]))
    return [_lifted(band, by) for family, by in zip(families, lifts, strict=True) for band in family]


def _meet(one: Band, two: Band) -> bool:
    return one.first <= two.last and two.first <= one.last


def _lifted(band: Band, by: float, deeper: int = 0) -> Band:
    return replace(band, bottom=band.bottom + by, depth=band.depth + deeper)


def _fixed(symmetry: Symmetry, column: Mapping[str, int], moving: Sequence[Band], tallest: float) -> list[Band]:
    """The units of each layer's largest tensor that no group acts on, above everything that spans the layer."""
    found = []
    for layer, units in fixed_units(symmetry).items():
        if layer not in column:
            continue
        here = column[layer]
        top = max((band.bottom + band.height for band in moving if band.first <= here <= band.last), default=0.0)
        found.append(Band(None, here, here, frozenset({here}), top, min(float(units), _TALLEST * tallest), 0, units))
    return found


def fixed_units(symmetry: Symmetry) -> dict[str, int]:
    """Return for each layer how many rows and columns of its largest tensor no group acts on; none where all move.

    Only the first two dimensions hold units; the others are positions of a kernel.
    """
    largest: dict[str, str] = {}
    for tensor in symmetry.parameters:
        layer = layer_of(tensor)
        if layer not in largest or math.prod(symmetry.shapes[tensor]) > math.prod(symmetry.shapes[largest[layer]]):
            largest[layer] = tensor
    found = {}
    for layer, tensor in largest.items():
        axes = {axis.dim: axis for axis in symmetry.axes_of.get(tensor, ())}
        count = 0
        for dim, size in enumerate(symmetry.shapes[tensor][:2]):
            if dim not in axes:
                count += size if size > 1 else 0
            else:
                still = [s for s in axes[dim].segments if not any(factor.group for factor in s)]
                count += sum(math.prod(factor.size for factor in segment) for segment in still)
        if count:
            found[layer] = count
    return found
