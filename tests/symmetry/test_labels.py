"""The algebra of labels, against permutations carried out on index arrays with numpy."""

import math

import pytest

from lmc.symmetry import labels, layout
from lmc.symmetry.labels import Label
from lmc.symmetry.structure import Factor


def shape(label: Label) -> list[list[tuple[int, bool]]]:
    """(size, movable) of each block of each segment."""
    return [[(block.size, not block.is_fixed) for block in segment] for segment in labels.resolve(label)]


def test_a_flattened_feature_map_splits_the_units_of_the_next_layer():
    channels, following = labels.free(32), labels.free(512)
    labels.tie(labels.product([channels, labels.fixed(4, "test"), labels.fixed(4, "test")]), following)
    assert shape(following) == [[(32, True), (4, False), (4, False)]]
    assert labels.resolve(following)[0][0] is labels.resolve(channels)[0][0]


def test_channels_last_flattening_puts_the_positions_first():
    channels, following = labels.free(8), labels.free(32)
    labels.tie(labels.product([labels.fixed(4, "test"), channels]), following)
    assert shape(following) == [[(4, False), (8, True)]]


def test_a_concatenation_splits_the_units_of_the_next_layer_into_a_sum():
    first, second, following = labels.free(64), labels.free(32), labels.free(96)
    labels.tie(first + second, following)
    assert shape(following) == [[(64, True)], [(32, True)]]


def test_a_flattened_concatenation_is_a_sum_of_products():
    first, second, following = labels.free(6), labels.free(2), labels.free(8 * 9)
    labels.tie(labels.product([first + second, labels.fixed(9, "test")]), following)
    assert shape(following) == [[(6, True), (9, False)], [(2, True), (9, False)]]


def test_positions_before_a_concatenation_repeat_it():
    first, second, following = labels.free(3), labels.free(2), labels.free(10)
    labels.tie(labels.product([labels.fixed(2, "test"), first + second]), following)
    names = {labels.resolve(first)[0][0]: "first", labels.resolve(second)[0][0]: "second"}
    axis = layout.axis("t", 0, following, names)
    assert axis.segments == ((Factor(None, 2), Factor("first", 3)), (Factor(None, 2), Factor("second", 2)))
    # Position by position: first, second, first, second.
    assert axis.order == (0, 1, 2, 5, 6, 7, 3, 4, 8, 9)


def test_an_unflattened_label_depends_on_the_dimensions_in_front():
    whole = labels.free(6)
    (outer,), (inner,) = (labels.resolve(label)[0] for label in labels.split(whole, [2, 3]))
    assert inner.over == (outer,)
    assert outer.over == ()


def test_a_block_that_meets_a_uniform_one_becomes_uniform():
    (_, inner), other = labels.split(labels.free(6), [2, 3]), labels.free(3)
    labels.tie(inner, other)
    assert labels.resolve(other)[0][0].over == ()


def test_a_slice_of_what_others_depend_on_selects_their_case():
    rows, columns = labels.split(labels.free(12), [3, 4])
    parts = [labels.take(rows, k, k + 1) for k in range(3)]
    cases = [labels.resolve(labels.at(columns, where))[0][0] for _, where in parts]
    assert len(set(cases)) == 3
    labels.tie(((cases[0],),), ((cases[1],),))
    labels.fix(((cases[2],),), "test")
    again = [labels.resolve(labels.at(columns, where))[0][0] for _, where in parts]
    assert again[0] is again[1]
    assert [block.is_fixed for block in again] == [False, False, True]


def test_interleaved_halves_are_shuffled_positions():
    """A channel shuffle of two halves: position 2 k of the result is unit k of the first, 2 k + 1 of the second."""
    first, second = labels.free(3), labels.free(3)
    halves = labels.split(first + second, [2, 3])
    following = labels.free(6)
    labels.tie(labels.product(halves[::-1]), following)
    names = {labels.resolve(first)[0][0]: "first", labels.resolve(second)[0][0]: "second"}
    axis = layout.axis("t", 0, following, names)
    assert [(axis.unit_of("first")[k].item(), axis.unit_of("second")[k].item()) for k in range(6)] == [
        *((0, -1), (-1, 0), (1, -1), (-1, 1), (2, -1), (-1, 2))
    ]


def test_why_a_label_is_fixed_is_handed_on():
    label = labels.free(5)
    labels.tie(label, labels.fixed(5, "the reason"))
    assert labels.resolve(label)[0][0].reason == "the reason"


def test_a_refinement_reaches_labels_that_were_tied_before():
    first, second, parts = labels.free(12), labels.free(12), labels.free(5) + labels.free(7)
    labels.tie(first, second)
    labels.tie(second, parts)
    assert shape(first) == [[(5, True)], [(7, True)]]
    labels.fix(parts[:1], "test")
    assert shape(first) == [[(5, False)], [(7, True)]]


def test_crossing_concatenations_tie_all_that_overlaps():
    first, second = labels.free(64), labels.free(32)
    labels.tie(first + second, second + first)
    assert shape(first) == [[(32, True)], [(32, True)]]
    blocks = {block for segment in labels.resolve(first + second) for block in segment}
    assert len(blocks) == 1


def test_fixed_meets_anything_and_fixes_it():
    label = labels.product([labels.free(6), labels.free(4)])
    labels.tie(label, labels.fixed(24, "test"))
    assert labels.is_fixed(label)


def test_incommensurable_products_are_fixed():
    first, second = labels.product([labels.free(4), labels.free(6)]), labels.product([labels.free(6), labels.free(4)])
    labels.tie(first, second)
    assert labels.is_fixed(first)
    assert labels.is_fixed(second)


def test_commensurable_products_are_cut_to_common_factors():
    first, second = labels.product([labels.free(4), labels.free(6)]), labels.product([labels.free(2), labels.free(12)])
    labels.tie(first, second)
    assert shape(first) == shape(second) == [[(2, True), (2, True), (6, True)]]


@pytest.mark.parametrize("sizes", [(3, 4), (2, 6), (12, 1), (2, 2, 3)])
def test_split_is_the_inverse_of_product(sizes: tuple[int, ...]):
    whole = labels.free(math.prod(sizes))
    parts = labels.split(whole, sizes)
    assert [labels.size(part) for part in parts] == list(sizes)
    again = labels.product(parts)
    assert labels.resolve(again) == labels.resolve(whole)


def test_labels_of_different_sizes_cannot_be_tied():
    with pytest.raises(ValueError, match="3 and 4 positions"):
        labels.tie(labels.free(3), labels.free(4))
