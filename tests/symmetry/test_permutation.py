"""Laws of the group, and what a permutation refuses."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lmc import seeding, state
from lmc.errors import UserError
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry


@pytest.fixture
def network() -> nn.Module:
    with seeding.isolated(0, "network"):
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture
def symmetry(network: nn.Module) -> Symmetry:
    return discover(network, torch.zeros(2, 4))


@pytest.fixture
def draws(symmetry: Symmetry) -> list[Permutation]:
    generator = seeding.generator(0, "permutations")
    return [Permutation.random(symmetry, generator) for _ in range(3)]


def equal(first: state.State, second: state.State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_row_i_of_the_result_is_row_p_i(network: nn.Module, symmetry: Symmetry):
    p = Permutation(symmetry, {"0": torch.tensor([5, 0, 1, 2, 3, 4]), "2": torch.arange(5)})
    weights, moved = network.state_dict(), p.apply(state.of_model(network))
    assert torch.equal(moved["0.weight"][0], weights["0.weight"][5])
    assert torch.equal(moved["0.bias"][1], weights["0.bias"][0])
    assert torch.equal(moved["2.weight"][:, 0], weights["2.weight"][:, 5])
    assert torch.equal(moved["4.weight"], weights["4.weight"])


def test_inverse_undoes(network: nn.Module, draws: list[Permutation]):
    weights = state.of_model(network)
    assert equal(draws[0].inverse().apply(draws[0].apply(weights)), weights)
    assert not equal(draws[0].apply(weights), weights)


def test_inverse_of_a_product(draws: list[Permutation]):
    p, q, _ = draws
    assert p.compose(q).inverse() == q.inverse().compose(p.inverse())
    assert p.compose(q) != q.compose(p)


def test_compose_applies_first_then_self(network: nn.Module, draws: list[Permutation]):
    p, q, r = draws
    weights = state.of_model(network)
    assert equal(p.compose(q).apply(weights), p.apply(q.apply(weights)))
    assert p.compose(q).compose(r) == p.compose(q.compose(r))


def test_identity_is_neutral(symmetry: Symmetry, draws: list[Permutation]):
    identity = Permutation.identity(symmetry)
    assert draws[0].compose(identity) == draws[0] == identity.compose(draws[0])
    assert draws[0].compose(draws[0].inverse()) == identity


def test_apply_changes_nothing_it_was_given(network: nn.Module, draws: list[Permutation]):
    weights = state.of_model(network)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    draws[0].apply(weights)
    assert equal(weights, before)


def test_random_elements_are_uniform(symmetry: Symmetry):
    generator = seeding.generator(1, "uniform")
    counts = torch.zeros(6, 6)
    for _ in range(3000):
        counts[torch.arange(6), Permutation.random(symmetry, generator)["0"]] += 1
    # Chi-squared with 25 degrees of freedom: 99.99 % of the time below 62.
    assert float(((counts - 500) ** 2 / 500).sum()) < 62


def test_saved_and_loaded(tmp_path: Path, symmetry: Symmetry, draws: list[Permutation]):
    draws[0].save(tmp_path / "p.safetensors")
    assert Permutation.load(tmp_path / "p.safetensors", symmetry) == draws[0]


def test_a_file_of_another_network_is_refused(tmp_path: Path, draws: list[Permutation]):
    draws[0].save(tmp_path / "p.safetensors")
    other = discover(nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)), torch.zeros(2, 4))
    with pytest.raises(UserError, match="no permutation of this network"):
        Permutation.load(tmp_path / "p.safetensors", other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"0": torch.arange(6)}, "differ: 2"),
        ({"0": torch.arange(5), "2": torch.arange(5)}, "'0': not a permutation of 6 units"),
        ({"0": torch.zeros(6), "2": torch.arange(5)}, "'0': not a permutation of 6 units"),
    ],
)
def test_what_is_no_permutation_is_refused(symmetry: Symmetry, values: dict[str, torch.Tensor], message: str):
    with pytest.raises(ValueError, match=message):
        Permutation(symmetry, values)


@pytest.fixture
def blocks() -> nn.Module:
    """Three groups of channels with 2 inside on the way in and 4 on the way out."""
    with seeding.isolated(0, "blocks"):
        return nn.Sequential(
            nn.Conv1d(2, 6, 1), nn.Tanh(), nn.Conv1d(6, 12, 2, groups=3), nn.Tanh(), nn.Conv1d(12, 2, 1)
        )


def test_laws_of_a_wreath_product(blocks: nn.Module, tmp_path: Path):
    symmetry = discover(blocks, torch.zeros(2, 2, 3))
    assert sorted(symmetry.lattice(name) for name in symmetry.groups) == [(3,), (3, 2), (3, 4)]
    generator, weights = seeding.generator(0, "wreath"), state.of_model(blocks)
    p, q, r = (Permutation.random(symmetry, generator) for _ in range(3))
    identity = Permutation.identity(symmetry)
    assert equal(p.compose(q).apply(weights), p.apply(q.apply(weights)))
    assert p.compose(q).compose(r) == p.compose(q.compose(r))
    assert p.compose(p.inverse()) == identity == p.inverse().compose(p)
    assert p.compose(identity) == p == identity.compose(p)
    assert p.compose(q).inverse() == q.inverse().compose(p.inverse())
    assert equal(p.inverse().apply(p.apply(weights)), weights)
    p.save(tmp_path / "p.safetensors")
    assert Permutation.load(tmp_path / "p.safetensors", symmetry) == p
    # 3! orders of the groups, and in each of the three 2! and 4!.
    assert 10**symmetry.log10_size == pytest.approx(6 * 2**3 * 24**3)


def test_inner_permutations_have_one_row_for_each_outer_unit(blocks: nn.Module):
    symmetry = discover(blocks, torch.zeros(2, 2, 3))
    values = dict(Permutation.identity(symmetry))
    inner = next(name for name in values if values[name].shape == (3, 4))
    with pytest.raises(ValueError, match="not a permutation of 3 x 4 units"):
        Permutation(symmetry, {**values, inner: torch.arange(4)})
