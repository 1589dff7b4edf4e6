import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from lmc.alignment.birkhoff import Term, decompose, towards_doubly_stochastic


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(n: int, seed: int) -> Tensor:
    """Doubly stochastic, without zeros."""
    matrix = drawn(n, n, seed=seed).exp()
    for _ in range(300):
        matrix = matrix / matrix.sum(1, keepdim=True)
        matrix = matrix / matrix.sum(0, keepdim=True)
    return matrix


def sparse(n: int, seed: int) -> Tensor:
    """Doubly stochastic: a mixture of three permutations."""
    draw = np.random.default_rng(seed)
    weights = draw.dirichlet(np.ones(3))
    return torch.from_numpy(sum(w * np.eye(n)[draw.permutation(n)] for w in weights))


def mixed(terms: list[Term], n: int) -> Tensor:
    return sum((weight * torch.eye(n, dtype=torch.float64)[order] for weight, order in terms), torch.zeros(n, n))


@pytest.mark.parametrize("make", [dense, sparse])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 9])
def test_a_doubly_stochastic_matrix_is_put_together_again(n: int, make):
    for seed in range(4):
        matrix = make(n, seed)
        before = matrix.clone()
        terms = decompose(matrix)
        np.testing.assert_allclose(mixed(terms, n).numpy(), matrix.numpy(), rtol=0, atol=1e-9)
        weights = [term.weight for term in terms]
        assert sum(weights) == pytest.approx(1, abs=1e-12)
        assert min(weights) > 0
        assert weights == sorted(weights, reverse=True)
        assert all(sorted(term.permutation.tolist()) == list(range(n)) for term in terms)
        assert len(terms) <= n * n - 2 * n + 2
        assert torch.equal(matrix, before)


@pytest.mark.parametrize("seed", range(5))
def test_no_permutation_could_have_a_larger_weight_than_the_next_that_is_taken(seed: int):
    """Against all permutations of what is left, in every step."""
    n = 5
    left = dense(n, seed).numpy().copy()
    for weight, order in decompose(torch.from_numpy(left.copy()))[:-1]:
        widest = max(min(left[i, p[i]] for i in range(n)) for p in itertools.permutations(range(n)))
        assert weight == pytest.approx(widest, abs=1e-10)
        left[np.arange(n), order.numpy()] -= weight


def test_permutations_without_a_common_entry_come_out_as_they_went_in():
    matrix = 0.3 * torch.eye(4)[[1, 2, 3, 0]] + 0.6 * torch.eye(4)[[0, 1, 2, 3]] + 0.1 * torch.eye(4)[[3, 0, 1, 2]]
    terms = decompose(matrix)
    assert [term.permutation.tolist() for term in terms] == [[0, 1, 2, 3], [1, 2, 3, 0], [3, 0, 1, 2]]
    assert [term.weight for term in terms] == pytest.approx([0.6, 0.3, 0.1], abs=1e-6)


def test_the_heaviest_terms_are_the_first():
    matrix = dense(6, 0)
    whole, few = decompose(matrix), decompose(matrix, 4)
    assert [term.permutation.tolist() for term in few] == [term.permutation.tolist() for term in whole[:4]]
    share = sum(term.weight for term in whole[:4])
    assert [term.weight * share for term in few] == pytest.approx([term.weight for term in whole[:4]], rel=1e-10)
    assert sum(term.weight for term in few) == pytest.approx(1)
    assert decompose(matrix, 1)[0].weight == 1


def test_what_is_not_doubly_stochastic_is_mixed_as_far_as_it_goes():
    assert decompose(torch.zeros(3, 3)) == []
    assert decompose(torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])) == []
    (term,) = decompose(torch.tensor([[0.9, -0.2], [0.4, 1.1]]))
    assert (term.weight, term.permutation.tolist()) == (1, [0, 1])
    assert len(decompose(torch.tensor([[0.6, 0.4], [0.5, 0.5]]))) == 2


@pytest.mark.parametrize("wrong", [torch.ones(2, 3), torch.ones(3), torch.tensor([[float("nan")]])])
def test_what_is_no_square_matrix_of_numbers_is_refused(wrong: Tensor):
    with pytest.raises(ValueError, match="not a square matrix of finite numbers"):
        decompose(wrong)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_round_ends_in_the_nearest_matrix_whose_sums_are_one(n: int):
    """Against the projection onto an affine subspace by NumPy's pseudo-inverse of the constraints."""
    matrix = drawn(n, n, seed=n)
    constraints = np.concatenate([np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))]).reshape(2 * n, n * n)
    start = matrix.numpy().clip(0).ravel()
    expected = start - np.linalg.pinv(constraints) @ (constraints @ start - 1)
    found = towards_doubly_stochastic(matrix, 1)
    np.testing.assert_allclose(found.numpy().ravel(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_every_round_leads_towards_all_doubly_stochastic_matrices(seed: int):
    n = 6
    matrix = torch.eye(n, dtype=torch.float64) + 0.5 * drawn(n, n, seed=seed)
    targets = [dense(n, 10), sparse(n, 11), torch.eye(n, dtype=torch.float64)]
    distances = [
        [(towards_doubly_stochastic(matrix, r) - target).norm().item() for r in range(21)] for target in targets
    ]
    for series in distances:
        assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(series))
    end = towards_doubly_stochastic(matrix, 20)
    for sums in (end.sum(0), end.sum(1)):
        np.testing.assert_allclose(sums.numpy(), 1, rtol=0, atol=1e-12)
    assert end.min() > -1e-2
    assert towards_doubly_stochastic(matrix, 400).min() > -1e-6
    kept = towards_doubly_stochastic(targets[0], 20)
    np.testing.assert_allclose(kept.numpy(), targets[0].numpy(), rtol=0, atol=1e-12)


def test_many_matrices_are_treated_alike():
    stack = drawn(3, 4, 4, seed=0)
    together = towards_doubly_stochastic(stack, 20)
    for one, alone in zip(together, stack, strict=True):
        np.testing.assert_allclose(one.numpy(), towards_doubly_stochastic(alone, 20).numpy(), rtol=0, atol=1e-13)
