"""Axes of segments of factors: permuting them, against explicit loops over positions."""

import itertools

import numpy as np
import torch

from lmc.symmetry.structure import Axis, Factor, axis_index, permute, unit_rows

A, B, STILL = Factor("a", 3), Factor("b", 2), Factor(None, 2)
# A concatenation of three segments: a x 2 fixed positions, b, and 2 fixed positions x a x b.
AXIS = Axis("w", 1, ((A, STILL), (B,), (STILL, A, B)))
PERMUTATION = {"a": torch.tensor([2, 0, 1]), "b": torch.tensor([1, 0])}


def _reference_index() -> list[int]:
    """Position by position: where each position of the permuted axis comes from."""
    a, b = PERMUTATION["a"].tolist(), PERMUTATION["b"].tolist()
    first = [a[i] * 2 + k for i, k in itertools.product(range(3), range(2))]
    second = [6 + b[j] for j in range(2)]
    third = [8 + (k * 3 + a[i]) * 2 + b[j] for k, i, j in itertools.product(range(2), range(3), range(2))]
    return first + second + third


def test_index_follows_every_segment():
    assert axis_index(AXIS, PERMUTATION).tolist() == _reference_index()


def test_permute_takes_the_rows_of_the_index():
    tensor = torch.arange(40.0).reshape(2, 20)
    moved = permute(tensor, (AXIS,), PERMUTATION)
    np.testing.assert_array_equal(moved.numpy(), tensor.numpy()[:, _reference_index()])
    assert torch.equal(tensor, torch.arange(40.0).reshape(2, 20))


def test_permute_can_leave_a_group_alone():
    tensor = torch.arange(40.0).reshape(2, 20)
    expected = permute(tensor, (AXIS,), {"b": PERMUTATION["b"]})
    assert torch.equal(permute(tensor, (AXIS,), PERMUTATION, skip=["a"]), expected)


def test_unit_rows_gather_everything_that_belongs_to_a_unit():
    tensor = torch.arange(40.0).reshape(2, 20)
    rows = unit_rows(tensor, AXIS, ["a"])
    for unit in range(3):
        positions = [unit * 2 + k for k in range(2)]
        positions += [8 + (k * 3 + unit) * 2 + j for k, j in itertools.product(range(2), range(2))]
        assert sorted(rows[unit].tolist()) == sorted(tensor[:, positions].flatten().tolist())


def test_unit_rows_move_with_the_units():
    tensor = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    moved = permute(tensor, (AXIS,), {"a": PERMUTATION["a"]})
    rows = unit_rows(tensor, AXIS, ["a"])
    assert torch.equal(unit_rows(moved, AXIS, ["a"]), rows[PERMUTATION["a"]])


def test_unit_rows_of_a_vector_are_its_entries():
    bias = torch.arange(6.0)
    assert unit_rows(bias, Axis("b", 0, ((A, STILL),)), ["a"]).tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert unit_rows(bias[:3], Axis("b", 0, ((A,),)), ["a"]).tolist() == [[0.0], [1.0], [2.0]]


# A convolution in 3 groups of 2 input and 4 output channels: both live inside the groups.
GROUP, INTO, OUT = Factor("g", 3), Factor("c", 2), Factor("o", 4)
KERNEL = (Axis("w", 0, ((GROUP, OUT),)), Axis("w", 1, ((INTO,),)))
OUTER = {"c": ("g",), "o": ("g",)}
INSIDE = {
    "g": torch.tensor([2, 0, 1]),
    "c": torch.tensor([[1, 0], [0, 1], [1, 0]]),
    "o": torch.tensor([[3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1]]),
}


def test_what_lives_inside_another_axis_moves_by_its_unit():
    weight = torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(0))
    moved = permute(weight, KERNEL, INSIDE, OUTER)
    for g, o, c in itertools.product(range(3), range(4), range(2)):
        source = INSIDE["g"][g]
        assert torch.equal(moved[g * 4 + o, c], weight[source * 4 + INSIDE["o"][g, o], INSIDE["c"][g, c]])


def test_a_shuffled_axis_is_permuted_in_the_order_of_its_units():
    """Channels leave the groups transposed: position o * 3 + g is channel o of group g."""
    axis = Axis("w", 0, ((OUT, GROUP),))
    shuffled = Axis("w", 0, ((GROUP, OUT),), tuple(o * 3 + g for g in range(3) for o in range(4)))
    row = torch.arange(12.0)
    by_hand = [float(INSIDE["o"][g, o] * 3 + INSIDE["g"][g]) for o in range(4) for g in range(3)]
    assert permute(row, (axis,), INSIDE, OUTER).tolist() == by_hand
    assert permute(row, (shuffled,), INSIDE, OUTER).tolist() == by_hand


def test_rows_of_what_lives_inside_go_through_all_outer_units():
    weight = torch.randn(12, 2, 3, generator=torch.Generator().manual_seed(0))
    rows = unit_rows(weight, KERNEL[1], ["g", "c"], KERNEL)
    for g, c in itertools.product(range(3), range(2)):
        assert torch.equal(rows[g * 2 + c], weight[g * 4 : g * 4 + 4, c].reshape(-1))
