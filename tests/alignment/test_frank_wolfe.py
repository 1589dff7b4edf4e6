import itertools
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from scipy.optimize import fminbound, linear_sum_assignment
from torch import Tensor

from lmc import config
from lmc.alignment.assignment import assign, assign_all
from lmc.alignment.frank_wolfe import FrankWolfe
from lmc.alignment.problem import Problem
from lmc.alignment.similarity.mixture import Mixture, SoftNetwork, centre, highest, rise, towards
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Factor, Symmetry
from lmc.symmetry.transform import LinearMap

Draw = Callable[[Symmetry, int], State]
Pose = Callable[..., Problem]
Plant = Callable[[Symmetry, State, int, float], tuple[State, Permutation]]
PLAIN = ["mlp", "conv", "channels last", "residual", "concatenation", "self-coupled", "three groups", "heads"]
BLOCKS = [
    "packed attention",
    "grouped convolution",
    "depthwise convolution with a multiplier",
    "grouped queries",
    "channel shuffle between groups",
    "heads by einsum",
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def perceptron(build: Callable[..., Symmetry]) -> Symmetry:
    return build(
        {"a": 32, "b": 24}, {"1.w": ("a", 10), "1.b": ("a",), "2.w": ("b", "a"), "2.b": ("b",), "3.w": (5, "b")}
    )


@pytest.fixture(scope="module")
def residual(build: Callable[..., Symmetry]) -> Symmetry:
    sizes = {"s": 20} | {f"i{block}": 30 for block in range(4)}
    tensors: dict[str, tuple[str | int, ...]] = {"in": ("s", 2), "out": (2, "s")}
    for block in range(4):
        tensors |= {f"{block}.1": (f"i{block}", "s"), f"{block}.2": ("s", f"i{block}")}
    return build(sizes, tensors)


def double(network: Mapping[str, Tensor]) -> State:
    return {name: tensor.double() for name, tensor in network.items()}


def pair_of(symmetry: Symmetry, draw: Draw, seed: int = 0) -> tuple[State, State]:
    return double(draw(symmetry, 2 * seed + 1)), double(draw(symmetry, 2 * seed + 2))


def objective(fixed: State, moving: State, permutation: Permutation) -> float:
    aligned = permutation.apply(moving)
    acted = permutation.symmetry.axes_of.keys() & permutation.symmetry.parameters
    return sum((fixed[n].double() * aligned[n].double()).sum().item() for n in acted)


def mixed(symmetry: Symmetry, seed: int, *sizes: float) -> Mixture:
    """Several random permutations, mixed into the centre one after the other."""
    generator = torch.Generator().manual_seed(seed)
    found = centre(symmetry, torch.zeros((), dtype=torch.float64))
    for size in sizes:
        found = towards(found, symmetry, Permutation.random(symmetry, generator), size)
    return found


def matrix_of(symmetry: Symmetry, permutation: Mapping[str, Tensor]) -> Mixture:
    """The mixture of one permutation."""
    return towards(centre(symmetry, torch.zeros((), dtype=torch.float64)), symmetry, permutation, 1.0)


def soft_pair(fixed: State, moving: State, symmetry: Symmetry) -> tuple[SoftNetwork, list[Tensor]]:
    """The moving network under mixtures, and the parts of the fixed one."""
    like = torch.zeros((), dtype=torch.float64)
    return SoftNetwork(moving, symmetry, like), SoftNetwork(fixed, symmetry, like).parts


@pytest.mark.parametrize("name", PLAIN)
def test_the_objective_is_that_of_the_soft_network(symmetries: dict[str, Symmetry], draw: Draw, name: str):
    """Against `LinearMap`, which multiplies the tensors by the matrices."""
    symmetry = symmetries[name]
    fixed, moving = pair_of(symmetry, draw)
    mixture = mixed(symmetry, 3, 0.3, 0.4)
    expected = LinearMap.symmetric(symmetry, mixture).apply(moving)
    value = sum((fixed[tensor] * expected[tensor]).sum().item() for tensor in symmetry.axes_of)
    soft, others = soft_pair(fixed, moving, symmetry)
    assert soft.product(mixture, others) == pytest.approx(value, rel=1e-10)
    assert soft.gradient(mixture, others)[0] == pytest.approx(value, rel=1e-10)


@pytest.mark.parametrize("name", [*PLAIN, *BLOCKS])
def test_at_a_permutation_and_at_the_centre_the_objective_is_weight_matchings(
    symmetries: dict[str, Symmetry], draw: Draw, name: str
):
    symmetry = symmetries[name]
    fixed, moving = pair_of(symmetry, draw)
    weights, (soft, others) = WeightSimilarity(fixed, moving, symmetry, CPU), soft_pair(fixed, moving, symmetry)
    permutation = Permutation.random(symmetry, torch.Generator().manual_seed(5))
    at_permutation = soft.product(matrix_of(symmetry, permutation), others)
    assert at_permutation == pytest.approx(objective(fixed, moving, permutation), abs=1e-9)
    assert soft.product(mixed(symmetry, 0), others) == pytest.approx(weights.objective({}), abs=1e-9)


@pytest.mark.parametrize("name", [*PLAIN, *BLOCKS])
def test_a_mixture_is_doubly_stochastic_and_rounded_to_what_it_is_mostly_made_of(
    symmetries: dict[str, Symmetry], name: str
):
    symmetry = symmetries[name]
    permutation = Permutation.random(symmetry, torch.Generator().manual_seed(5))
    mixture = towards(mixed(symmetry, 0, 0.3, 0.5), symmetry, permutation, 0.6)
    for group, matrix in mixture.items():
        assert matrix.min() >= 0
        ones = torch.ones(symmetry.units(group), dtype=torch.float64)
        torch.testing.assert_close(matrix.sum(0), ones)
        torch.testing.assert_close(matrix.sum(1), ones)
    rounded = assign_all(symmetry, mixture)
    assert rounded.keys() == permutation.keys()
    assert all(torch.equal(rounded[group], permutation[group]) for group in permutation)


@pytest.mark.parametrize("name", [*PLAIN, *BLOCKS])
def test_the_gradient_promises_what_a_small_step_gains(symmetries: dict[str, Symmetry], draw: Draw, name: str):
    symmetry = symmetries[name]
    soft, others = soft_pair(*pair_of(symmetry, draw), symmetry)
    mixture = mixed(symmetry, 3, 0.3, 0.4)
    value, gradient = soft.gradient(mixture, others)
    best = rise(gradient, mixture, symmetry, assign_all(symmetry, gradient))
    for seed in range(3):
        vertex = dict(Permutation.random(symmetry, torch.Generator().manual_seed(seed)))
        steps = [soft.product(towards(mixture, symmetry, vertex, size), others) for size in (1e-4, 2e-4)]
        slope = (4 * steps[0] - steps[1] - 3 * value) / 2e-4  # second order
        promise = rise(gradient, mixture, symmetry, vertex)
        assert promise == pytest.approx(slope, rel=1e-4, abs=1e-4)
        # No permutation is promised more than the best one; what shared groups do is decided after the others.
        assert symmetry.shared or best >= promise
    assert symmetry.shared or best >= 0


def test_a_mixture_of_elements_of_a_wreath_product_is_their_mean(symmetries: dict[str, Symmetry], draw: Draw):
    """Attention is linear in each family: the objective of a mixture is the mixture of the objectives."""
    symmetry = symmetries["packed attention"]
    fixed, moving = pair_of(symmetry, draw)
    soft, others = soft_pair(fixed, moving, symmetry)
    generator = torch.Generator().manual_seed(1)
    first, second = (Permutation.random(symmetry, generator) for _ in range(2))
    root = next(name for name in symmetry.families if symmetry.inside(name))
    other = Permutation(symmetry, {**first, **{name: second[name] for name in symmetry.families[root]}})
    mixture = towards(matrix_of(symmetry, first), symmetry, other, 0.4)
    expected = 0.6 * objective(fixed, moving, first) + 0.4 * objective(fixed, moving, other)
    assert soft.product(mixture, others) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", [*PLAIN, "packed attention", "grouped convolution"])
def test_the_step_is_the_best_on_the_segment(symmetries: dict[str, Symmetry], draw: Draw, name: str):
    symmetry = symmetries[name]
    fixed, moving = pair_of(symmetry, draw)
    soft, others = soft_pair(fixed, moving, symmetry)
    assert (soft.degree is None) == (name == "grouped convolution")
    bound = WeightSimilarity(fixed, moving, symmetry, CPU).bound
    for seed in range(4):
        mixture = mixed(symmetry, seed, 0.5, 0.4)
        value, gradient = soft.gradient(mixture, others)
        vertex = assign_all(symmetry, gradient)
        slope = rise(gradient, mixture, symmetry, vertex)
        end = objective(fixed, moving, Permutation(symmetry, vertex))
        size = soft.step_size(mixture, vertex, others, value, slope, end)

        def at(share: float, mixture: Mixture = mixture, vertex: dict[str, Tensor] = vertex) -> float:
            return soft.product(towards(mixture, symmetry, vertex, share), others)

        assert 0 <= size <= 1
        assert at(size) >= max(map(at, np.linspace(0, 1, 101))) - 1e-9 * bound


@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4, None])
def test_the_highest_point_of_a_polynomial_is_found(degree: int | None):
    draws = np.random.default_rng(0)
    for _ in range(20):
        polynomial = np.polynomial.Polynomial(draws.normal(size=4 if degree is None else degree + 1))
        slope, end = float(polynomial.deriv()(0)), float(polynomial(1))
        found = highest(lambda t, f=polynomial: float(f(t)), float(polynomial(0)), slope, end, degree)
        grid = polynomial(np.linspace(0, 1, 1001))
        if degree is None:  # a bounded search may end at a local maximum
            assert polynomial(found) >= max(polynomial(0), end) - 1e-9
        else:
            assert polynomial(found) >= grid.max() - 1e-9


