import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.linalg import block_diag
from torch import Tensor, nn

from lmc import seeding
from lmc import state as states
from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.problem import Matching, Problem
from lmc.alignment.similarity.observed import ByActivations
from lmc.alignment.zip import Zip, zip_units
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.transform import LinearMap
from tests.alignment.conftest import outputs

Plant = Callable[..., tuple[State, Permutation]]
SIZES = (6, 16, 17, 3)


class Residual(nn.Module):
    """A residual stream that is observed at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.enter, self.leave, self.out = nn.Conv2d(16, 18, 1), nn.Conv2d(18, 16, 1), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.stem(x)))
        x = torch.tanh(x + self.leave(torch.tanh(self.enter(x))))
        out: Tensor = self.out(x.flatten(1))
        return out


def perceptron(sizes: tuple[int, ...] = SIZES) -> nn.Module:
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        layers += [nn.Linear(into, out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (SIZES[0],)),
    "residual": (Residual, (2, 2, 2)),
}


def posed(model: nn.Module, shape: tuple[int, ...]) -> Problem:
    images = torch.randn(200, *shape, generator=torch.Generator().manual_seed(5))
    symmetry = discover(model, torch.zeros(2, *shape))
    return Problem(model, symmetry, 0, torch.device("cpu"), lambda size: images.split(size))


@cache
def pose(name: str) -> tuple[Problem, State, State]:
    """A problem with 200 images, and two networks drawn at random."""
    make, shape = MODELS[name]
    networks = []
    for seed in (0, 1):
        with seeding.isolated(seed, "networks"):
            model = make().eval()
        networks.append(states.of_model(model))
    return posed(model, shape), networks[0], networks[1]


def zipped(matching: Matching, fixed: State, moving: State) -> State:
    """The mean of both transformed networks."""
    ours = fixed if matching.fixed_transform is None else matching.fixed_transform.apply(fixed)
    return states.interpolate(ours, matching.transform.apply(moving), 0.5)


def mean_in_order(problem: Problem, fixed: State, moving: State) -> float:
    """The mean correlation of units in the order in which they come."""
    observed = ByActivations(images=None, batch_size=200).observe(fixed, moving, problem, joint=False)
    pairs = [np.mean([place.pearson().diagonal().numpy() for place in places.values()], 0) for _, places in observed]
    return float(np.concatenate(pairs).mean())


def drawn(n: int, seed: int) -> np.ndarray:
    """Correlations of 2n units."""
    draw = np.random.default_rng(seed)
    return np.corrcoef(draw.normal(size=(2 * n, 2 * n + 3)) + draw.normal(size=2 * n + 3))


def naive(similarity: np.ndarray, alpha: float, beta: float) -> tuple[set[frozenset[int]], list[int]]:
    """The greedy algorithm by sets of units and loops over all pairs; also the merges within each network."""
    n = len(similarity) // 2
    clusters = [frozenset([unit]) for unit in range(2 * n)]
    alike = {frozenset([a, b]): similarity[min(a), min(b)] for a, b in itertools.combinations(clusters, 2)}
    networks = (frozenset(range(n)), frozenset(range(n, 2 * n)))
    used = [0, 0]
    while len(clusters) > n:
        best: tuple[float, frozenset[int], frozenset[int]] | None = None
        for a, b in itertools.combinations(sorted(clusters, key=min), 2):
            within = [bool(a & network) and bool(b & network) for network in networks]
            if any(w and u + 1 > math.floor(beta * (n // 2)) for w, u in zip(within, used, strict=True)):
                continue
            if alpha == 0 and max(len(a), len(b)) > 1:
                continue
            if best is None or alike[frozenset([a, b])] > best[0]:
                best = (alike[frozenset([a, b])], a, b)
        assert best is not None
        _, a, b = best
        used = [u + bool(a & network and b & network) for u, network in zip(used, networks, strict=True)]
        clusters = [c for c in clusters if c not in (a, b)]
        for c in clusters:
            least = min(alike[frozenset([a, c])], alike[frozenset([b, c])])
            alike[frozenset([a | b, c])] = alpha * least
        clusters.append(a | b)
    return set(clusters), used


@pytest.mark.parametrize("beta", [0.0, 0.125, 0.5, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_units_are_merged_as_a_naive_greedy_does(alpha: float, beta: float) -> None:
    merged = 0
    for n, seed, shift in itertools.product((1, 2, 3, 5, 8, 16), range(2), (0, 1)):
        similarity = drawn(n, seed) - shift  # also such that all are negative, and alpha brings them closer to zero
        found = zip_units(torch.from_numpy(similarity), alpha, beta)
        members = {frozenset((found == k).nonzero().flatten().tolist()) for k in range(n)}
        expected, used = naive(similarity, alpha, beta)
        assert members == expected
        merged += sum(used)
        assert all(len(set(side.tolist())) == n - u for side, u in zip(found.split(n), used, strict=True))
        # A zipped unit is numbered as its first unit of the fixed network, where it has one.
        for k in range(n):
            ours = [unit for unit in range(n) if found[unit] == k]
            assert not ours or k == min(ours)
    assert (merged > 0) == (beta > 0)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_equal_similarities_end_too(alpha: float) -> None:
    """Units that are similar to none, or all to all."""
    for value, n, beta in itertools.product((0.0, 1.0, -0.5), (1, 4, 9), (0.0, 0.3, 1.0)):
        found = zip_units(torch.full((2 * n, 2 * n), value), alpha, beta)
        assert found.unique().tolist() == list(range(n))


@pytest.mark.parametrize("settings", [{}, {"beta": 0.0}, {"alpha": 0.0, "beta": 0.0}, {"kind": "pre"}])
@pytest.mark.parametrize("name", MODELS)
def test_planted_permutation_is_recovered(name: str, settings: dict, plant: Plant) -> None:
    problem, fixed, _ = pose(name)
    counters = {n: t for n, t in fixed.items() if not t.is_floating_point()}
    for seed in range(3):
        moving, truth = plant(problem.symmetry, {n: t for n, t in fixed.items() if n not in counters}, seed, 0.01)
        found = Zip(**settings)(fixed, {**moving, **counters}, problem)
        assert found.permutation == truth
        assert found.fixed_transform is None
        assert found.objective > 0.9


@pytest.mark.parametrize("name", MODELS)
def test_without_a_budget_it_is_a_permutation_not_better_than_the_assignment(name: str) -> None:
    problem, fixed, moving = pose(name)
    best = ActivationMatching(images=None)(fixed, moving, problem)
    still = mean_in_order(problem, fixed, moving)
    for alpha in (0.0, 0.3):
        found = Zip(alpha=alpha, beta=0)(fixed, moving, problem)
        assert found.fixed_transform is None
        assert set(found.permutation) == set(problem.symmetry.groups)
        assert still < found.objective <= best.objective + 1e-9


@pytest.mark.parametrize("name", MODELS)
def test_merged_units_are_alike_and_a_network_is_zipped_with_itself_by_the_identity(name: str) -> None:
    problem, fixed, moving = pose(name)
    assert Zip()(fixed, fixed, problem).permutation == Permutation.identity(problem.symmetry)
    found = Zip()(fixed, moving, problem)
    still = mean_in_order(problem, fixed, moving)
    assert all(record["similarity"] > still + 0.2 for record in found.trace)
    assert any(record["within_fixed"] or record["within_moving"] for record in found.trace)


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.125), (1.0, 0.5), (0.0, 1.0), (1.0, 1.0)])
def test_the_mean_of_both_networks_is_the_zipped_network(alpha: float, beta: float) -> None:
    """Against ZipIt by hand: W' = M diag(W_fixed, W_moving) U, with M the means over clusters and U their members."""
    problem, fixed, moving = pose("perceptron")
    assert problem.batches is not None
    x = y = next(iter(problem.batches(200))).double().numpy()
    signal, before = x, np.tile(np.eye(SIZES[0]), (2, 1))  # both networks read the same inputs
    for number in (0, 2, 4):
        sides = [
            (side[f"{number}.weight"].double().numpy(), side[f"{number}.bias"].double().numpy())
            for side in (fixed, moving)
        ]
        (ours, shift), (theirs, other) = sides
        x, y = np.tanh(x @ ours.T + shift), np.tanh(y @ theirs.T + other)
        n = len(ours)
        if number == 4:  # outputs are averaged
            clusters = {frozenset([unit, n + unit]) for unit in range(n)}
        else:
            clusters, _ = naive(np.corrcoef(np.concatenate([x, y], 1).T), alpha, beta)
        members = np.array([[float(unit in cluster) for cluster in sorted(clusters, key=min)] for unit in range(2 * n)])
        means = members.T / members.sum(0)[:, None]
        signal = signal @ (means @ block_diag(ours, theirs) @ before).T + means @ np.concatenate([shift, other])
        signal = np.tanh(signal) if number < 4 else signal
        before = members
    found = Zip(alpha=alpha, beta=beta)(fixed, moving, problem)
    assert isinstance(found.transform, LinearMap)
    assert isinstance(found.fixed_transform, LinearMap)
    assert np.allclose(outputs(problem, zipped(found, fixed, moving)).numpy(), signal, atol=1e-5)


