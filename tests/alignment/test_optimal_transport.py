import itertools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from torch import Tensor, nn

from lmc import seeding
from lmc import state as states
from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.optimal_transport import OptimalTransport
from lmc.alignment.problem import Problem
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import LinearMap

Plant = Callable[[Symmetry, State, int, float], tuple[State, Permutation]]
SIZES = (6, 5, 7, 4, 3)


class Residual(nn.Module):
    """Convolutions around a residual stream, read from the flattened feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.enter, self.leave, self.out = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.leave(torch.relu(self.enter(x))))
        out: Tensor = self.out(x.flatten(1))
        return out


def perceptron() -> nn.Module:
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(SIZES):
        layers += [nn.Linear(into, out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "perceptron": (perceptron, (SIZES[0],)),
    "residual": (Residual, (2, 2, 2)),
}


@cache
def pose(name: str) -> tuple[Problem, State, State]:
    """A problem with 60 images, and two networks drawn at random."""
    make, shape = MODELS[name]
    networks = []
    for seed in (0, 1):
        with seeding.isolated(seed, "networks"):
            model = make().eval()
        networks.append(states.of_model(model))
    images = torch.randn(60, *shape, generator=torch.Generator().manual_seed(5))

    def batches(size: int) -> Iterable[Tensor]:
        return images.split(size)

    symmetry = discover(model, torch.zeros(2, *shape))
    return Problem(model, symmetry, 0, torch.device("cpu"), batches), networks[0], networks[1]


def layers(state: State) -> list[np.ndarray]:
    """Weight and bias of each layer of the perceptron, side by side."""
    return [
        torch.cat([state[f"{2 * k}.weight"], state[f"{2 * k}.bias"][:, None]], 1).double().numpy()
        for k in range(len(SIZES) - 1)
    ]


def sinkhorn(costs: np.ndarray, regularisation: float) -> np.ndarray:
    """n T by alternating projections on logarithms, long after they have converged."""
    logs = -costs / regularisation
    for _ in range(3000):
        logs = logs - logsumexp(logs, 1, keepdims=True)
        logs = logs - logsumexp(logs, 0, keepdims=True)
    plan: np.ndarray = np.exp(logs)
    return plan


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
@pytest.mark.parametrize("plan", ["exact", "entropic"])
def test_layers_are_transported_one_after_the_other(plan: str, distance: str) -> None:
    """Against loops over the layers with SciPy's assignment or a Sinkhorn of our own."""
    problem, fixed, moving = pose("perceptron")
    method = OptimalTransport(plan=plan, distance=distance, regularisation=0.1, tolerance=1e-9)
    matching = method(fixed, moving, problem)
    before = np.eye(SIZES[0])
    costs_seen = []
    for name, ours, theirs in zip(problem.symmetry.groups, layers(fixed), layers(moving), strict=False):
        aligned = np.concatenate([theirs[:, :-1] @ before.T, theirs[:, -1:]], 1)
        costs = cdist(ours, aligned, "euclidean" if distance == "euclidean" else "sqeuclidean")
        if plan == "exact":
            expected = np.eye(len(costs))[linear_sum_assignment(costs)[1]]
            assert matching.permutation[name].tolist() == expected.argmax(1).tolist()
        else:
            expected = sinkhorn(costs, 0.1 * costs.mean())
            assert isinstance(matching.transform, LinearMap)
            make, read = matching.transform[name]
            assert np.allclose(make.numpy(), expected, atol=1e-6)
            assert torch.equal(read, make.T)
        before = expected
        costs_seen.append((expected * costs).sum() / len(costs))
    assert [record["cost"] for record in matching.trace] == pytest.approx(costs_seen, rel=1e-5)
    sizes = np.array(SIZES[1:-1])
    assert matching.objective == pytest.approx((sizes * costs_seen).sum() / sizes.sum(), rel=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["pre", "post"])
def test_squared_distances_of_activations_are_assigned_by_their_products(name: str, kind: str) -> None:
    """The squares do not depend on the permutation: the cheapest plan is the assignment with the largest products."""
    problem, fixed, moving = pose(name)
    found = OptimalTransport(cost="activations", distance="squared", kind=kind)(fixed, moving, problem)
    other = ActivationMatching(similarity="product", kind=kind)(fixed, moving, problem)
    for group in problem.symmetry.groups:
        assert torch.equal(found.permutation[group], other.permutation[group])
    again = OptimalTransport(cost="activations", distance="squared", kind=kind, batch_size=7)(fixed, moving, problem)
    assert again.permutation == found.permutation
    assert again.objective == pytest.approx(found.objective, rel=1e-5)


