"""Singular vectors against numpy's double sum, and the laws that R obeys."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path as FilePath

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmc.analysis.singular_vectors import SingularVectors
from lmc.architecture.mlp import MLP
from lmc.errors import UserError
from lmc.evaluation.singular_vectors import (
    Decomposition,
    NetworkVectors,
    aligned,
    as_matrix,
    compare_singular_vectors,
    weight_matrices,
)
from lmc.seeding import generator, isolated
from lmc.state import State, of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from tests.analysis.subjects import data, subject

GAMMAS = (0.0, 0.3, 1.0)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed, "matrix", *shape), dtype=torch.float64)


def r(one: Tensor, other: Tensor, gamma: float = 0.0) -> float:
    return aligned(Decomposition.of(one), Decomposition.of(other), gamma).ratio


def network(seed: int) -> nn.Module:
    """A residual convolution, a norm, a transposed convolution and a linear layer."""
    with isolated(seed, "net"):
        return nn.Sequential(
            *(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.ConvTranspose2d(6, 5, 2), nn.ReLU(), nn.Flatten(), nn.Linear(125, 3)),
        )


@pytest.fixture(scope="module")
def symmetry() -> Symmetry:
    return discover(network(0), torch.zeros(2, 1, 6, 6))


def compared(symmetry: Symmetry, before: Sequence[State], after: Sequence[State]) -> NetworkVectors:
    first, second = before
    return compare_singular_vectors(network(0), symmetry, (first, second), (after[0], after[1]), GAMMAS)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.7])
def test_r_is_the_double_sum_over_pairs_of_vectors(gamma: float):
    one, other = drawn(5, 8), drawn(5, 8, seed=1)
    (u, s, v), (x, t, y) = (np.linalg.svd(m.numpy(), full_matrices=False) for m in (one, other))
    mine, theirs = [i for i in range(5) if s[i] >= gamma * s[0]], [j for j in range(5) if t[j] >= gamma * t[0]]
    expected = sum((u[:, i] @ x[:, j]) * (v[i] @ y[j]) for i in mine for j in theirs) / min(len(mine), len(theirs))
    assert r(one, other, gamma) == pytest.approx(expected, abs=1e-12)


def test_theorem_4_1():
    """<A, P B Q^T> is the sum over pairs of singular vectors, weighted by their values."""
    one, other = drawn(5, 8), drawn(5, 8, seed=1)
    p, q = (np.eye(n)[torch.randperm(n, generator=generator(0, "order", n)).numpy()] for n in (5, 8))
    a, b = Decomposition.of(one), Decomposition.of(other)
    direct = (one.numpy() * (p @ other.numpy() @ q.T)).sum()
    total = 0.0
    for i in range(5):
        for j in range(5):
            rows = a.left[:, i].numpy() @ p @ b.left[:, j].numpy()
            columns = a.right[i].numpy() @ q @ b.right[j].numpy()
            total += (a.values[i] * b.values[j]).item() * rows * columns
    assert total == pytest.approx(direct, rel=1e-12)
    np.testing.assert_allclose(np.linalg.svd(p @ other.numpy() @ q.T)[1], b.values.numpy(), rtol=1e-12)


def test_signs_and_bases_of_repeated_values_do_not_matter():
    """Three equal values: any rotation of both sides at once is as good a decomposition."""
    u, v = np.linalg.qr(drawn(6, 6).numpy())[0], np.linalg.qr(drawn(7, 7, seed=1).numpy())[0]
    values = np.array([2.0, 2.0, 2.0, 1.0, 0.5, 0.5])
    turn = np.eye(6)
    turn[:3, :3] = np.linalg.qr(drawn(3, 3, seed=2).numpy())[0]
    turn[3, 3] = -1
    one, other = torch.from_numpy(u * values @ v[:, :6].T), drawn(6, 7, seed=3)
    turned = Decomposition(
        *(torch.from_numpy(np.ascontiguousarray(x)) for x in (u @ turn, values, (v[:, :6] @ turn).T))
    )
    for gamma in GAMMAS:
        expected = aligned(Decomposition.of(one), Decomposition.of(other), gamma)
        found = aligned(turned, Decomposition.of(other), gamma)
        assert found.product == pytest.approx(expected.product, abs=1e-12)
        assert found.count == expected.count == {0.0: 6, 0.3: 4, 1.0: 1}[gamma]
    assert turned.count(1.0) == 3


def test_orthogonal_matrices_have_their_inner_product():
    one, other = (torch.linalg.qr(drawn(9, 9, seed=seed))[0] for seed in (0, 1))
    assert r(one, other) == pytest.approx((one * other).sum().item() / 9, abs=1e-12)
    assert r(one, -one) == pytest.approx(-1)


def test_a_matrix_is_aligned_with_itself_and_with_none_that_is_drawn():
    for gamma in GAMMAS:
        assert r(drawn(40, 60), 3 * drawn(40, 60), gamma) == pytest.approx(1, abs=1e-9)
    # The mean over independent bases is 0, the variance of the sum 40^2 / (40 * 60): R is of the order of 1 / 49.
    assert abs(r(drawn(40, 60), drawn(40, 60, seed=1))) < 0.1


def test_vectors_of_zero_values_do_not_count():
    one = drawn(6, 9).float().double()
    one[4:] = 0
    assert Decomposition.of(one).count(0) == 4
    assert r(one, one) == pytest.approx(1, abs=1e-12)
    assert aligned(Decomposition.of(0 * one), Decomposition.of(one), 0.0).ratio == 0
    # Those of the other that have no partner are not held against the pair.
    full = drawn(6, 9)
    assert aligned(Decomposition.of(one), Decomposition.of(full), 0).count == 4


def test_matrices_are_the_tensors_that_a_layer_sums_along(symmetry):
    found = weight_matrices(network(0), symmetry)
    assert found == {"0.weight": 0, "3.weight": 1, "6.weight": 0}
    kernel = drawn(6, 5, 2, 2)
    np.testing.assert_array_equal(as_matrix(kernel, 1).numpy(), kernel.numpy().transpose(1, 0, 2, 3).reshape(5, 24))


class Tied(nn.Module):
    """Positions that are added, two layers that share a matrix, and scales of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.scale = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))
        self.enter, self.one, self.two = nn.Linear(9, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = (self.enter(x.reshape(-1, 4, 9)) + self.positions) * self.scale
        return self.two(torch.relu(self.one(x))).mean(1)


def test_tables_do_not_count_and_shared_matrices_count_once():
    net = Tied()
    assert list(weight_matrices(net, discover(net, torch.zeros(2, 1, 6, 6)))) == ["enter.weight", "one.weight"]


def test_a_planted_permutation_is_undone(symmetry):
    own = of_model(network(1))
    planted = Permutation.random(symmetry, generator(0, "planted"))
    found = compared(symmetry, (own, planted.apply(own)), (own, planted.inverse().apply(planted.apply(own))))
    assert found.after == pytest.approx((1, 1, 1), abs=1e-6)
    assert max(found.before[:2]) < 0.7
    assert found.l2_reduction == pytest.approx(1)
    for layer in found.layers:
        assert layer.l2_reduction == pytest.approx(1)
        assert layer.l2_limit == pytest.approx(1, abs=1e-6)  # the singular values are the same


def test_permuting_both_networks_alike_changes_nothing(symmetry):
    pair = [of_model(network(seed)) for seed in (1, 2)]
    moved = Permutation.random(symmetry, generator(1, "moved"))
    found = compared(symmetry, pair, [moved.apply(state) for state in pair])
    assert found.after == pytest.approx(found.before, abs=1e-9)
    assert found.l2_reduction == pytest.approx(0, abs=1e-9)


def test_layers_and_the_whole_are_those_of_numpy(symmetry):
    pair = [of_model(network(seed)) for seed in (1, 2)]
    moved = Permutation.random(symmetry, generator(1, "moved"))
    after = [pair[0], moved.apply(pair[1])]
    found = compared(symmetry, pair, after)
    products, counts, squares = 0.0, 0, np.zeros(2)
    for layer in found.layers:
        matrices = [
            [np.moveaxis(s[layer.layer].double().numpy(), int(layer.layer[0] == "3"), 0) for s in states]
            for states in (pair, after)
        ]
        matrices = [[m.reshape(len(m), -1) for m in both] for both in matrices]
        polar = []
        for m in matrices[1]:
            u, _, v = np.linalg.svd(m, full_matrices=False)
            polar.append(u @ v)
        assert layer.after[0].product == pytest.approx((polar[0] * polar[1]).sum(), abs=1e-9)
        assert layer.shape == matrices[0][0].shape
        products, counts = products + (polar[0] * polar[1]).sum(), counts + min(layer.shape)
        apart, together = (np.linalg.norm(one - other) for one, other in matrices)
        assert layer.l2_reduction == pytest.approx((apart - together) / apart, abs=1e-9)
        least = np.linalg.norm(np.subtract(*(np.linalg.svd(m)[1] for m in matrices[0])))
        assert layer.l2_limit == pytest.approx((apart - least) / apart)
        assert layer.l2_reduction <= layer.l2_limit
    assert found.after[0] == pytest.approx(products / counts)
    for states, place in ((pair, 0), (after, 1)):
        names = [name for name, _ in network(0).named_parameters()]
        squares[place] = sum(np.sum((states[0][n] - states[1][n]).double().numpy() ** 2) for n in names)
    apart, together = squares**0.5
    assert found.l2_reduction == pytest.approx((apart - together) / apart)


def test_networks_that_were_not_only_permuted_have_no_l2_reduction(symmetry):
    pair = [of_model(network(seed)) for seed in (1, 2)]
    changed = {name: 2 * tensor for name, tensor in pair[1].items()}
    found = compared(symmetry, pair, [pair[0], changed])
    assert found.l2_reduction is None
    assert all(layer.l2_reduction is None and layer.l2_limit is None for layer in found.layers)
    assert found.after == pytest.approx(found.before, abs=1e-6)  # R does not depend on the scale


def test_an_mlp_has_one_matrix_for_each_layer():
    net = MLP(input_shape=(1, 4, 4), classes=3, width=6, depth=2)
    names = weight_matrices(net, discover(net, torch.zeros(2, 1, 4, 4)))
    assert names == {"hidden.0.weight": 0, "hidden.1.weight": 0, "classifier.weight": 0}


def test_the_option_writes_every_layer_and_gamma(symmetry: Symmetry, tmp_path: FilePath):
    pair = [of_model(network(seed)) for seed in (1, 2)]
    moved = Permutation.random(symmetry, generator(1, "moved")).apply(pair[1])
    earlier = of_model(network(3))
    trained = [(earlier, state) for state in pair]
    of = subject(network(0), [pair[0], moved], None, data((1, 6, 6), 3), symmetry=symmetry, trained=trained)
    option = SingularVectors(gammas=[0.3, 0.0])
    option.check(of)
    steps: list[Mapping[str, float]] = []
    findings = option(of, tmp_path, steps.append)
    assert len(steps) == option.steps(of) == 3
    with (tmp_path / "singular_vectors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * 2
    expected = compared(symmetry, pair, [pair[0], moved])
    whole = {(f.what, f.metric): f.value for f in findings if not f.more}
    assert whole["singular_vectors_before", "r_0"] == expected.before[0]
    assert whole["singular_vectors_after", "r_0.3"] == expected.after[1]
    assert whole["singular_vectors_after", "l2_reduction"] == expected.l2_reduction
    for moment in ("before", "after"):
        of_moment = [row for row in rows if row["moment"] == moment and row["gamma"] == "0.0"]
        counts = np.array([int(row["count"]) for row in of_moment])
        values = np.array([float(row["r"]) for row in of_moment])
        assert whole[f"singular_vectors_{moment}", "r_0"] == pytest.approx(counts @ values / counts.sum())


@pytest.mark.parametrize("gammas", [[], [0.3, 0.3]])
def test_gammas_that_say_nothing_are_refused(gammas: list[float]):
    with pytest.raises(UserError, match="at least one number, each once"):
        SingularVectors(gammas=gammas)


def test_a_network_without_matrices_is_refused():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16))
    with pytest.raises(UserError, match="no tensor of this network is the matrix of a layer"):
        SingularVectors(gammas=[0.0]).check(subject(net, [of_model(net)] * 2, None, data((1, 4, 4))))