def test_what_belongs_to_single_units_is_averaged_over_the_members() -> None:
    """Scales, means and variances of a normalisation, also of a unit that is merged with none."""
    problem, fixed, moving = pose("residual")
    draw = torch.Generator().manual_seed(7)
    names = [f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    fixed, moving = ({**side, **{n: torch.rand(16, generator=draw) + 0.5 for n in names}} for side in (fixed, moving))
    found = Zip(alpha=1, beta=1)(fixed, moving, problem)
    assert isinstance(found.transform, LinearMap)
    assert isinstance(found.fixed_transform, LinearMap)
    members = torch.cat([found.fixed_transform["stem"][0], found.transform["stem"][0]], 1) > 0
    sizes = members.sum(1)
    assert sizes.min() == 1
    assert sizes.max() > 2
    mean = zipped(found, fixed, moving)
    for name in names:
        expected = (members * torch.cat([fixed[name], moving[name]])).sum(1) / sizes
        assert torch.allclose(mean[name], expected, atol=1e-6)


def test_networks_with_every_unit_twice_are_zipped_to_their_ensemble() -> None:
    """Nothing is lost by merging copies: the zipped network's outputs are the mean of those of both networks."""
    narrow, wide = (6, 5, 4, 3), (6, 10, 8, 3)
    networks = []
    for seed in (0, 1):
        with seeding.isolated(seed, "twice"):
            small = perceptron(narrow)
        state = states.of_model(small)
        for number in (0, 2):
            state[f"{number}.weight"] = state[f"{number}.weight"].repeat_interleave(2, 0)
            state[f"{number}.bias"] = state[f"{number}.bias"].repeat_interleave(2, 0)
            state[f"{number + 2}.weight"] = state[f"{number + 2}.weight"].repeat_interleave(2, 1) / 2
        networks.append(state)
    problem = posed(perceptron(wide).eval(), (6,))
    found = Zip(beta=1)(*networks, problem)
    assert [(r["within_fixed"], r["within_moving"]) for r in found.trace] == [(5, 5), (4, 4)]
    ours, theirs, both = (outputs(problem, s) for s in (*networks, zipped(found, *networks)))
    assert torch.allclose(both, (ours + theirs) / 2, atol=1e-5)
    assert not torch.allclose(ours, theirs, atol=0.1)
    # Control: a permutation alone cannot.
    plain = outputs(problem, zipped(Zip(beta=0)(*networks, problem), *networks))
    assert not torch.allclose(plain, (ours + theirs) / 2, atol=0.02)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("settings", [{}, {"alpha": 1.0, "beta": 1.0}, {"beta": 0.0}])
def test_the_order_of_the_units_does_not_matter(name: str, settings: dict) -> None:
    problem, fixed, moving = pose(name)
    for seed in range(2):
        shuffle = Permutation.random(problem.symmetry, torch.Generator().manual_seed(seed))
        one, other = (Zip(**settings)(fixed, side, problem) for side in (moving, shuffle.apply(moving)))
        assert other.objective == pytest.approx(one.objective, rel=1e-6)
        means = zipped(one, fixed, moving), zipped(other, fixed, shuffle.apply(moving))
        assert torch.allclose(outputs(problem, means[0]), outputs(problem, means[1]), atol=1e-5)
        if settings.get("beta") == 0:
            assert other.permutation == one.permutation.compose(shuffle.inverse())


def test_within_merges_keep_to_the_budget_of_each_network() -> None:
    problem, fixed, moving = pose("residual")
    for beta in (0.0, 0.125, 0.3, 1.0):
        found = Zip(alpha=1, beta=beta)(fixed, moving, problem)
        for record in found.trace:
            for side in ("within_fixed", "within_moving"):
                assert record[side] <= math.floor(beta * (record["units"] // 2))
            assert record["places"] == (2 if record["units"] == 16 else 1)
        pairs = sum(record["pairs"] for record in found.trace)
        weighted = sum(record["pairs"] * record["similarity"] for record in found.trace)
        assert found.objective == pytest.approx(weighted / pairs)


def test_groups_beyond_the_depth_stay_as_they_are() -> None:
    problem, fixed, moving = pose("perceptron")
    first, second = problem.symmetry.groups
    whole, part = Zip(beta=0.5)(fixed, moving, problem), Zip(beta=0.5, depth=0.5)(fixed, moving, problem)
    assert part.trace == whole.trace[:1]
    for found, other in ((part.transform, whole.transform), (part.fixed_transform, whole.fixed_transform)):
        assert torch.equal(found[first][0], other[first][0])  # type: ignore[index]
        assert torch.equal(found[second][0], torch.eye(17))  # type: ignore[index]
        assert torch.equal(found[second][1], torch.eye(17))  # type: ignore[index]
    assert len(Zip(depth=0.01)(fixed, moving, problem).trace) == 1
    assert len(Zip(depth=0.51)(fixed, moving, problem).trace) == 2
    only = Zip(beta=0, depth=0.5)(fixed, moving, problem).permutation
    assert only[second].tolist() == list(range(17))


def test_same_answer_again_and_nothing_handed_in_is_changed() -> None:
    problem, fixed, moving = pose("residual")
    before = [{n: t.clone() for n, t in side.items()} for side in (fixed, moving)]
    one, two = (Zip()(fixed, moving, problem) for _ in range(2))
    cut = Zip(batch_size=33)(fixed, moving, problem)
    assert one.trace == two.trace
    for group in problem.symmetry.groups:
        assert torch.equal(one.transform[group][0], two.transform[group][0])  # type: ignore[index]
        assert torch.equal(one.transform[group][0], cut.transform[group][0])  # type: ignore[index]
    for side, old in zip((fixed, moving), before, strict=True):
        assert all(torch.equal(side[name], old[name]) for name in old)


def test_interrupted_it_returns_the_groups_that_are_done() -> None:
    problem, fixed, moving = pose("perceptron")
    whole = Zip(beta=0)(fixed, moving, problem)

    def stop(record: Mapping[str, float]) -> None:
        if "group" in record:
            raise KeyboardInterrupt

    part = Zip(beta=0)(fixed, moving, problem, stop)
    assert whole.complete
    assert not part.complete
    first, second = problem.symmetry.groups
    assert torch.equal(part.permutation[first], whole.permutation[first])
    assert part.permutation[second].tolist() == list(range(17))

    def at_once(record: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    still = Zip()(fixed, moving, problem, at_once)
    assert (still.complete, still.trace) == (False, [])
    assert still.permutation == Permutation.identity(problem.symmetry)


def test_without_a_budget_it_is_not_soft() -> None:
    assert Zip().is_soft
    assert not Zip(beta=0).is_soft


def test_of_tied_weights_only_permutations_are_handled() -> None:
    problem, _, _ = pose("perceptron")
    tied = replace(problem.symmetry, both_ways=frozenset({("2.weight", 1)}))
    with pytest.raises(
        UserError, match=r"Zip with beta > 0 is not defined for tied weights: dimension 1 of '2\.weight'"
    ):
        Zip().check(tied)
    Zip(beta=0).check(tied)


def test_what_cannot_be_observed_is_refused() -> None:
    problem, fixed, moving = pose("perceptron")
    with pytest.raises(UserError, match="no images were given"):
        Zip()(fixed, moving, replace(problem, batches=None))
    with pytest.raises(UserError, match="no model was given"):
        Zip()(fixed, moving, replace(problem, model=None))
    with pytest.raises(UserError, match="NaN or infinity"):
        Zip()(fixed, {**moving, "0.bias": torch.full((16,), torch.nan)}, problem)