def test_distances_of_activations_are_those_of_the_units_outputs() -> None:
    problem, fixed, moving = pose("perceptron")
    matching = OptimalTransport(cost="activations", kind="post")(fixed, moving, problem)
    assert problem.batches is not None
    x, y = (next(iter(problem.batches(60))).double().numpy(),) * 2
    for record, name, ours, theirs in zip(
        matching.trace, problem.symmetry.groups, layers(fixed), layers(moving), strict=False
    ):
        x, y = np.tanh(x @ ours[:, :-1].T + ours[:, -1]), np.tanh(y @ theirs[:, :-1].T + theirs[:, -1])
        costs = cdist(x.T, y.T) / np.sqrt(len(x))
        rows, columns = linear_sum_assignment(costs)
        assert matching.permutation[name].tolist() == columns.tolist()
        assert record["cost"] == pytest.approx(costs[rows, columns].mean(), rel=1e-4)
        assert record["identity"] == pytest.approx(np.diagonal(costs).mean(), rel=1e-4)


@pytest.mark.parametrize("cost", ["weights", "activations"])
def test_no_permutation_of_a_group_is_cheaper(cost: str) -> None:
    """Brute force over the first group, whose costs depend on no other."""
    problem, fixed, moving = pose("perceptron")
    found = OptimalTransport(cost=cost, kind="pre")(fixed, moving, problem)
    ours, theirs = layers(fixed)[0], layers(moving)[0]
    if cost == "activations":
        assert problem.batches is not None
        images = next(iter(problem.batches(60))).double().numpy()
        ours, theirs = (side[:, :-1] @ images.T + side[:, -1:] for side in (ours, theirs))
    scale = 1 if cost == "weights" else np.sqrt(ours.shape[1])
    costs = cdist(ours, theirs) / scale
    rows = np.arange(len(costs))
    best = min(costs[rows, list(order)].mean() for order in itertools.permutations(rows))
    assert found.trace[0]["cost"] == pytest.approx(best, rel=1e-5)
    assert found.trace[0]["cost"] < found.trace[0]["identity"]


@pytest.mark.parametrize("cost", ["weights", "activations"])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_planted_permutation_is_recovered(name: str, cost: str, seed: int, plant: Plant) -> None:
    problem, fixed, _ = pose(name)
    counters = {n: t for n, t in fixed.items() if not t.is_floating_point()}
    moving, truth = plant(problem.symmetry, {n: t for n, t in fixed.items() if n not in counters}, seed, 0.02)
    moving |= counters
    assert OptimalTransport(cost=cost)(fixed, moving, problem).permutation == truth
    soft = OptimalTransport(cost=cost, plan="entropic")(fixed, moving, problem).transform
    for group, (make, _) in soft.items():
        assert make.argmax(1).tolist() == truth[group].tolist()


