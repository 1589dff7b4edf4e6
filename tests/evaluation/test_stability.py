"""Stability against scipy and dense loops in numpy, and its closed forms."""

import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from lmc.alignment.problem import Problem
from lmc.alignment.weight_matching import WeightMatching
from lmc.analysis.stability import Stability
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.stability import Softness, entropy, margins, origins, spread, stability
from lmc.seeding import generator, isolated
from lmc.state import State, of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from tests.analysis.subjects import data, subject

Seeded = Callable[..., nn.Module]
SOFT = Softness(temperature=0.5, iterations=20_000, tolerance=1e-10)


def net(seed: int) -> nn.Module:
    """Two groups, of 6 channels and of 5 units, behind a norm and a flattened map."""
    with isolated(seed, "net"):
        inner = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()
        return nn.Sequential(*inner, nn.Linear(24, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.fixture(scope="module")
def symmetry() -> Symmetry:
    return discover(net(0), torch.zeros(2, 1, 4, 4))


def drawn(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, n, generator=generator(seed, "similarity"), dtype=torch.float64)


def sinkhorn(scores: np.ndarray) -> np.ndarray:
    plan = np.exp(scores - scores.max())
    for _ in range(20_000):
        plan = plan / plan.sum(1, keepdims=True)
        plan = plan / plan.sum(0, keepdims=True)
    return plan


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_entropy_is_that_of_a_dense_sinkhorn_loop(temperature: float):
    values = drawn(7).numpy()
    left = values - values.mean(0) - values.mean(1)[:, None] + values.mean()
    assert spread(drawn(7)) == pytest.approx(left.std())
    plan = sinkhorn(values / (temperature * left.std()))
    expected = -(plan * np.log(plan)).sum(1).mean() / math.log(7)
    found, violation = entropy(drawn(7), Softness(temperature=temperature, iterations=20_000, tolerance=1e-10))
    assert found == pytest.approx(expected, abs=1e-8)
    assert violation <= 1e-10


def test_closed_forms_of_the_entropy():
    """With 1 on the diagonal and 0 beside it a row is (e^a, 1, ..., 1) / (e^a + n - 1), a = 1 / (tau spread)."""
    n, one = 6, torch.eye(6, dtype=torch.float64)
    width = math.sqrt(n - 1) / n
    assert spread(one) == pytest.approx(width)
    weight = math.exp(1 / (0.5 * width))
    p, q = weight / (weight + n - 1), 1 / (weight + n - 1)
    expected = -(p * math.log(p) + (n - 1) * q * math.log(q)) / math.log(n)
    assert entropy(one, SOFT)[0] == pytest.approx(expected, abs=1e-9)
    assert entropy(one, Softness(temperature=0.01))[0] == pytest.approx(0, abs=1e-9)
    assert entropy(one, Softness(temperature=1e6))[0] == pytest.approx(1, abs=1e-9)
    assert entropy(torch.full((6, 6), 0.3), SOFT) == (1, 0)
    assert entropy(torch.ones(1, 1), SOFT) == (0, 0)


def test_terms_of_rows_and_columns_alone_change_nothing():
    rows, columns = drawn(7, 1)[0], drawn(7, 2)[0]
    other = 3 * drawn(7) + rows[:, None] + columns
    assert entropy(other, SOFT)[0] == pytest.approx(entropy(drawn(7), SOFT)[0], abs=1e-8)
    assert entropy(rows[:, None] + columns, SOFT)[0] == 1
    best = torch.from_numpy(linear_sum_assignment(drawn(7).numpy(), maximize=True)[1])
    np.testing.assert_allclose(margins(other, best), 3 * margins(drawn(7), best), atol=1e-12)


def test_a_margin_is_what_the_cheapest_exchange_costs():
    values = drawn(7).numpy()
    best = linear_sum_assignment(values, maximize=True)[1]
    total = values[np.arange(7), best].sum()
    expected = np.full(7, np.inf)
    for i, j in itertools.combinations(range(7), 2):
        other = best.copy()
        other[[i, j]] = other[[j, i]]
        cost = total - values[np.arange(7), other].sum()
        expected[i], expected[j] = min(expected[i], cost), min(expected[j], cost)
    found = margins(drawn(7), torch.from_numpy(best)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert found.min() >= 0
    np.testing.assert_array_equal(margins(torch.eye(4), torch.arange(4)), 2)
    assert margins(torch.ones(1, 1), torch.arange(1)).item() == math.inf


def test_origins_are_what_was_applied(symmetry: Symmetry):
    own, first = of_model(net(1)), Permutation.random(symmetry, generator(0, "first"))
    moved = first.apply(own)
    for name, value in first.items():
        assert torch.equal(origins(symmetry, name, own, moved), value)
        assert torch.equal(origins(symmetry, name, own, own), torch.arange(len(value)))
        assert origins(symmetry, name, own, of_model(net(2))) is None
        assert origins(symmetry, name, own, {k: 2 * v for k, v in moved.items()}) is None


def test_units_that_are_the_same_keep_their_order(symmetry: Symmetry):
    own = {name: torch.zeros_like(tensor) for name, tensor in of_model(net(1)).items()}
    for name in symmetry.groups:
        assert torch.equal(origins(symmetry, name, own, own), torch.arange(symmetry.units(name)))


def run(symmetry: Symmetry, before: tuple[State, State], after: tuple[State, State], dataset: Dataset, **more: Any):
    found = stability(net(0), symmetry, before, after, dataset, SOFT, seed=0, **more)
    return {group.group: group for group in found}


def test_fixed_points_compare_where_both_units_of_a_pair_stood(symmetry: Symmetry):
    pair = of_model(net(1)), of_model(net(2))
    dataset = data((1, 4, 4), 3, train=20)
    p, q = (Permutation.random(symmetry, generator(seed, "order")) for seed in (1, 2))
    for moves in ((Permutation.identity(symmetry), q), (p, q), (p, p)):
        after = moves[0].apply(pair[0]), moves[1].apply(pair[1])
        found = run(symmetry, pair, after, dataset)
        for name, group in found.items():
            assert group.fixed_points == (moves[0][name] == moves[1][name]).double().mean().item()
            assert group.units == len(p[name])
    changed = run(symmetry, pair, (pair[0], {name: 2 * t for name, t in pair[1].items()}), dataset)
    assert all(group.fixed_points is None for group in changed.values())


def hidden(state: State, inputs: Tensor) -> list[np.ndarray]:
    """(samples, units) of both groups: channels at all positions, units of all images."""
    model = net(0).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        maps = model[2](model[1](model[0](inputs)))
        units = model[5](model[4](model[3](maps)))
    return [maps.double().permute(0, 2, 3, 1).reshape(-1, 6).numpy(), units.double().numpy()]


def correlated(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    found = np.zeros((ours.shape[1], theirs.shape[1]))
    for i, j in itertools.product(range(ours.shape[1]), range(theirs.shape[1])):
        if np.ptp(ours[:, i]) > 0 and np.ptp(theirs[:, j]) > 0:
            found[i, j] = np.corrcoef(ours[:, i], theirs[:, j])[0, 1]
    return found


def test_activations_are_compared_on_two_disjoint_halves(symmetry: Symmetry):
    pair = of_model(net(1)), of_model(net(2))
    dataset = data((1, 4, 4), 3, train=41)
    found = run(symmetry, pair, pair, dataset, images=40, batch_size=7)
    chosen = dataset.train.first(40).images
    matchings, kept, margin = [], [], []
    for half in (chosen[:20], chosen[20:]):
        ours, theirs = (hidden(state, dataset.normalise(half)) for state in pair)
        tables = [correlated(one, other) for one, other in zip(ours, theirs, strict=True)]
        matchings.append([linear_sum_assignment(table, maximize=True)[1] for table in tables])
        kept.append([np.mean(p == np.arange(len(p))) for p in matchings[-1]])
        margin.append([
            margins(torch.from_numpy(t), torch.from_numpy(p)).mean().item() / spread(torch.from_numpy(t))
            for t, p in zip(tables, matchings[-1], strict=True)
        ])  # fmt: skip
    for place, group in enumerate(found.values()):
        assert group.activations is not None
        assert group.activations.agreement == np.mean(matchings[0][place] == matchings[1][place])
        assert group.activations.kept == pytest.approx(np.mean([half[place] for half in kept]))
        assert group.activations.margin == pytest.approx(np.mean([half[place] for half in margin]), rel=1e-3)


def test_both_halves_hold_all_classes(symmetry: Symmetry):
    """Images that are bright in one class only: halves of different classes would not be alike."""
    dataset = data((1, 4, 4), 2, train=40)
    assert dataset.train.first(40).labels.reshape(2, 20).sum(1).tolist() == [10, 10]


def test_weights_are_compared_at_the_solution(symmetry: Symmetry):
    """S from the definition: incoming and outgoing weights, bias and norm of each unit, all others where they are."""
    pair = of_model(net(1)), of_model(net(2))
    found = run(symmetry, pair, pair, data((1, 4, 4), 3, train=20))
    a, b = ({n: t.double().numpy() for n, t in state.items()} for state in pair)

    def inner(name: str, rows: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return rows(a[name]) @ rows(b[name]).T

    def out(n: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda m: m.reshape(n, -1)

    channels = sum(inner(name, out(6)) for name in ("0.weight", "0.bias", "1.weight", "1.bias"))
    channels = channels + inner("4.weight", lambda m: m.reshape(5, 6, 4).transpose(1, 0, 2).reshape(6, -1))
    units = sum(inner(name, out(5)) for name in ("4.weight", "4.bias")) + inner("6.weight", np.transpose)
    for table, group in zip((channels, units), found.values(), strict=True):
        best = linear_sum_assignment(table, maximize=True)[1]
        similarity = torch.from_numpy(table)
        assert group.weights.kept == np.mean(best == np.arange(len(best)))
        assert group.weights.entropy == pytest.approx(entropy(similarity, SOFT)[0], rel=1e-4)
        expected = margins(similarity, torch.from_numpy(best)).mean().item() / spread(similarity)
        assert group.weights.margin == pytest.approx(expected, rel=1e-4)


def test_a_planted_matching_is_sure_of_itself(symmetry: Symmetry):
    own = of_model(net(1))
    found = run(symmetry, (own, own), (own, own), data((1, 4, 4), 3, train=40))
    for group in found.values():
        assert group.activations is not None
        assert group.weights.kept == group.weights.agreement == 1
        assert group.activations.agreement == group.activations.kept == 1
        assert group.weights.margin > 0
    again = run(symmetry, (own, own), (own, own), data((1, 4, 4), 3, train=40))
    assert again == found


def test_weight_matching_keeps_what_it_has_found(symmetry: Symmetry):
    pair = of_model(net(1)), of_model(net(2))
    p = WeightMatching()(*pair, Problem(None, symmetry, 0, torch.device("cpu"), None)).permutation
    found = run(symmetry, pair, (pair[0], p.apply(pair[1])), data((1, 4, 4), 3, train=20))
    assert all(group.weights.kept == 1 for group in found.values())


def test_the_option_writes_every_group(symmetry: Symmetry, tmp_path: FilePath):
    pair = [of_model(net(seed)) for seed in (1, 2)]
    dataset = data((1, 4, 4), 3, train=20)
    p = Permutation.random(symmetry, generator(1, "order"))
    of = subject(
        net(0), [pair[0], p.apply(pair[1])], None, dataset, symmetry=symmetry, trained=[(state,) for state in pair]
    )
    option = Stability()
    option.check(of)
    steps: list[Any] = []
    findings = option(of, tmp_path, steps.append)
    assert len(steps) == option.steps(of) == 4
    with (tmp_path / "stability.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["units"], row["kind"]) for row in rows] == [
        *(("6", "weights"), ("6", "activations"), ("5", "weights"), ("5", "activations")),
    ]
    whole = {(f.what, f.metric): f.value for f in findings if not f.more}
    for kind, metric in itertools.product(("weights", "activations"), ("kept", "agreement", "entropy", "margin")):
        six, five = (float(row[metric]) for row in rows if row["kind"] == kind)
        assert whole[kind, metric] == pytest.approx((6 * six + 5 * five) / 11)
    assert whole["matching", "fixed_points"] == pytest.approx(
        sum((q == torch.arange(len(q))).sum().item() for q in p.values()) / 11
    )


class Blocks(nn.Module):
    """A convolution in groups: channels inside blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 2, groups=3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.two(torch.relu(self.one(x)))).flatten(1))


def test_what_cannot_be_matched_twice_is_refused(seeded: Seeded):
    model = Blocks()
    with pytest.raises(UserError, match="inside blocks") as caught:
        Stability().check(subject(model, [of_model(model)] * 2, None, data((1, 4, 4), 3)))
    assert "\n" not in str(caught.value)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(UserError, match="nothing to correlate"):
        Stability().check(subject(plain, [of_model(plain)] * 2, None, data((1, 4, 4), 3)))
    model = seeded(0)
    with pytest.raises(UserError, match="two halves"):
        Stability().check(subject(model, [of_model(model)] * 2, None, data((1, 4, 4), 3, train=1)))