def test_steps_are_those_of_an_independent_implementation(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose):
    """C2M3's recipe for a perceptron in NumPy, with SciPy's assignment and bounded search."""
    fixed, moving = pair_of(symmetries["mlp"], draw)
    a, b = ({name: tensor.numpy() for name, tensor in network.items()} for network in (fixed, moving))

    def value(p: np.ndarray, q: np.ndarray) -> float:
        first = (a["1.w"] * (p @ b["1.w"])).sum() + a["1.b"] @ p @ b["1.b"]
        second = (a["2.w"] * (q @ b["2.w"] @ p.T)).sum() + a["2.b"] @ q @ b["2.b"]
        return float(first + second + (a["3.w"] * (b["3.w"] @ q.T)).sum())

    def end(slope: np.ndarray) -> np.ndarray:
        vertex = np.zeros_like(slope)
        vertex[linear_sum_assignment(slope, maximize=True)] = 1
        return vertex

    p, q = np.full((5, 5), 1 / 5), np.full((4, 4), 1 / 4)
    expected = []
    for _ in range(4):
        expected.append(value(p, q))
        into_p = end(a["1.w"] @ b["1.w"].T + np.outer(a["1.b"], b["1.b"]) + a["2.w"].T @ q @ b["2.w"]) - p
        into_q = end(a["2.w"] @ p @ b["2.w"].T + np.outer(a["2.b"], b["2.b"]) + a["3.w"].T @ b["3.w"]) - q
        size = fminbound(lambda t, *of: -value(of[0] + t * of[1], of[2] + t * of[3]), 0, 1, (p, into_p, q, into_q))
        p, q = p + size * into_p, q + size * into_q
    found = FrankWolfe(finish="none")(fixed, moving, pose(symmetries["mlp"])).trace
    values = [record["objective"] for record in found[:-1]]
    for step in range(4):  # ends earlier where it has arrived
        assert values[min(step, len(values) - 1)] == pytest.approx(expected[step], rel=1e-4)


