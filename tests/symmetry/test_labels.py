"""The algebra of labels, against permutations carried out on index arrays with numpy."""

import math

import pytest

from lmc.symmetry import labels
from lmc.symmetry.labels import Label


def shape(label: Label) -> list[list[tuple[int, bool]]]:
    """(size, movable) of each block of each segment."""
    return [[(block.size, not block.is_fixed) for block in segment] for segment in labels.resolve(label)]


def test_a_flattened_feature_map_splits_the_units_of_the_next_layer():
    channels, following = labels.free(32), labels.free(512)
    labels.tie(labels.product([channels, labels.fixed(4), labels.fixed(4)]), following)
    assert shape(following) == [[(32, True), (4, False), (4, False)]]
    assert labels.resolve(following)[0][0] is labels.resolve(channels)[0][0]


def test_channels_last_flattening_puts_the_positions_first():
    channels, following = labels.free(8), labels.free(32)
    labels.tie(labels.product([labels.fixed(4), channels]), following)
    assert shape(following) == [[(4, False), (8, True)]]


def test_a_concatenation_splits_the_units_of_the_next_layer_into_a_sum():
    first, second, following = labels.free(64), labels.free(32), labels.free(96)
    labels.tie(first + second, following)
    assert shape(following) == [[(64, True)], [(32, True)]]


def test_a_flattened_concatenation_is_a_sum_of_products():
    first, second, following = labels.free(6), labels.free(2), labels.free(8 * 9)
    labels.tie(labels.product([first + second, labels.fixed(9)]), following)
    assert shape(following) == [[(6, True), (9, False)], [(2, True), (9, False)]]


def test_positions_before_a_concatenation_repeat_it():
    first, second, following = labels.free(3), labels.free(2), labels.free(10)
    labels.tie(labels.product([labels.fixed(2), first + second]), following)
    assert shape(following) == [[(3, True)], [(2, True)]] * 2


def test_a_refinement_reaches_labels_that_were_tied_before():
    first, second, parts = labels.free(12), labels.free(12), labels.free(5) + labels.free(7)
    labels.tie(first, second)
    labels.tie(second, parts)
    assert shape(first) == [[(5, True)], [(7, True)]]
    labels.fix(parts[:1])
    assert shape(first) == [[(5, False)], [(7, True)]]


def test_crossing_concatenations_tie_all_that_overlaps():
    first, second = labels.free(64), labels.free(32)
    labels.tie(first + second, second + first)
    assert shape(first) == [[(32, True)], [(32, True)]]
    blocks = {block for segment in labels.resolve(first + second) for block in segment}
    assert len(blocks) == 1


def test_fixed_meets_anything_and_fixes_it():
    label = labels.product([labels.free(6), labels.free(4)])
    labels.tie(label, labels.fixed(24))
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
