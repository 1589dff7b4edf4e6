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
    assert torch.equal(permute(tensor, (AXIS,), PERMUTATION, skip="a"), expected)


def test_unit_rows_gather_everything_that_belongs_to_a_unit():
    tensor = torch.arange(40.0).reshape(2, 20)
    rows = unit_rows(tensor, 1, AXIS.segments, "a")
    for unit in range(3):
        positions = [unit * 2 + k for k in range(2)]
        positions += [8 + (k * 3 + unit) * 2 + j for k, j in itertools.product(range(2), range(2))]
        assert sorted(rows[unit].tolist()) == sorted(tensor[:, positions].flatten().tolist())


def test_unit_rows_move_with_the_units():
    tensor = torch.randn(2, 20, generator=torch.Generator().manual_seed(0))
    moved = permute(tensor, (AXIS,), {"a": PERMUTATION["a"]})
    rows = unit_rows(tensor, 1, AXIS.segments, "a")
    assert torch.equal(unit_rows(moved, 1, AXIS.segments, "a"), rows[PERMUTATION["a"]])


def test_unit_rows_of_a_vector_are_its_entries():
    bias = torch.arange(6.0)
    assert unit_rows(bias, 0, ((A, STILL),), "a").tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert unit_rows(bias[:3], 0, ((A,),), "a").tolist() == [[0.0], [1.0], [2.0]]