@pytest.mark.parametrize("finish", ["none", "weight_matching"])
@pytest.mark.parametrize("start", ["centre", "identity", "random"])
@pytest.mark.parametrize("name", [*PLAIN, *BLOCKS])
def test_the_mixture_only_rises_and_what_is_reported_is_true(
    symmetries: dict[str, Symmetry], draw: Draw, name: str, start: str, finish: str
):
    symmetry = symmetries[name]
    fixed, moving = pair_of(symmetry, draw)
    seen: list[Mapping[str, float]] = []
    problem = Problem(None, symmetry, 0, CPU, None)
    found = FrankWolfe(start=start, finish=finish, max_steps=15)(fixed, moving, problem, seen.append)
    assert seen == found.trace
    steps = [record for record in found.trace if "step" in record]
    sweeps = found.trace[len(steps) :]
    for records in (steps, sweeps):
        values = [record["objective"] for record in records]
        assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(values))
    assert all(0 <= record["step_size"] <= 1 for record in steps)
    assert [record["sweep"] for record in sweeps] == list(range(len(sweeps)))
    assert (len(sweeps) == 1) == (finish == "none")
    assert found.objective == pytest.approx(sweeps[-1]["objective"], abs=1e-9)
    assert found.objective == pytest.approx(objective(fixed, moving, found.permutation), abs=1e-9)


