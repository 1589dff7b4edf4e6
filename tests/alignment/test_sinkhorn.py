from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from lmc import config
from lmc.alignment.problem import Matching, Problem
from lmc.alignment.sinkhorn import Sinkhorn, balance, soft_network
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import LinearMap
from tests.alignment.conftest import all_permutations
from tests.alignment.test_straight_through import Task, plant

CPU = torch.device("cpu")
PLAIN = ["mlp", "conv", "channels last", "residual", "concatenation", "self-coupled", "three groups", "heads"]
OBJECTIVES = ["l2", "midpoint", "random_point"]
EXACT = {"iterations": 100_000, "tolerance": 1e-13}
QUICK = {"steps": 40, "batch_size": 100, "evaluate_every": 5}


def unrolled(scores: Tensor, temperature: float, iterations: int) -> Tensor:
    """Sinkhorn's iterations as in the textbook, on the matrix itself."""
    plan = (scores / temperature).exp()
    for _ in range(iterations):
        plan = plan / plan.sum(1, keepdim=True)
        plan = plan / plan.sum(0, keepdim=True)
    return plan


def drawn(n: int, seed: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def balanced(scores: Tensor, temperature: float = 1.0) -> Tensor:
    return balance(scores, temperature, scores.new_zeros(len(scores)), **EXACT)[0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("n", [1, 2, 7])
def test_the_gradient_is_that_of_many_unrolled_iterations(n: int, temperature: float):
    weights = drawn(n, 5)
    scores = drawn(n, n).requires_grad_()
    plan = balanced(scores, temperature)
    (found,) = torch.autograd.grad((plan * weights).sin().sum(), scores)
    reference = unrolled(scores, temperature, 600)
    (expected,) = torch.autograd.grad((reference * weights).sin().sum(), scores)
    torch.testing.assert_close(plan, reference, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)
    # S_tau does not see what is added to a whole row or column.
    torch.testing.assert_close(found.sum(0), torch.zeros(n).double(), rtol=0, atol=1e-11)
    torch.testing.assert_close(found.sum(1), torch.zeros(n).double(), rtol=0, atol=1e-11)


@pytest.mark.parametrize(("n", "scale"), [(1, 1.0), (3, 1.0), (5, 2.0)])
def test_the_gradient_is_that_of_finite_differences(n: int, scale: float):
    scores = drawn(n, 3, scale).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: balanced(x, 0.7), (scores,), atol=1e-7)


def test_the_gradient_solves_the_whole_system():
    """Against the dense system of size 2n - 1 of the paper, solved by NumPy."""
    n, temperature = 6, 0.8
    scores, slope = drawn(n, 1).requires_grad_(), drawn(n, 2)
    plan = balanced(scores, temperature)
    (found,) = torch.autograd.grad(plan, scores, slope)
    p, g = plan.detach().numpy(), slope.numpy()
    system = np.block([[np.diag(p.sum(1)), p], [p.T, np.diag(p.sum(0))]])[:-1, :-1]
    right = np.concatenate([(p * g).sum(1), (p * g).sum(0)])[:-1]
    solved = np.append(np.linalg.solve(system, right), 0.0)
    expected = p * (g - solved[:n, None] - solved[None, n:]) / temperature
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plan_is_doubly_stochastic_and_nearly_a_permutation_when_cold(dtype: torch.dtype):
    scores = drawn(30, 4).to(dtype).requires_grad_()
    tolerance = 1e-4
    zeros = torch.zeros(30, dtype=dtype)
    plan, columns, violation = balance(scores, 0.2, zeros, 3000, tolerance)
    assert (plan.sum(0) - 1).abs().max() < 1e-5
    assert violation == pytest.approx((plan.sum(1) - 1).abs().max().item(), abs=2e-6)
    assert violation <= tolerance
    again = balance(scores, 0.2, columns, 1, tolerance)
    torch.testing.assert_close(again[0], plan, rtol=1e-2, atol=1e-4)
    assert balance(scores, 0.2, zeros, 1, tolerance)[2] > tolerance
    rows, order = linear_sum_assignment(scores.detach().numpy(), maximize=True)
    few = scores[:8, :8].detach()
    cold, *_ = balance(few, 0.01, zeros[:8], 3000, tolerance)
    assert cold.argmax(1).tolist() == linear_sum_assignment(few.numpy(), maximize=True)[1].tolist()
    # Where nothing is left to decide, the gradient vanishes instead of blowing up.
    sure = torch.zeros(30, 30, dtype=dtype)
    sure[rows, order] = 1e4
    sure.requires_grad_()
    plan, *_ = balance(sure, 1.0, zeros, 100, tolerance)
    (gradient,) = torch.autograd.grad(plan, sure, drawn(30, 5).to(dtype))
    assert torch.equal(plan.detach().argmax(1), torch.tensor(order))
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("name", PLAIN)
def test_a_soft_network_is_that_of_the_linear_map(symmetries: dict[str, Symmetry], draw, name: str):
    symmetry = symmetries[name]
    network = {tensor: value.double() for tensor, value in draw(symmetry, 1).items()}
    maps = {group: balanced(drawn(symmetry.groups[group].size, 7)) for group in symmetry.groups}
    expected = LinearMap.symmetric(symmetry, maps).apply(network)
    found = soft_network(network, maps, symmetry)
    for tensor in network:
        torch.testing.assert_close(found[tensor], expected[tensor])
    permutation = Permutation.random(symmetry, torch.Generator().manual_seed(2))
    hard = {group: torch.eye(len(order), dtype=torch.float64)[order] for group, order in permutation.items()}
    moved = permutation.apply(network)
    assert all(torch.equal(tensor, moved[key]) for key, tensor in soft_network(network, hard, symmetry).items())


def distance(fixed: State, moving: State, permutation: Permutation) -> float:
    aligned = permutation.apply(moving)
    acted = permutation.symmetry.axes_of.keys() & permutation.symmetry.parameters
    return sum((fixed[name].double() - aligned[name].double()).square().sum().item() for name in acted)


@pytest.fixture(scope="module")
def digits() -> Task:
    return Task.digits(16, 12)


@pytest.fixture(scope="module")
def pair(digits: Task) -> tuple[State, State]:
    return digits.trained(1), digits.trained(2)


def measured(task: Task, objective: str, fixed: State, moving: State, permutation: Permutation) -> float:
    """What the method minimises, by hand."""
    if objective == "l2":
        return distance(fixed, moving, permutation)
    aligned = permutation.apply(moving)
    points = (0.5,) if objective == "midpoint" else (0.1, 0.3, 0.5, 0.7, 0.9)
    return sum(task.loss(fixed, aligned, weights=(1 - t, t)) for t in points) / len(points)


@pytest.mark.parametrize("start", ["centre", "identity", "weight_matching"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_what_is_found_is_better_than_the_start(digits: Task, pair: tuple[State, State], objective: str, start: str):
    seen: list[Mapping[str, float]] = []
    method = Sinkhorn(objective=objective, start=start, **{**QUICK, "steps": 60})
    found = method(*pair, digits.problem(), seen.append)
    assert seen == found.trace
    assert found.objective == pytest.approx(-measured(digits, objective, *pair, found.permutation), rel=1e-5)
    begin = Permutation.identity(digits.symmetry)
    assert found.objective > 0.95 * -measured(digits, objective, *pair, begin)
    if start == "weight_matching":
        begin = WeightMatching()(*pair, digits.problem()).permutation
        assert found.objective >= -measured(digits, objective, *pair, begin) - 1e-5
    assert [record["step"] for record in found.trace] == list(range(61))
    evaluated = [record for record in found.trace if "objective" in record]
    assert [record["step"] for record in evaluated] == list(range(0, 61, 5))
    bests = [record["best"] for record in evaluated]
    assert bests == sorted(bests)
    assert found.objective == bests[-1]
    assert max(record["objective"] for record in evaluated) <= bests[-1]
    assert all(record["violation"] <= method.tolerance for record in found.trace)
    if objective != "random_point":
        assert found.trace[-2]["cost"] < 0.8 * found.trace[0]["cost"]


@pytest.mark.parametrize("objective", ["midpoint", "random_point"])
def test_the_loss_is_better_than_weight_matching_makes_it(digits: Task, pair: tuple[State, State], objective: str):
    found = Sinkhorn(objective=objective, **{**QUICK, "steps": 120})(*pair, digits.problem())
    matched = WeightMatching()(*pair, digits.problem()).permutation
    assert found.objective > -measured(digits, objective, *pair, matched)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_no_permutation_is_better_than_the_best_of_all(objective: str):
    task = Task.digits(4, 3)
    everything = all_permutations(task.symmetry)
    assert len(everything) == 24 * 6
    optimal = 0
    for seed in range(2):
        fixed, moving = task.trained(2 * seed), task.trained(2 * seed + 1)
        every = sorted(measured(task, objective, fixed, moving, permutation) for permutation in everything)
        method = Sinkhorn(objective=objective, **{**QUICK, "steps": 60, "evaluate_every": 3})
        found = method(fixed, moving, task.problem(seed))
        assert -found.objective >= every[0] * (1 - 1e-5)
        assert -found.objective <= every[len(every) // 10]
        optimal += -found.objective <= every[0] * (1 + 1e-5)
    assert optimal >= 1


@pytest.mark.parametrize("name", [name for name in PLAIN if name != "self-coupled"])
def test_a_permutation_planted_in_weights_of_every_shape_is_recovered(
    symmetries: dict[str, Symmetry], draw, pose, name: str
):
    symmetry = symmetries[name]
    fixed = draw(symmetry, 1)
    hidden = Permutation.random(symmetry, torch.Generator().manual_seed(1))
    moving = {key: t + 0.2 * draw(symmetry, 3)[key] for key, t in hidden.apply(fixed).items()}
    found = Sinkhorn(objective="l2", steps=80)(fixed, moving, pose(symmetry))
    assert found.permutation == hidden.inverse()
    assert -found.objective == pytest.approx(distance(fixed, moving, hidden.inverse()), rel=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_planted_permutation_is_recovered(digits: Task, pair: tuple[State, State], objective: str, noise: float):
    moving, truth = plant(digits, pair[0], 1, noise)
    method = Sinkhorn(objective=objective, **{**QUICK, "steps": 120, "evaluate_every": 20})
    found = method(pair[0], moving, digits.problem())
    if objective == "l2":
        assert found.permutation == truth
        return
    # A loss does not see units that answer nothing; all others must be where they were.
    assert found.objective == pytest.approx(-measured(digits, objective, pair[0], moving, truth), rel=1e-5)
    values, matched = digits.images.flatten(1), 0
    for layer in ("1", "3"):
        values = torch.relu(values @ pair[0][f"{layer}.weight"].T + pair[0][f"{layer}.bias"])
        group = next(axis for axis in digits.symmetry.axes if (axis.tensor, axis.dim) == (f"{layer}.weight", 0)).groups
        alive = values.amax(0) > 0
        for name in group:
            assert torch.equal(found.permutation[name][alive], truth[name][alive])
            matched += int(alive.sum())
    assert matched > 15


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_from_the_centre_the_order_of_the_units_does_not_matter(
    digits: Task, pair: tuple[State, State], objective: str
):
    fixed, moving = pair
    shuffle = Permutation.random(digits.symmetry, torch.Generator().manual_seed(3))
    method = Sinkhorn(objective=objective, **QUICK)
    found = method(fixed, moving, digits.problem())
    again = method(fixed, shuffle.apply(moving), digits.problem())
    assert again.permutation == found.permutation.compose(shuffle.inverse())
    assert again.objective == pytest.approx(found.objective, rel=1e-5)


def test_only_the_ratio_of_learning_rate_and_temperature_matters(digits: Task, pair: tuple[State, State]):
    one, other = (
        Sinkhorn(objective="l2", temperature=tau, learning_rate=0.2 * tau, **QUICK)(*pair, digits.problem())
        for tau in (1.0, 0.25)
    )
    assert [r["cost"] for r in one.trace[:-1]] == pytest.approx([r["cost"] for r in other.trace[:-1]], rel=1e-3)


def test_the_distance_needs_no_data_and_reads_none(digits: Task, pair: tuple[State, State]):
    def forbidden(size: int) -> None:
        raise AssertionError("read")

    for problem in (
        Problem(None, digits.symmetry, 0, CPU, None),
        Problem(digits.model, digits.symmetry, 0, CPU, forbidden, forbidden),
    ):
        found = Sinkhorn(objective="l2", **QUICK)(*pair, problem)
        assert found.permutation == Sinkhorn(objective="l2", **QUICK)(*pair, digits.problem()).permutation


def test_batch_norm_works_with_the_statistics_of_the_batch():
    task = Task.digits(16, norm=True)
    fixed, moving = task.trained(1), task.trained(2)
    before = [{name: tensor.clone() for name, tensor in network.items()} for network in (fixed, moving)]
    own = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    method = Sinkhorn(**{**QUICK, "batch_size": 300})
    found = method(fixed, moving, task.problem())
    assert found.objective == pytest.approx(-task.loss(fixed, found.permutation.apply(moving)), rel=1e-5)
    stale = {n: t + 5 if n.endswith(("running_mean", "running_var")) else t for n, t in moving.items()}
    assert method(fixed, stale, task.problem()).objective == found.objective
    for network, kept in zip((fixed, moving, task.model.state_dict()), (*before, own), strict=True):
        assert all(torch.equal(network[name], tensor) for name, tensor in kept.items())
    assert not any(module.training for module in task.model.modules())


@pytest.mark.parametrize("name", ["packed attention", "grouped convolution"])
def test_blocks_are_refused_in_one_line(name: str):
    task = Task.of_case(name)
    network = task.trained(1, steps=1)
    with pytest.raises(UserError, match=r"units of this network are inside blocks .* use alignment=") as refused:
        Sinkhorn().check(task.symmetry)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="inside blocks"):
        Sinkhorn()(network, network, task.problem())
    Sinkhorn().check(Task.digits(3).symmetry)


def test_an_interrupted_search_returns_the_best_so_far(digits: Task, pair: tuple[State, State]):
    whole = Sinkhorn(**QUICK)(*pair, digits.problem())
    assert whole.complete
    for stop in (0, 1, 23):

        def interrupt(record: Mapping[str, float], stop: int = stop) -> None:
            if record["step"] == stop:
                raise KeyboardInterrupt

        found = Sinkhorn(**QUICK)(*pair, digits.problem(), interrupt)
        assert not found.complete
        assert len(found.trace) == stop + 1
        assert found.objective == max(record["best"] for record in whole.trace[: stop + 1] if "best" in record)
        assert found.objective == pytest.approx(-measured(digits, "midpoint", *pair, found.permutation), rel=1e-5)


def test_same_seed_same_answer(digits: Task, pair: tuple[State, State]):
    def run(seed: int) -> tuple[Matching, list[float]]:
        before = torch.random.get_rng_state()
        found = Sinkhorn(objective="random_point", **QUICK)(*pair, digits.problem(seed))
        assert torch.equal(before, torch.random.get_rng_state())
        return found, [record["cost"] for record in found.trace[:-1]]

    assert run(0)[1] == run(0)[1]
    assert run(0)[0].permutation == run(0)[0].permutation
    assert run(0)[1] != run(1)[1]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("objective", "l1"),
        ("start", "random"),
        ("temperature", 0.0),
        ("learning_rate", -1.0),
        ("steps", 0),
        ("iterations", 0),
        ("tolerance", 0.0),
        ("evaluate_every", 0),
        ("batch_size", 0),
        ("images", 0),
    ],
)
def test_unusable_settings_are_named(setting: str, value: object):
    with pytest.raises(UserError, match=rf"alignment\.{setting}"):
        config.build({"_target_": "lmc.alignment.sinkhorn.Sinkhorn", setting: value}, "alignment")


def test_the_file_lists_the_defaults(conf: Path):
    node = yaml.safe_load((conf / "alignment" / "sinkhorn.yaml").read_text())
    assert config.build(node, "alignment") == Sinkhorn()
    assert set(config.settings(node, "alignment")) == set(node)


def test_what_is_missing_is_named(digits: Task, pair: tuple[State, State]):
    with pytest.raises(UserError, match="no model was given"):
        Sinkhorn()(*pair, replace(digits.problem(), model=None))
    with pytest.raises(UserError, match="no labels were given"):
        Sinkhorn()(*pair, replace(digits.problem(), labelled=None))


def test_a_network_without_groups_has_nothing_to_match(pose):
    symmetry = Symmetry({}, {"w": (3, 2)}, frozenset({"w"}))
    found = Sinkhorn(objective="l2", steps=2)({"w": torch.ones(3, 2)}, {"w": torch.zeros(3, 2)}, pose(symmetry))
    assert (len(found.permutation), found.objective) == (0, 0.0)
