import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc import config
from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.birkhoff import towards_doubly_stochastic
from lmc.alignment.problem import Matching
from lmc.alignment.proximal_alternating import ProximalAlternating
from lmc.alignment.weight_matching import WeightMatching
from lmc.architecture.resnet import ResNet
from lmc.architecture.tiny_ten import TinyTen
from lmc.errors import UserError
from lmc.seeding import generator, isolated
from lmc.state import State, interpolate
from lmc.symmetry.permutation import Permutation
from tests.alignment.test_straight_through import Task, plant

STARTS = ["identity", "activation_matching", "weight_matching"]
QUICK = {
    "permutation_epochs": 3,
    "learning_rate": 2.0,
    "samples": 8,
    "curve_epochs": 2,
    "batch_size": 100,
    "points": 3,
    "images": None,
}


@pytest.fixture(scope="module")
def digits() -> Task:
    return Task.digits(8, 6)


@pytest.fixture(scope="module")
def pair(digits: Task) -> tuple[State, State]:
    return digits.trained(1, 60), digits.trained(2, 60)


@pytest.fixture(scope="module")
def shallow() -> Task:
    return Task.digits(5)


def positions(points: int) -> list[float]:
    return [(2 * place + 1) / (2 * points) for place in range(points)]


def on_line(task: Task, fixed: State, moving: State, permutation: Permutation, points: int = 3) -> float:
    """The loss along the line, by hand."""
    aligned = permutation.apply(moving)
    return float(np.mean([task.loss(fixed, aligned, weights=(1 - t, t)) for t in positions(points)]))


def begin(start: str, pair: tuple[State, State], task: Task) -> Permutation:
    if start == "identity":
        return Permutation.identity(task.symmetry)
    method = ActivationMatching() if start == "activation_matching" else WeightMatching()
    return method(*pair, task.problem()).permutation


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("start", STARTS)
def test_it_never_ends_worse_than_it_began(digits: Task, pair: tuple[State, State], start: str, seed: int):
    seen: list[Mapping[str, float]] = []
    # Steps of this size leave the good permutations, and in every second case they find none that is better.
    method = ProximalAlternating(start=start, **{**QUICK, "rounds": 2, "learning_rate": 2.0 + 40 * (seed % 2)})
    found = method(*pair, digits.problem(seed), seen.append)
    assert seen == found.trace
    assert found.complete
    first = begin(start, pair, digits)
    assert found.trace[0] == {"round": 0, "objective": pytest.approx(-on_line(digits, *pair, first), rel=1e-5)}
    steps = [record for record in found.trace[1:] if "objective" in record]
    assert [("candidates" in record, "kept" in record) for record in steps] == [(True, False), (False, True)] * 1 + [
        (True, False)
    ]
    reached = found.trace[0]["objective"]
    for record in steps:
        assert record["before"] == reached
        assert record["objective"] >= reached
        reached = record["objective"]
    assert found.objective == reached
    rounded = [record for record in steps if "candidates" in record]
    for record in rounded:
        assert 1 <= record["candidates"] <= 10
        assert record["nearest"] <= record["objective"]
        assert (record["objective"] > record["before"]) == (record["changed"] > 0)
    # The permutation is one of the symmetry, which its constructor has checked; the share is counted by hand.
    moved = sum(int((found.permutation[name] != first[name]).sum()) for name in first)
    assert rounded[-1]["changed_from_start"] == pytest.approx(moved / 14)
    assert [r["epoch"] for r in found.trace if "epoch" in r] == [0, 1, 2] * 2
    assert [r["curve_epoch"] for r in found.trace if "curve_epoch" in r] == [0, 1]


def test_some_starts_are_improved_and_some_are_kept(digits: Task, pair: tuple[State, State]):
    """Else the test above could not fail."""
    changed = {
        ProximalAlternating(start=start, **{**QUICK, "learning_rate": rate})(*pair, digits.problem()).trace[-1][
            "changed"
        ]
        > 0
        for start in STARTS
        for rate in (2.0, 1e-4)
    }
    assert changed == {True, False}