@pytest.mark.parametrize("cost", ["weights", "activations"])
@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_the_units_does_not_matter(name: str, cost: str) -> None:
    problem, fixed, moving = pose(name)
    shuffle = Permutation.random(problem.symmetry, torch.Generator().manual_seed(3))
    exact = OptimalTransport(cost=cost)
    found, again = exact(fixed, moving, problem), exact(fixed, shuffle.apply(moving), problem)
    assert again.permutation == found.permutation.compose(shuffle.inverse())
    assert again.objective == pytest.approx(found.objective, rel=1e-5)
    soft = OptimalTransport(cost=cost, plan="entropic", regularisation=0.1, tolerance=1e-8)
    first, second = soft(fixed, moving, problem).transform, soft(fixed, shuffle.apply(moving), problem).transform
    for group, (make, _) in first.items():
        assert torch.allclose(second[group][0], make[:, shuffle[group]], atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_entropic_plans_are_doubly_stochastic_and_dearer_than_exact_ones(name: str) -> None:
    problem, fixed, moving = pose(name)
    exact = OptimalTransport()(fixed, moving, problem)
    before = exact.trace[0]["cost"]
    for regularisation in (0.05, 0.2, 1.0):
        method = OptimalTransport(plan="entropic", regularisation=regularisation, tolerance=1e-7)
        found = method(fixed, moving, problem)
        assert isinstance(found.transform, LinearMap)
        for make, _ in found.transform.values():
            assert (make >= 0).all()
            for side in (0, 1):
                assert torch.allclose(make.sum(side), torch.ones(len(make), dtype=make.dtype), atol=1e-5)
        assert found.trace[0]["cost"] > before
        before = found.trace[0]["cost"]


@pytest.mark.parametrize("cost", ["weights", "activations"])
@pytest.mark.parametrize("plan", ["exact", "entropic"])
def test_units_are_transported_less_far_than_where_they_stay(plan: str, cost: str) -> None:
    """Against the mean distance between the units of the unaligned networks, over all layers."""
    problem, fixed, moving = pose("perceptron")
    found = OptimalTransport(plan=plan, cost=cost)(fixed, moving, problem)
    assert problem.batches is not None
    x = y = next(iter(problem.batches(60))).double().numpy()
    still = []
    for ours, theirs in zip(layers(fixed)[:-1], layers(moving)[:-1], strict=True):
        x, y = x @ ours[:, :-1].T + ours[:, -1], y @ theirs[:, :-1].T + theirs[:, -1]
        rows = (ours, theirs) if cost == "weights" else (x.T / np.sqrt(len(x)), y.T / np.sqrt(len(y)))
        still += np.linalg.norm(rows[0] - rows[1], axis=1).tolist()
        x, y = np.tanh(x), np.tanh(y)
    assert found.objective < 0.95 * np.mean(still)
    assert found.trace[0]["identity"] == pytest.approx(np.mean(still[: SIZES[1]]), rel=1e-5)


def test_what_has_no_turn_yet_counts_as_its_mean() -> None:
    """The stream is matched before what is inside the block: of `leave`, only the sums of its rows are known."""
    problem, fixed, moving = pose("residual")
    found = OptimalTransport(distance="squared")(fixed, moving, problem)
    names = list(problem.symmetry.groups)
    assert [problem.symmetry.groups[name].size for name in names] == [6, 5]

    def rows(state: State, order: Tensor | None) -> list[np.ndarray]:
        stream = [state["stem.weight"].flatten(1), *(state[f"stem.{b}"][:, None] for b in ["bias"])]
        stream += [state["norm.weight"][:, None], state["norm.bias"][:, None], state["leave.bias"][:, None]]
        stream.append(state["leave.weight"][:, :, 0, 0].mean(1, keepdim=True).expand(-1, 5))
        enter = state["enter.weight"][:, :, 0, 0]
        enter = enter if order is None else enter[:, order]
        return [t.double().numpy() for t in (torch.cat(stream, 1), torch.cat([enter, state["enter.bias"][:, None]], 1))]

    order = found.permutation[names[0]]
    for record, name, ours, theirs in zip(found.trace, names, rows(fixed, None), rows(moving, order), strict=True):
        costs = cdist(ours, theirs, "sqeuclidean")
        chosen, expected = linear_sum_assignment(costs)
        assert found.permutation[name].tolist() == expected.tolist()
        assert record["cost"] == pytest.approx(costs[chosen, expected].mean(), rel=1e-5)


def test_a_network_is_transported_to_itself_by_the_identity() -> None:
    for name in MODELS:
        problem, fixed, _ = pose(name)
        found = OptimalTransport()(fixed, fixed, problem)
        assert found.permutation == Permutation.identity(problem.symmetry)
        assert found.objective == pytest.approx(0, abs=1e-6)


def test_equal_units_are_spread_evenly() -> None:
    problem, fixed, _ = pose("perceptron")
    still = {name: torch.zeros_like(tensor) for name, tensor in fixed.items()}
    found = OptimalTransport(plan="entropic")(still, still, problem).transform
    for make, _ in found.values():
        assert torch.allclose(make, torch.full_like(make, 1 / len(make)))


def test_same_answer_again_and_nothing_handed_in_is_changed() -> None:
    problem, fixed, moving = pose("residual")
    before = [{n: t.clone() for n, t in side.items()} for side in (fixed, moving)]
    for plan in ("exact", "entropic"):
        one, two = (OptimalTransport(plan=plan)(fixed, moving, problem) for _ in range(2))
        assert one.trace == two.trace
        for group in problem.symmetry.groups:
            if isinstance(one.transform, Permutation):
                assert torch.equal(one.transform[group], two.permutation[group])
            else:
                assert torch.equal(one.transform[group][0], two.transform[group][0])  # type: ignore[index]
    for side, old in zip((fixed, moving), before, strict=True):
        assert all(torch.equal(side[name], old[name]) for name in old)


@pytest.mark.parametrize("cost", ["weights", "activations"])
@pytest.mark.parametrize("plan", ["exact", "entropic"])
def test_interrupted_it_returns_the_groups_that_are_done(plan: str, cost: str) -> None:
    problem, fixed, moving = pose("perceptron")
    method = OptimalTransport(plan=plan, cost=cost)
    whole = method(fixed, moving, problem)

    def stop(record: Mapping[str, float]) -> None:
        if record.get("group") == 1:
            raise KeyboardInterrupt

    part = method(fixed, moving, problem, stop)
    assert whole.complete
    assert not part.complete
    assert part.trace == whole.trace[:2]
    for number, name in enumerate(problem.symmetry.groups):
        size = problem.symmetry.groups[name].size
        if plan == "exact":
            expected = whole.permutation[name] if number < 2 else torch.arange(size)
            assert torch.equal(part.permutation[name], expected)
        else:
            expected = whole.transform[name][0] if number < 2 else torch.eye(size)  # type: ignore[index]
            assert torch.equal(part.transform[name][0].to(expected), expected)  # type: ignore[index]

    def at_once(record: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    first = method(fixed, moving, problem, at_once)
    assert not first.complete
    assert len(first.trace) <= 1


def test_iterations_that_do_not_suffice_are_told(caplog: pytest.LogCaptureFixture) -> None:
    problem, fixed, moving = pose("perceptron")
    with caplog.at_level(logging.WARNING):
        OptimalTransport(plan="entropic", regularisation=0.001, max_iterations=3)(fixed, moving, problem)
    assert "has not converged after 3 iterations" in caplog.text
    caplog.clear()
    OptimalTransport(plan="entropic")(fixed, moving, problem)
    assert not caplog.text


def test_only_entropic_plans_are_soft() -> None:
    assert OptimalTransport(plan="entropic").is_soft
    assert not OptimalTransport(cost="activations").is_soft


class Words(nn.Module):
    """The embedding that makes the units is also the output layer that reads them, and nothing else makes any."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.embed(x)))
        return out


@pytest.mark.parametrize("plan", ["exact", "entropic"])
def test_weights_that_make_units_and_read_them_are_compared(plan: str) -> None:
    with seeding.isolated(0, "words"):
        model = Words().eval()
    symmetry = discover(model, torch.zeros(2, 3, dtype=torch.int64))
    (group,) = symmetry.groups
    fixed, order = states.of_model(model), torch.tensor([2, 0, 3, 1])
    moving = Permutation(symmetry, {group: order}).apply(fixed)
    method = OptimalTransport(plan=plan, regularisation=0.01)
    method.check(symmetry)
    mapped = method(fixed, moving, Problem(model, symmetry, 0, torch.device("cpu"), None)).transform.apply(moving)
    assert all(torch.allclose(mapped[name], fixed[name], atol=1e-4) for name in fixed)


def test_what_cannot_be_compared_is_refused() -> None:
    problem, fixed, moving = pose("perceptron")
    frozen = replace(problem.symmetry, parameters=frozenset(n for n in problem.symmetry.parameters if n[0] != "2"))
    with pytest.raises(UserError, match=r"no trainable tensor makes the units of group '2'.*alignment\.cost"):
        OptimalTransport().check(frozen)
    OptimalTransport(cost="activations").check(frozen)
    with pytest.raises(UserError, match="no images were given"):
        OptimalTransport(cost="activations")(fixed, moving, replace(problem, batches=None))
    with pytest.raises(UserError, match="no model was given"):
        OptimalTransport(cost="activations")(fixed, moving, replace(problem, model=None))
    with pytest.raises(UserError, match="NaN or infinity"):
        OptimalTransport()(fixed, {**moving, "0.bias": torch.full((5,), torch.nan)}, problem)
