import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from lmc import config
from lmc.alignment.assignment import assign
from lmc.alignment.problem import Problem
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.alignment.simulated_annealing import SimulatedAnnealing, _changes, _Walk
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

Draw = Callable[[Symmetry, int], State]
Pose = Callable[..., Problem]
Plant = Callable[[Symmetry, State, int, float], tuple[State, Permutation]]
PLAIN = ["mlp", "conv", "channels last", "residual", "concatenation", "self-coupled", "three groups", "heads"]
BLOCKS = [
    "packed attention",
    "grouped convolution",
    "grouped queries",
    "channel shuffle between groups",
    "heads by einsum",
    "shared module",
]
CPU = torch.device("cpu")


def double(network: Mapping[str, Tensor]) -> State:
    return {name: tensor.double() for name, tensor in network.items()}


def pair_of(symmetry: Symmetry, draw: Draw, seed: int = 0) -> tuple[State, State]:
    return double(draw(symmetry, 2 * seed + 1)), double(draw(symmetry, 2 * seed + 2))


def walk_from(begin: Permutation, fixed: State, moving: State) -> _Walk:
    return _Walk(WeightSimilarity(fixed, moving, begin.symmetry, CPU), begin, CPU)


def objective(fixed: State, moving: State, permutation: Permutation) -> float:
    aligned = permutation.apply(moving)
    acted = permutation.symmetry.axes_of.keys() & permutation.symmetry.parameters
    return sum((fixed[name] * aligned[name]).sum().item() for name in acted)


