import itertools

import pytest
import torch

from lmc.alignment.assignment import assign, matched


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
@pytest.mark.parametrize("seed", range(4))
def test_assignment_is_the_best_of_all_permutations(size: int, seed: int) -> None:
    similarity = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    best = max(sum(similarity[i, p[i]].item() for i in range(size)) for p in itertools.permutations(range(size)))
    found = assign(similarity)
    assert sorted(found.tolist()) == list(range(size))
    assert matched(similarity, found).sum().item() == pytest.approx(best, rel=1e-12)


def test_rows_are_units_of_the_fixed_network() -> None:
    similarity = torch.tensor([[0.0, 0.0, 5.0], [4.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    assert assign(similarity).tolist() == [2, 0, 1]


def test_input_is_not_changed_and_ties_are_settled_the_same_way() -> None:
    similarity = torch.randint(0, 3, (40, 40), generator=torch.Generator().manual_seed(0)).float()
    before = similarity.clone()
    first = assign(similarity)
    assert torch.equal(first, assign(similarity.clone()))
    assert torch.equal(similarity, before)


def test_units_similar_to_none_keep_their_order() -> None:
    similarity = torch.full((6, 6), 0.0)
    similarity[1, 3] = similarity[4, 0] = similarity[2, 5] = 1.0
    assert assign(similarity).tolist() == [1, 3, 5, 2, 0, 4]


def test_a_unit_with_only_bad_partners_is_matched_all_the_same() -> None:
    assert assign(torch.tensor([[-5.0, -1.0], [-1.0, -5.0]])).tolist() == [1, 0]


def test_matched_reads_the_pairs_in_double_precision() -> None:
    similarity = torch.arange(9.0).reshape(3, 3)
    values = matched(similarity, torch.tensor([2, 0, 1]))
    assert values.dtype == torch.float64
    assert values.tolist() == [2.0, 3.0, 7.0]