@pytest.mark.parametrize("name", ["mlp", "conv", "self-coupled", "heads"])
def test_no_permutation_is_better_than_brute_force(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, name: str):
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
        for start, restarts in (("centre", 1), ("identity", 1), ("random", 20)):
            found = FrankWolfe(start=start, restarts=restarts)(fixed, moving, pose(symmetry, seed)).objective
            assert found <= best + 1e-9
        optimal += found > best - 1e-9
    assert optimal >= 2


def test_a_single_linear_group_is_solved_in_one_step(build: Callable[..., Symmetry], draw: Draw, pose: Pose):
    symmetry = build({"a": 12}, {"1.w": ("a", 4), "2.w": (3, "a")})
    fixed, moving = pair_of(symmetry, draw)
    similarity = fixed["1.w"] @ moving["1.w"].T + fixed["2.w"].T @ moving["2.w"]
    _, expected = linear_sum_assignment(similarity.numpy(), maximize=True)
    for start in ("centre", "identity", "random"):
        found = FrankWolfe(start=start, finish="none")(fixed, moving, pose(symmetry))
        assert found.permutation["a"].tolist() == expected.tolist()
        assert found.trace[0]["step_size"] == 1.0
        assert found.trace[1]["gap"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("finish", ["none", "weight_matching"])
@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("network", ["perceptron", "residual"])
def test_planted_permutation_is_recovered(
    request: pytest.FixtureRequest, draw: Draw, pose: Pose, plant: Plant, network: str, noise: float, finish: str
):
    symmetry = request.getfixturevalue(network)
    for seed in range(2):
        fixed = draw(symmetry, seed)
        moving, truth = plant(symmetry, fixed, seed, noise)
        assert FrankWolfe(finish=finish)(fixed, moving, pose(symmetry)).permutation == truth


@pytest.mark.parametrize("name", BLOCKS)
def test_planted_element_of_a_wreath_product_is_recovered(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, plant: Plant, name: str
):
    symmetry = symmetries[name]
    for seed in range(2):
        fixed = double(draw(symmetry, seed))
        moving, truth = plant(symmetry, fixed, seed, 0.01)
        assert FrankWolfe(finish="none")(fixed, double(moving), pose(symmetry)).permutation == truth


@pytest.mark.parametrize("network", ["perceptron", "residual"])
def test_from_the_centre_the_order_of_the_units_does_not_matter(
    request: pytest.FixtureRequest, draw: Draw, pose: Pose, network: str
):
    symmetry = request.getfixturevalue(network)
    fixed, moving = pair_of(symmetry, draw)
    shuffle = Permutation.random(symmetry, torch.Generator().manual_seed(3))
    method = FrankWolfe()
    found = method(fixed, moving, pose(symmetry))
    again = method(fixed, shuffle.apply(moving), pose(symmetry))
    assert again.permutation == found.permutation.compose(shuffle.inverse())
    assert found.objective > objective(fixed, moving, Permutation.identity(symmetry))


def test_concatenated_and_shuffled_axes_are_cut_along_their_segments(build: Callable[..., Symmetry], draw: Draw):
    """A flattened feature map and an axis that holds one group twice, at a mixture."""
    flat = ((Factor("b", 4), Factor(None, 6)), (Factor(None, 2),), (Factor("b", 4),))
    beside = ((Factor(None, 2),), (Factor("b", 4),))
    symmetry = build({"a": 3, "b": 4}, {"w": ("a", flat), "v": ("b", "a"), "u": (3, beside)})
    fixed, moving = pair_of(symmetry, draw)
    mixture = mixed(symmetry, 1, 0.5)
    a, b = mixture["a"], mixture["b"]
    whole = torch.block_diag(torch.kron(b, torch.eye(6).double()), torch.eye(2).double(), b)
    expected = (fixed["w"] * (a @ moving["w"] @ whole.T)).sum() + (fixed["v"] * (b @ moving["v"] @ a.T)).sum()
    # Of a layer that reads its group beside fixed inputs, the part of these is moved by nothing, and counts too.
    expected += (fixed["u"] * torch.cat([moving["u"][:, :2], moving["u"][:, 2:] @ b.T], 1)).sum()
    soft, others = soft_pair(fixed, moving, symmetry)
    assert soft.product(mixture, others) == pytest.approx(expected.item(), rel=1e-10)


def test_an_interrupted_search_returns_its_rounded_mixture(residual: Symmetry, draw: Draw, pose: Pose):
    fixed, moving = pair_of(residual, draw)
    whole = FrankWolfe()(fixed, moving, pose(residual))
    assert whole.complete
    seen: list[Mapping[str, float]] = []

    def stop(record: Mapping[str, float]) -> None:
        seen.append(record)
        if len(seen) == 3:
            raise KeyboardInterrupt

    found = FrankWolfe()(fixed, moving, pose(residual), stop)
    assert not found.complete
    assert len(found.trace) == 3
    assert found.objective == pytest.approx(objective(fixed, moving, found.permutation), rel=1e-9)
    assert found.objective > objective(fixed, moving, Permutation.identity(residual))
    seen.clear()
    begun = FrankWolfe(start="random", restarts=4)(fixed, moving, pose(residual))
    first = [record["objective"] for record in begun.trace if record["restart"] == 0][-1]

    def stop_late(record: Mapping[str, float]) -> None:
        if record["restart"] == 1:
            raise KeyboardInterrupt

    kept = FrankWolfe(start="random", restarts=4)(fixed, moving, pose(residual), stop_late)
    assert not kept.complete
    assert kept.objective >= first - 1e-9


def test_same_seed_same_answer(residual: Symmetry, draw: Draw, pose: Pose):
    fixed, moving = draw(residual, 1), draw(residual, 2)

    def run(seed: int, **settings: object) -> tuple[Permutation, list[float]]:
        before = torch.random.get_rng_state()
        found = FrankWolfe(**settings)(fixed, moving, pose(residual, seed))
        assert torch.equal(before, torch.random.get_rng_state())
        return found.permutation, [record["objective"] for record in found.trace]

    assert run(0, start="random", restarts=2) == run(0, start="random", restarts=2)
    assert run(0, start="random")[1] != run(1, start="random")[1]
    assert run(0)[1] == run(1)[1]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("start", "middle"),
        ("restarts", 0),
        ("max_steps", 0),
        ("patience", 0),
        ("tolerance", -1.0),
        ("finish", "round"),
        ("max_sweeps", 0),
    ],
)
def test_unusable_settings_are_named(setting: str, value: object):
    with pytest.raises(UserError, match=rf"alignment\.{setting}"):
        config.build({"_target_": "lmc.alignment.frank_wolfe.FrankWolfe", setting: value}, "alignment")


def test_searches_that_would_all_be_equal_are_refused():
    with pytest.raises(UserError, match=r"alignment\.restarts=2.*searches are the same"):
        FrankWolfe(restarts=2)


def test_a_network_without_groups_has_nothing_to_match(pose: Pose):
    symmetry = Symmetry({}, {"w": (3, 2)}, frozenset({"w"}))
    found = FrankWolfe()({"w": torch.ones(3, 2)}, {"w": torch.zeros(3, 2)}, pose(symmetry))
    assert (len(found.permutation), found.objective) == (0, 0.0)
