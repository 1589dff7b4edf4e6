import random

import pytest

from lmc.inspection.stacking import fixed_units, layers_of, stack
from lmc.symmetry.structure import Axis, Factor, Group, Symmetry


def chain(spans: list[tuple[int, int]], sizes: list[int], layers: int) -> Symmetry:
    """Groups that act on the first and the last layer of their spans."""
    groups = {}
    for number, ((first, last), size) in enumerate(zip(spans, sizes, strict=True)):
        name = f"g{number}"
        axes = tuple(Axis(f"layer{at}.weight", 0, ((Factor(name, size),),)) for at in (first, last))
        groups[name] = Group(name, size, axes)
    shapes = {f"layer{at}.weight": (4, 4) for at in range(layers)}
    return Symmetry(groups, shapes, frozenset(shapes))


@pytest.mark.parametrize("seed", range(20))
def test_no_two_bands_overlap_and_none_is_lost(seed: int):
    draw = random.Random(seed)
    spans = [tuple(sorted(draw.choices(range(12), k=2))) for _ in range(25)]
    symmetry = chain(spans, [draw.randint(1, 40) for _ in spans], 12)
    bands = [band for band in stack(symmetry, layers_of(symmetry, ())) if band.group]
    assert [band.group for band in bands] == list(symmetry.groups)
    for number, one in enumerate(bands):
        assert (one.first, one.last) == spans[number]
        assert one.height == symmetry.groups[one.group].size
        for two in bands[:number]:
            beside = one.last < two.first or two.last < one.first
            above = one.bottom >= two.bottom + two.height or two.bottom >= one.bottom + one.height
            assert beside or above


def test_long_streams_run_below_and_gaps_are_filled():
    symmetry = chain([(0, 1), (0, 5), (3, 4)], [7, 10, 2], 6)
    bottoms = {band.group: band.bottom for band in stack(symmetry, layers_of(symmetry, ())) if band.group}
    assert bottoms == {"g1": 0, "g0": 10, "g2": 10}


def test_what_is_inside_a_group_lies_inside_its_band(attention: Symmetry):
    bands = {band.group: band for band in stack(attention, layers_of(attention, ()), frame=1) if band.group}
    outer = bands["qkv"]
    assert outer.height == 8 + 8 + 4
    for name in ("qkv/inside", "qkv/inside#2"):
        inner = bands[name]
        assert (inner.depth, inner.units) == (1, 8)
        assert outer.bottom < inner.bottom
        assert inner.bottom + inner.height < outer.bottom + outer.height
        assert outer.first <= inner.first <= inner.last <= outer.last


def test_fixed_units_are_the_rows_and_columns_that_no_group_moves(attention: Symmetry):
    assert fixed_units(attention) == {"stem": 5, "head": 3}


def test_a_vocabulary_does_not_dwarf_the_network():
    symmetry = chain([(0, 1)], [10], 2)
    huge = Symmetry(symmetry.groups, {**symmetry.shapes, "layer1.weight": (10, 50_000)}, symmetry.parameters)
    band = next(band for band in stack(huge, layers_of(huge, ())) if band.group is None and band.units > 100)
    assert band.units == 50_000
    assert band.is_cut
    assert band.height < 10


def test_layers_come_in_the_order_of_use(attention: Symmetry):
    used = ["head.weight", "stem.weight", "not in the state dict"]
    assert layers_of(attention, used) == ["head", "stem"]
    assert layers_of(attention, ()) == ["stem", "qkv", "out", "head"]