@pytest.mark.parametrize("name", [*PLAIN, *BLOCKS])
def test_a_move_changes_the_objective_by_what_is_foretold(symmetries: dict[str, Symmetry], draw: Draw, name: str):
    """Against the permuted networks, for every transposition of every group on its own."""
    symmetry = symmetries[name]
    fixed, moving = pair_of(symmetry, draw)
    begin = Permutation.random(symmetry, torch.Generator().manual_seed(1))
    walk, before = walk_from(begin, fixed, moving), objective(fixed, moving, begin)
    assert walk.objective == pytest.approx(before, abs=1e-9)
    draws, identity = torch.Generator().manual_seed(2), Permutation.identity(symmetry)
    for group in symmetry.groups:
        first, second = walk._paired(group, draws)
        assert first.shape == second.shape == (symmetry.units(group) // symmetry.groups[group].size, first.shape[1])
        if walk._is_linear(group):
            changes = _changes(*walk._held(group), first.numpy(), second.numpy()).ravel().tolist()
        else:
            changes = [walk._weights.difference(begin, new) for new in walk._one_by_one(group, (first, second))]
        pairs = [
            (place, *pair) for place in range(len(first)) for pair in zip(first[place], second[place], strict=True)
        ]
        for change, (place, i, j) in zip(changes, pairs, strict=True):
            alone = identity[group].reshape(len(first), -1).clone()
            alone[place, i], alone[place, j] = j, i
            step = Permutation(symmetry, {**identity, group: alone.reshape(identity[group].shape)})
            assert change == pytest.approx(objective(fixed, moving, step.compose(begin)) - before, abs=1e-9)


@pytest.mark.parametrize(("name", "linear"), [("mlp", {"a", "b"}), ("self-coupled", {"i"})])
def test_groups_whose_pairs_bear_on_each_other_are_told_apart(
    symmetries: dict[str, Symmetry], draw: Draw, name: str, linear: set[str]
):
    symmetry = symmetries[name]
    walk = walk_from(Permutation.identity(symmetry), *pair_of(symmetry, draw))
    assert {group for group in symmetry.groups if walk._is_linear(group)} == linear


@pytest.mark.parametrize("pairings", [1, 5])
@pytest.mark.parametrize("name", [*PLAIN, *BLOCKS])
def test_what_is_kept_along_the_way_is_what_is_computed_anew(
    symmetries: dict[str, Symmetry], draw: Draw, name: str, pairings: int
):
    symmetry = symmetries[name]
    fixed, moving = pair_of(symmetry, draw)
    draws = torch.Generator().manual_seed(2)
    walk = walk_from(Permutation.identity(symmetry), fixed, moving)
    hot = walk.typical_change(draws)
    made = sum(walk.sweep(hot, pairings, draws)[1] for _ in range(10))
    assert made
    assert walk.objective == pytest.approx(objective(fixed, moving, Permutation(symmetry, walk.permutation)), abs=1e-8)
    best = Permutation(symmetry, walk.best.permutation)
    assert walk.best.objective == pytest.approx(objective(fixed, moving, best), abs=1e-8)
    assert walk.best.objective >= walk.objective


def test_at_one_temperature_permutations_are_met_as_boltzmann_says(build: Callable[..., Symmetry], draw: Draw):
    symmetry = build({"a": 3}, {"w": ("a", 4)})
    fixed, moving = pair_of(symmetry, draw)
    weights = WeightSimilarity(fixed, moving, symmetry, CPU)
    orders = list(itertools.permutations(range(3)))
    values = np.array([weights.objective({"a": torch.tensor(order)}) for order in orders])
    temperature = float(np.ptp(values)) / 2
    expected = np.exp(values / temperature)
    expected /= expected.sum()
    walk = walk_from(Permutation.identity(symmetry), fixed, moving)
    draws = torch.Generator().manual_seed(0)
    met = dict.fromkeys(orders, 0)
    sweeps = 6000
    for _ in range(sweeps):
        walk.sweep(temperature, 1, draws)
        met[tuple(walk.permutation["a"].tolist())] += 1
    assert np.array(list(met.values())) / sweeps == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("name", ["mlp", "conv", "self-coupled", "heads"])
def test_the_best_of_all_permutations_is_found_and_never_exceeded(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, name: str
):
    """Over all permutations of the first group, with the exact assignment of the second for each."""
    symmetry = symmetries[name]
    first, second = symmetry.groups
    optimal = 0
    for seed in range(3):
        fixed, moving = pair_of(symmetry, draw, seed)
        weights = WeightSimilarity(fixed, moving, symmetry, CPU)
        best = -np.inf
        for order in itertools.permutations(range(symmetry.groups[first].size)):
            held = {first: torch.tensor(order), second: torch.arange(symmetry.groups[second].size)}
            best = max(best, weights.objective({**held, second: assign(weights.of(second, held))}))
        found = SimulatedAnnealing(sweeps=60, restarts=3, pairings=5)(fixed, moving, pose(symmetry, seed))
        assert found.objective <= best + 1e-9
        assert found.objective == pytest.approx(weights.objective(dict(found.permutation)), abs=1e-9)
        optimal += found.objective > best - 1e-9
    assert optimal >= 2


@pytest.mark.parametrize("name", ["mlp", "residual", "self-coupled", *BLOCKS])
def test_planted_permutation_is_recovered(
    symmetries: dict[str, Symmetry],
    draw: Draw,
    pose: Pose,
    plant: Plant,
    name: str,
):
    symmetry = symmetries[name]
    fixed = draw(symmetry, 1)
    moving, truth = plant(symmetry, fixed, 1, 0.01)
    assert SimulatedAnnealing(sweeps=250, pairings=3)(fixed, moving, pose(symmetry)).permutation == truth


def test_the_temperature_falls_geometrically_and_fewer_moves_are_made(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose
):
    symmetry = symmetries["residual"]
    fixed, moving = pair_of(symmetry, draw)
    seen: list[Mapping[str, float]] = []
    found = SimulatedAnnealing(sweeps=60, pairings=1, hottest=3.0, coldest=0.003)(
        fixed, moving, pose(symmetry), seen.append
    )
    assert seen == found.trace
    heat = [record["temperature"] for record in seen]
    ratios = [later / earlier for earlier, later in itertools.pairwise(heat)]
    assert ratios == pytest.approx([0.001 ** (1 / 59)] * 59)
    assert heat[-1] == pytest.approx(heat[0] / 1000)
    assert all(record["proposed"] == 2 + 2 + 1 for record in seen)
    share = [sum(record["made"] for record in part) / 10 / 5 for part in (seen[:10], seen[50:])]
    assert share[0] > 0.4
    assert share[1] < 0.1
    tops = [record["best"] for record in seen]
    assert tops == sorted(tops)
    assert found.objective == pytest.approx(tops[-1], abs=1e-9)
    assert all(record["objective"] <= record["best"] for record in seen)


def test_a_cold_walk_only_rises(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose):
    symmetry = symmetries["residual"]
    fixed, moving = pair_of(symmetry, draw)
    found = SimulatedAnnealing(sweeps=60, hottest=1e-9, coldest=1e-9)(fixed, moving, pose(symmetry))
    values = [record["objective"] for record in found.trace]
    assert values == sorted(values)
    at_identity = WeightSimilarity(fixed, moving, symmetry, CPU).objective(dict(Permutation.identity(symmetry)))
    assert values[-1] > at_identity


def test_annealing_finds_what_a_cold_walk_misses(build: Callable[..., Symmetry], draw: Draw, pose: Pose):
    symmetry = build({"s": 12, "i": 16}, {"in": ("s", 2), "1": ("i", "s"), "2": ("s", "i"), "out": (2, "s")})
    gain = []
    for seed in range(4):
        fixed, moving = pair_of(symmetry, draw, seed)
        hot, cold = (
            SimulatedAnnealing(sweeps=100, pairings=5, hottest=heat, coldest=min(heat, 0.05))(
                fixed, moving, pose(symmetry, seed)
            )
            for heat in (1.0, 1e-9)
        )
        gain.append(hot.objective - cold.objective)
    assert sum(value > 0 for value in gain) >= 3
    assert sum(gain) > 0


def test_units_that_are_equal_keep_their_place(build: Callable[..., Symmetry], draw: Draw, pose: Pose):
    symmetry = build({"a": 8}, {"1.w": ("a", 3), "2.w": (2, "a")})
    fixed = draw(symmetry, 1)
    for name, dim in (("1.w", 0), ("2.w", 1)):
        fixed[name].index_fill_(dim, torch.tensor([1, 4, 6]), 0.0)
    found = SimulatedAnnealing(sweeps=30)(fixed, fixed, pose(symmetry))
    assert found.permutation == Permutation.identity(symmetry)
    nothing = {name: torch.zeros_like(tensor) for name, tensor in fixed.items()}
    still = SimulatedAnnealing(sweeps=3)(fixed, nothing, pose(symmetry))
    assert still.permutation == Permutation.identity(symmetry)
    assert sum(record["made"] for record in still.trace) == 0


def test_an_interrupted_search_returns_its_best(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose):
    symmetry = symmetries["residual"]
    fixed, moving = pair_of(symmetry, draw)
    weights = WeightSimilarity(fixed, moving, symmetry, CPU)
    whole = SimulatedAnnealing(sweeps=40, restarts=2)(fixed, moving, pose(symmetry))
    assert whole.complete

    def stop(record: Mapping[str, float]) -> None:
        if record["restart"] == 1 and record["sweep"] == 5:
            raise KeyboardInterrupt

    found = SimulatedAnnealing(sweeps=40, restarts=2)(fixed, moving, pose(symmetry), stop)
    assert not found.complete
    assert found.trace[-1]["sweep"] == 5
    assert found.objective == pytest.approx(max(record["best"] for record in found.trace), abs=1e-9)
    assert found.objective == pytest.approx(weights.objective(dict(found.permutation)), abs=1e-9)
    assert whole.objective >= found.objective


def test_same_seed_same_answer(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose):
    symmetry = symmetries["residual"]
    fixed, moving = draw(symmetry, 1), draw(symmetry, 2)
    before = {name: tensor.clone() for name, tensor in moving.items()}

    def run(seed: int, start: str) -> tuple[Permutation, list[float]]:
        state = torch.random.get_rng_state()
        found = SimulatedAnnealing(sweeps=20, restarts=2, start=start)(fixed, moving, pose(symmetry, seed))
        assert torch.equal(state, torch.random.get_rng_state())
        return found.permutation, [record["objective"] for record in found.trace]

    for start in ("identity", "random"):
        assert run(0, start) == run(0, start)
        assert run(0, start)[1] != run(1, start)[1]
    assert all(torch.equal(moving[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("start", "centre"), ("restarts", 0), ("sweeps", 0), ("pairings", 0), ("hottest", 0.0), ("coldest", -0.1)],
)
def test_unusable_settings_are_named(setting: str, value: object):
    node = {"_target_": "lmc.alignment.simulated_annealing.SimulatedAnnealing", setting: value}
    with pytest.raises(UserError, match=rf"alignment\.{setting}"):
        config.build(node, "alignment")


def test_a_temperature_that_rises_is_refused():
    with pytest.raises(UserError, match=r"alignment\.coldest=2\.0 is above alignment\.hottest=0\.5"):
        SimulatedAnnealing(coldest=2.0)


def test_a_network_without_groups_has_nothing_to_match(pose: Pose):
    symmetry = Symmetry({}, {"w": (3, 2)}, frozenset({"w"}))
    found = SimulatedAnnealing(sweeps=2)({"w": torch.ones(3, 2)}, {"w": torch.zeros(3, 2)}, pose(symmetry))
    assert (len(found.permutation), found.objective) == (0, 0.0)