def line_losses(fixed: State, moving: State, images: NDArray[np.float64], labels: NDArray[np.int64]) -> list[float]:
    """The loss along the line for every permutation of one hidden layer, in NumPy."""
    names = ("1.weight", "1.bias", "3.weight", "3.bias")
    a, b = ([network[name].double().numpy() for name in names] for network in (fixed, moving))
    losses = []
    for order in itertools.permutations(range(len(a[1]))):
        p = list(order)
        moved = (b[0][p], b[1][p], b[2][:, p], b[3])
        total = 0.0
        for t in positions(5):
            w, c, v, d = ((1 - t) * ours + t * theirs for ours, theirs in zip(a, moved, strict=True))
            logits = np.maximum(images @ w.T + c, 0) @ v.T + d
            logits -= logits.max(1, keepdims=True)
            total += (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean()
        losses.append(total / 5)
    return losses


def test_the_best_of_all_permutations_is_found_at_least_as_often_as_by_weight_matching():
    """Against all 24, for ten pairs; from the identity, where nothing of weight matching helps, far above chance."""
    task = Task.digits(4)
    images, labels = task.images.flatten(1).double().numpy(), task.labels.numpy()
    orders = list(itertools.permutations(range(4)))
    matched, hits = 0, {"weight_matching": 0, "identity": 0}
    for seed in range(10):
        fixed, moving = task.trained(2 * seed, 60), task.trained(2 * seed + 1, 60)
        every, problem = line_losses(fixed, moving, images, labels), task.problem(seed)

        def of(found: Matching, every: list[float] = every) -> float:
            (order,) = found.permutation.values()
            return every[orders.index(tuple(order.tolist()))]

        by_weights = of(WeightMatching()(fixed, moving, problem))
        # Units that answer to nothing may lie anywhere.
        limit = min(every) + 1e-6
        matched += by_weights <= limit
        for start in hits:
            method = ProximalAlternating(start=start, permutation_epochs=8, learning_rate=5.0, batch_size=25)
            found = method(fixed, moving, problem)
            assert found.objective == pytest.approx(-of(found), rel=1e-5)
            assert start == "identity" or of(found) <= by_weights + 1e-6
            hits[start] += of(found) <= limit
    # Measured: 6 by weight matching, 9 from there on, 6 from the identity.
    assert hits["weight_matching"] > matched
    assert hits["identity"] >= 4


@pytest.mark.parametrize("start", ["activation_matching", "weight_matching"])
def test_a_planted_permutation_is_kept(digits: Task, pair: tuple[State, State], start: str):
    moving, truth = plant(digits, pair[0], 1, 0.02)
    first = begin(start, (pair[0], moving), digits)
    found = ProximalAlternating(start=start, **QUICK)(pair[0], moving, digits.problem())
    planted = on_line(digits, pair[0], moving, truth)
    assert -found.objective <= planted * (1 + 1e-5)
    if start == "weight_matching":
        assert first == truth
        assert found.permutation == truth
        assert found.trace[-1]["changed"] == 0


def test_a_planted_permutation_is_found(shallow: Task):
    network = shallow.trained(1, 60)
    moving, truth = plant(shallow, network, 3, 0.0)
    assert truth != Permutation.identity(shallow.symmetry)
    method = ProximalAlternating(start="identity", permutation_epochs=10, learning_rate=5.0, batch_size=50, rounds=3)
    found = replace(method, curve_epochs=1, curve_learning_rate=1e-3)(network, moving, shallow.problem())
    assert found.permutation == truth


def by_hand(task: Task, fixed: State, matrix: Tensor, moving: State, t: float) -> Tensor:
    """The loss of all images at t on the line from one hidden layer to another, mixed by a matrix."""
    w, c, v, d = (moving[name] for name in ("1.weight", "1.bias", "3.weight", "3.bias"))
    mixed = dict(
        zip(("1.weight", "1.bias", "3.weight", "3.bias"), (matrix @ w, matrix @ c, v @ matrix.T, d), strict=True)
    )
    w, c, v, d = ((1 - t) * fixed[name] + t * tensor for name, tensor in mixed.items())
    return cross_entropy(torch.relu(task.images.flatten(1) @ w.T + c) @ v.T + d, task.labels)


def test_the_steps_are_those_of_the_formula(shallow: Task):
    """Six steps over all images, by autograd through the matrix products of the network; their losses tell them all."""
    fixed, moving = shallow.trained(3, 60), shallow.trained(4, 60)
    eta, epochs = 4.0, 6
    settings = {"permutation_epochs": epochs, "learning_rate": eta, "samples": 0, "batch_size": 300, "points": 3}
    ends = []
    for nu in (1e3, 10.0):
        draw = generator(7, "proximal_alternating", "positions")
        old = matrix = torch.eye(5)
        losses = []
        for _ in range(epochs):
            matrix = matrix.clone().requires_grad_()
            loss = by_hand(shallow, fixed, matrix, moving, torch.rand((), generator=draw).item())
            losses.append(loss.item())
            (slope,) = torch.autograd.grad(loss, matrix)
            matrix = (matrix.detach() - eta * slope + eta / nu * old) / (1 + eta / nu)
            matrix = towards_doubly_stochastic(matrix, 20)
        found = ProximalAlternating(start="identity", nu=nu, **settings)(fixed, moving, shallow.problem(7))
        assert [record["loss"] for record in found.trace if "epoch" in record] == pytest.approx(losses, rel=1e-4)
        ends.append(losses[-1])
        assert (matrix - old).abs().max() > 0.05
    assert ends[0] != pytest.approx(ends[1], rel=3e-4)


def test_the_proximal_term_holds_the_permutation(digits: Task, pair: tuple[State, State]):
    loose = ProximalAlternating(start="identity", **QUICK)(*pair, digits.problem())
    held = ProximalAlternating(start="identity", nu=1e-3, **QUICK)(*pair, digits.problem())
    assert loose.trace[-1]["candidates"] > 1
    assert (held.trace[-1]["candidates"], held.trace[-1]["changed"]) == (1, 0)
    assert held.permutation == Permutation.identity(digits.symmetry)


def test_more_candidates_are_no_worse(digits: Task, pair: tuple[State, State]):
    few, many = (
        ProximalAlternating(start="identity", **{**QUICK, "samples": samples})(*pair, digits.problem())
        for samples in (0, 32)
    )
    assert few.trace[-1]["candidates"] <= 2
    assert many.trace[-1]["candidates"] > 2
    assert many.trace[-1]["nearest"] == few.trace[-1]["nearest"]
    assert many.objective >= few.objective
    one = ProximalAlternating(start="identity", **QUICK, terms=1)(*pair, digits.problem())
    assert one.trace[-1]["candidates"] <= 3


def test_a_curve_step_trains_what_is_added_to_the_midpoint(shallow: Task):
    fixed, moving = shallow.trained(3, 60), shallow.trained(4, 60)
    rate, draw = 0.5, generator(0, "proximal_alternating", "positions")
    torch.rand((), generator=draw)  # of the permutation step
    still = {"permutation_epochs": 1, "learning_rate": 1e-9, "samples": 0, "batch_size": 300, "points": 3}
    method = ProximalAlternating(start="identity", rounds=2, curve_epochs=2, curve_learning_rate=rate, **still)
    found = method(fixed, moving, shallow.problem())
    # The quadratic Bezier curve by its control points, and two steps of gradient descent on the inner one.
    names = list(fixed)
    inner = {name: (fixed[name] + moving[name]) / 2 for name in names}

    def loss_at(t: float) -> Tensor:
        w, c, v, d = ((1 - t) ** 2 * fixed[n] + 2 * t * (1 - t) * inner[n] + t**2 * moving[n] for n in names)
        return cross_entropy(torch.relu(shallow.images.flatten(1) @ w.T + c) @ v.T + d, shallow.labels)

    before = np.mean([loss_at(t).item() for t in positions(3)])
    for _ in range(2):
        inner = {name: tensor.detach().requires_grad_() for name, tensor in inner.items()}
        slopes = torch.autograd.grad(loss_at(torch.rand((), generator=draw).item()), list(inner.values()))
        inner = {name: inner[name].detach() - rate * slope for name, slope in zip(names, slopes, strict=True)}
    after = np.mean([loss_at(t).item() for t in positions(3)])
    assert after < before
    record = next(record for record in found.trace if "kept" in record)
    assert record["kept"] == 1
    assert record["before"] == pytest.approx(-before, rel=1e-5)
    assert record["objective"] == pytest.approx(-after, rel=1e-5)
    assert found.objective == record["objective"]


def test_a_curve_that_became_worse_is_dropped(digits: Task, pair: tuple[State, State]):
    settings = {**QUICK, "rounds": 2, "curve_epochs": 1, "curve_learning_rate": 50.0}
    found = ProximalAlternating(**settings)(*pair, digits.problem())
    record = next(record for record in found.trace if "kept" in record)
    assert record["kept"] == 0
    assert record["objective"] == record["before"]
    assert found.objective == pytest.approx(-on_line(digits, *pair, found.permutation), rel=1e-5)


@pytest.mark.parametrize("side", ["moving", "fixed"])
def test_the_order_of_the_units_does_not_matter(digits: Task, pair: tuple[State, State], side: str):
    """But for rounding, which many steps would amplify, and for the start: the identity depends on the order."""
    fixed, moving = pair
    shuffle = Permutation.random(digits.symmetry, torch.Generator().manual_seed(3))
    method = ProximalAlternating(start="weight_matching", **{**QUICK, "learning_rate": 0.5})
    found = method(fixed, moving, digits.problem())
    if side == "moving":
        again = method(fixed, shuffle.apply(moving), digits.problem())
        assert again.permutation == found.permutation.compose(shuffle.inverse())
    else:
        again = method(shuffle.apply(fixed), moving, digits.problem())
        assert again.permutation == shuffle.compose(found.permutation)
    assert again.objective == pytest.approx(found.objective, rel=1e-5)
    assert [r["loss"] for r in again.trace if "loss" in r] == pytest.approx(
        [r["loss"] for r in found.trace if "loss" in r], rel=1e-3
    )


def small_task(kind: str) -> Task:
    shape = {"input_shape": (3, 10, 10), "classes": 3, "norm": "batch"}
    with isolated(0, "test"):
        model: nn.Module = TinyTen(width=0.125, **shape) if kind == "tiny_ten" else ResNet(depth=8, width=0.25, **shape)
    labels = torch.arange(24) % 3
    images = torch.randn(24, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    return Task(model, images + torch.eye(3)[labels][:, :, None, None], labels)


def training_mode_loss(task: Task, state: State) -> float:
    """By hand, of a network without dropout: in training mode BatchNorm works with the statistics of the batch."""
    model = copy.deepcopy(task.model).train()
    model.load_state_dict(state)
    with torch.no_grad():
        return cross_entropy(model(task.images), task.labels).item()


@pytest.mark.parametrize("kind", ["tiny_ten", "resnet"])
def test_networks_with_convolutions_batch_norm_and_residual_streams(kind: str):
    task = small_task(kind)
    fixed, moving = task.trained(1, 2), task.trained(2, 2)
    states = (fixed, moving, task.model.state_dict())
    kept = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    settings = {**QUICK, "permutation_epochs": 1, "rounds": 2, "curve_epochs": 1, "samples": 2, "points": 2}
    method = ProximalAlternating(start="identity", **{**settings, "batch_size": 12})
    found = method(fixed, moving, task.problem())
    assert found.trace[0]["objective"] <= found.objective
    assert found.trace[-1]["candidates"] > 1
    # The statistics that the networks hold do not matter.
    stale = {n: t + 5 if n.endswith(("running_mean", "running_var")) else t for n, t in moving.items()}
    assert method(fixed, stale, task.problem()).objective == found.objective
    whole = ProximalAlternating(start="identity", **{**settings, "rounds": 1, "batch_size": 24})
    found = whole(fixed, moving, task.problem())
    aligned = found.permutation.apply(moving)
    losses = [training_mode_loss(task, interpolate(fixed, aligned, t)) for t in (0.25, 0.75)]
    assert found.objective == pytest.approx(-np.mean(losses), rel=1e-5)
    for state, before in zip(states, kept, strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert not any(module.training for module in task.model.modules())


class Tied(nn.Module):
    """Two layers that share their weights, behind each other."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.again, self.leave = nn.Linear(64, 6), nn.Linear(6, 6), nn.Linear(6, 10)
        self.once_more = self.again

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.again(torch.relu(self.enter(images.flatten(1)))))
        out: Tensor = self.leave(torch.relu(self.once_more(hidden)))
        return out


def test_tied_tensors_stay_tied_along_the_curve():
    with isolated(0, "test"):
        model = Tied()
    digits = Task.digits(2)
    task = Task(model, digits.images, digits.labels)
    fixed, moving = task.trained(1, 30), task.trained(2, 30)
    settings = {**QUICK, "rounds": 2, "curve_learning_rate": 0.05, "learning_rate": 1e-9, "samples": 0}
    found = ProximalAlternating(start="identity", **settings)(fixed, moving, task.problem())
    assert next(record for record in found.trace if "kept" in record)["kept"] == 1
    assert found.objective > found.trace[0]["objective"]


@pytest.mark.parametrize("name", ["packed attention", "grouped convolution"])
def test_blocks_are_refused_in_one_line(name: str):
    task = Task.of_case(name)
    network = task.trained(1, steps=1)
    with pytest.raises(UserError, match=r"alignment=proximal_alternating .* units inside blocks") as refused:
        ProximalAlternating().check(task.symmetry)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="units inside blocks"):
        ProximalAlternating()(network, network, task.problem())
    ProximalAlternating().check(Task.digits(3).symmetry)


def test_an_interrupted_search_returns_the_best_so_far(digits: Task, pair: tuple[State, State]):
    method = ProximalAlternating(start="identity", rounds=2, **QUICK)
    whole = method(*pair, digits.problem())
    assert whole.complete
    kinds = [set(record) - {"round", "seconds"} for record in whole.trace]
    stops = [0, 1, kinds.index({"curve_epoch", "loss"}), len(kinds) - 1]
    assert whole.trace[4]["changed"] > 0
    for stop in stops:
        seen = itertools.count()

        def interrupt(record: Mapping[str, float], seen: Iterator[int] = seen, stop: int = stop) -> None:
            if next(seen) == stop:
                raise KeyboardInterrupt

        found = method(*pair, digits.problem(), interrupt)
        assert not found.complete
        assert len(found.trace) == stop + 1
        assert found.objective == max(r["objective"] for r in whole.trace[: stop + 1] if "objective" in r)
        if stop < len(kinds) - 1:
            assert found.objective == pytest.approx(-on_line(digits, *pair, found.permutation), rel=1e-5)
        else:
            assert found.permutation == whole.permutation


def test_same_seed_same_answer(digits: Task, pair: tuple[State, State]):
    def run(seed: int) -> tuple[Permutation, list[dict[str, float]]]:
        before = torch.random.get_rng_state()
        found = ProximalAlternating(start="identity", rounds=2, **QUICK)(*pair, digits.problem(seed))
        assert torch.equal(before, torch.random.get_rng_state())
        return found.permutation, [{k: v for k, v in record.items() if k != "seconds"} for record in found.trace]

    assert run(0) == run(0)
    assert run(0)[1] != run(1)[1]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("start", "random"),
        ("rounds", 0),
        ("permutation_epochs", 0),
        ("learning_rate", 0.0),
        ("nu", 0.0),
        ("nu", -1.0),
        ("projections", 0),
        ("terms", 0),
        ("samples", -1),
        ("curve_epochs", 0),
        ("curve_learning_rate", -0.1),
        ("batch_size", 0),
        ("points", 0),
        ("images", 0),
    ],
)
def test_unusable_settings_are_named(setting: str, value: object):
    with pytest.raises(UserError, match=rf"alignment\.{setting}"):
        config.build(
            {"_target_": "lmc.alignment.proximal_alternating.ProximalAlternating", setting: value}, "alignment"
        )


def test_the_file_lists_the_defaults(conf: Path):
    node = yaml.safe_load((conf / "alignment" / "proximal_alternating.yaml").read_text())
    assert config.build(node, "alignment") == ProximalAlternating()
    assert set(config.settings(node, "alignment")) == set(node)


def test_what_is_missing_is_named(digits: Task, pair: tuple[State, State]):
    method = ProximalAlternating(start="identity")
    with pytest.raises(UserError, match="no model was given"):
        method(*pair, replace(digits.problem(), model=None))
    with pytest.raises(UserError, match="no labels were given"):
        method(*pair, replace(digits.problem(), labelled=None))
    with pytest.raises(UserError, match="given no images"):
        method(*pair, replace(digits.problem(), labelled=lambda size: iter(())))
    broken = {**pair[1], "1.bias": torch.full_like(pair[1]["1.bias"], math.nan)}
    with pytest.raises(UserError, match=r"tensor '1\.bias' holds NaN"):
        method(pair[0], broken, digits.problem())


def test_what_diverges_names_its_learning_rate(digits: Task, pair: tuple[State, State]):
    problem = digits.problem()
    with pytest.raises(UserError, match=r"lower alignment\.curve_learning_rate"):
        ProximalAlternating(**{**QUICK, "rounds": 2, "curve_epochs": 5, "curve_learning_rate": 1e30})(*pair, problem)
    huge = {name: tensor * 1e15 for name, tensor in pair[1].items()}
    with pytest.raises(UserError, match=r"lower alignment\.learning_rate"):
        ProximalAlternating(**QUICK, start="identity")(pair[0], huge, problem)


def test_a_network_without_groups_has_nothing_to_match():
    task = Task(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), *(lambda t: (t.images, t.labels))(Task.digits(2))
    )
    network = task.trained(1, 5)
    found = ProximalAlternating(start="identity", **QUICK)(network, network, task.problem())
    assert (len(found.permutation), found.trace, found.complete) == (
        0,
        [{"round": 0, "objective": found.objective}],
        True,
    )
