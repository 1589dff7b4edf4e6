import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc import config
from lmc import state as states
from lmc.alignment.problem import Matching, Problem
from lmc.alignment.straight_through import StraightThrough, TrainingLoss
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.seeding import isolated
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from tests.alignment.conftest import all_permutations
from tests.symmetry.test_structures import CASES

CPU = torch.device("cpu")
BLOCKS = ["packed attention", "grouped convolution", "grouped queries", "channel shuffle between groups"]
QUICK = {"steps": 30, "batch_size": 50, "evaluate_every": 5, "restarts": 1}


def perceptron(*widths: int, norm: bool = False) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), *([nn.BatchNorm1d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers[: -2 if norm else -1])


class Task:
    """An architecture, labelled images, and networks trained on them."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor) -> None:
        self.model, self.images, self.labels = model.eval(), images, labels
        logging.disable(logging.WARNING)
        self.symmetry = discover(self.model, torch.zeros(2, *images.shape[1:]))
        logging.disable(logging.NOTSET)

    @classmethod
    def digits(cls, *hidden: int, norm: bool = False) -> "Task":
        digits = load_digits()
        order = np.random.default_rng(0).permutation(len(digits.target))[:300]
        images = torch.tensor(digits.images[order], dtype=torch.float32)[:, None] / 16 - 0.3
        with isolated(0, "test"):
            model = perceptron(64, *hidden, 10, norm=norm)
        return cls(model, images, torch.tensor(digits.target[order]))

    @classmethod
    def of_case(cls, name: str) -> "Task":
        with isolated(0, "test"):
            model = CASES[name].make().eval()
        draw = torch.Generator().manual_seed(1)
        images = torch.randn(100, *CASES[name].shape, generator=draw)
        return cls(model, images, torch.randint(2, (100,), generator=draw))

    def trained(self, seed: int, steps: int = 150) -> State:
        with isolated(seed, "test"):
            model = copy.deepcopy(self.model).train()
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
            optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
            for _ in range(steps):
                chosen = torch.randint(len(self.labels), (64,))
                optimiser.zero_grad()
                cross_entropy(model(self.images[chosen]), self.labels[chosen]).backward()
                optimiser.step()
        return states.of_model(model)

    def labelled(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.images.split(size), self.labels.split(size), strict=True)

    def problem(self, seed: int = 0) -> Problem:
        return Problem(self.model, self.symmetry, seed, CPU, self.images.split, self.labelled)

    def loss(self, *members: State, weights: tuple[float, ...] | None = None) -> float:
        """Of the mean of networks, by hand; BatchNorm by the statistics of all images."""
        shares = weights or (1 / len(members),) * len(members)
        merged = {
            name: sum(share * member[name] for share, member in zip(shares, members, strict=True))
            if tensor.is_floating_point()
            else tensor.clone()
            for name, tensor in members[0].items()
        }
        for module in self.model.modules():
            module.training = isinstance(module, nn.BatchNorm1d)
        with torch.no_grad():
            output = torch.func.functional_call(self.model, merged, (self.images,), tie_weights=False)
        self.model.eval()
        return cross_entropy(output, self.labels).item()


@pytest.fixture(scope="module")
def digits() -> Task:
    return Task.digits(16, 12)


@pytest.fixture(scope="module")
def pair(digits: Task) -> tuple[State, State]:
    return digits.trained(1), digits.trained(2)


@pytest.fixture(scope="module")
def normed() -> Task:
    return Task.digits(16, norm=True)


def plant(task: Task, network: State, seed: int, noise: float) -> tuple[State, Permutation]:
    draw = torch.Generator().manual_seed(seed)
    hidden = Permutation.random(task.symmetry, draw)
    moved = {
        name: tensor + noise * tensor.std(unbiased=False) * torch.randn(tensor.shape, generator=draw)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in hidden.apply(network).items()
    }
    return moved, hidden.inverse()


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_the_midpoint_is_better_than_weight_matching_makes_it(digits: Task, pair: tuple[State, State], optimiser: str):
    fixed, moving = pair
    method = StraightThrough(
        steps=150, batch_size=100, optimiser=optimiser, learning_rate=0.03 if optimiser == "sgd" else 1e-2
    )
    found = method(fixed, moving, digits.problem())
    matched = WeightMatching()(fixed, moving, digits.problem()).permutation
    assert found.trace[0]["objective"] == pytest.approx(-digits.loss(fixed, matched.apply(moving)), rel=1e-5)
    assert found.objective == pytest.approx(-digits.loss(fixed, found.permutation.apply(moving)), rel=1e-5)
    assert found.objective > 0.95 * found.trace[0]["objective"]
    assert found.objective > 0.5 * -digits.loss(fixed, moving)
    evaluated = [record for record in found.trace if "objective" in record]
    bests = list(itertools.accumulate((record["objective"] for record in evaluated), max))
    assert [record["best"] for record in evaluated] == bests
    assert found.objective == bests[-1]
    assert [record["step"] for record in found.trace] == list(range(151))
    assert [record["step"] for record in evaluated] == [0, *range(20, 141, 20), 150]


@pytest.mark.parametrize("start", ["fixed", "weight_matching"])
def test_no_permutation_is_better_than_the_best_of_all(start: str):
    task = Task.digits(4, 3)
    everything = all_permutations(task.symmetry)
    assert len(everything) == 24 * 6
    optimal = 0
    for seed in range(3):
        fixed, moving = task.trained(2 * seed), task.trained(2 * seed + 1)
        losses = sorted(task.loss(fixed, permutation.apply(moving)) for permutation in everything)
        method = StraightThrough(
            start=start, steps=100, batch_size=100, learning_rate=0.3, evaluate_every=2, restarts=1
        )
        found = method(fixed, moving, task.problem(seed))
        assert -found.objective >= losses[0] - 1e-5
        assert -found.objective <= -found.trace[0]["objective"]
        optimal += -found.objective <= losses[0] + 1e-5
        assert -found.objective <= losses[len(losses) // 10]
    if start == "fixed":  # B~ that begins at the matched network must first leave it, and may not get far
        assert optimal >= 1


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_planted_permutation_is_recovered(digits: Task, pair: tuple[State, State], noise: float):
    for seed in range(2):
        moving, truth = plant(digits, pair[0], seed, noise)
        assert StraightThrough(**QUICK)(pair[0], moving, digits.problem()).permutation == truth


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_with_what_is_inside_them(name: str):
    task = Task.of_case(name)
    assert any(group.outer for group in task.symmetry.groups.values())
    fixed = task.trained(3, steps=20)
    moving, truth = plant(task, fixed, 1, 0.01)
    assert StraightThrough(**QUICK)(fixed, moving, task.problem()).permutation == truth
    other = task.trained(5, steps=20)
    found = StraightThrough(**{**QUICK, "learning_rate": 0.1}, optimiser="adam")(fixed, other, task.problem())
    assert found.objective == pytest.approx(-task.loss(fixed, found.permutation.apply(other)), rel=1e-4)
    assert found.objective >= found.trace[0]["objective"]
    assert any(record["moved"] for record in found.trace[1:])


@pytest.mark.parametrize("start", ["fixed", "weight_matching"])
def test_matching_a_permuted_copy_gives_the_composed_answer(digits: Task, pair: tuple[State, State], start: str):
    fixed, moving = pair
    shuffle = Permutation.random(digits.symmetry, torch.Generator().manual_seed(3))
    method = StraightThrough(**QUICK, start=start, learning_rate=0.1)
    found = method(fixed, moving, digits.problem())
    again = method(fixed, shuffle.apply(moving), digits.problem())
    assert again.permutation == found.permutation.compose(shuffle.inverse())
    assert again.objective == found.objective


def test_the_gradient_goes_straight_through_the_projection(digits: Task, pair: tuple[State, State]):
    """One step against autograd through B~ + (proj(B~) - B~).detach(), the textbook form of the estimator."""
    fixed, moving = pair
    matched = WeightMatching()(fixed, moving, digits.problem()).permutation.apply(moving)
    target = {name: tensor.clone().requires_grad_() for name, tensor in fixed.items()}
    through = {name: leaf + (matched[name] - leaf).detach() for name, leaf in target.items()}
    merged = {name: (fixed[name] + through[name]) / 2 for name in fixed}
    loss = cross_entropy(torch.func.functional_call(digits.model, merged, (digits.images[:100],)), digits.labels[:100])
    loss.backward()
    seen: list[Mapping[str, Tensor]] = []
    from lmc.alignment import straight_through

    class Spy(straight_through._Merge):
        def project(self) -> int:
            seen.append({name: tensor.detach().clone() for name, tensor in self.displacement.items()})
            return super().project()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(straight_through, "_Merge", Spy)
        found = StraightThrough(steps=1, batch_size=100, learning_rate=0.5)(fixed, moving, digits.problem())
    assert found.trace[1]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert all(not tensor.any() for tensor in seen[0].values())
    assert set(seen[1]) == set(digits.symmetry.axes_of)
    for name, tensor in seen[1].items():
        torch.testing.assert_close(tensor, -0.5 * target[name].grad, rtol=1e-4, atol=1e-7)


def test_tied_tensors_are_displaced_together():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.one, self.two, self.leave = (
                nn.Linear(64, 6),
                nn.Linear(6, 6),
                nn.Linear(6, 6),
                nn.Linear(6, 10),
            )
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.enter(x.flatten(1)))
            return self.leave(x + torch.relu(self.two(x + torch.relu(self.one(x)))))

    digits = Task.digits(4)
    with isolated(0, "test"):
        task = Task(Tied(), digits.images, digits.labels)
    assert task.symmetry.groups
    fixed = states.of_model(task.model)
    moving, truth = plant(task, fixed, 1, 0.0)
    from lmc.alignment.straight_through import _Merge

    method = StraightThrough(**QUICK)
    assert method(fixed, moving, task.problem()).permutation == truth
    start = [Permutation.identity(task.symmetry)]
    merge = _Merge(method, [fixed, moving], start, task.problem(), "test", True)
    assert "one.weight" in merge.displacement
    assert "two.weight" not in merge.displacement
    whole = {name: leaf.clone().requires_grad_() for name, leaf in merge.mean.items()}
    shared = {**whole, "two.weight": whole["one.weight"]}
    output = torch.func.functional_call(task.model, shared, (task.images,), tie_weights=False)
    cross_entropy(output, task.labels).backward()
    _, gradient = merge.gradient(TrainingLoss(task.problem(), 300), (task.images, task.labels))
    for name, slope in zip(merge.displacement, gradient, strict=True):
        torch.testing.assert_close(slope, whole[name].grad / 2)


def test_batch_norm_works_with_the_statistics_of_the_batch(normed: Task):
    fixed, moving = normed.trained(1), normed.trained(2)
    before = [{name: tensor.clone() for name, tensor in network.items()} for network in (fixed, moving)]
    own = {name: tensor.clone() for name, tensor in normed.model.state_dict().items()}
    found = StraightThrough(steps=20, batch_size=300)(fixed, moving, normed.problem())
    assert found.objective == pytest.approx(-normed.loss(fixed, found.permutation.apply(moving)), rel=1e-5)
    # What the running statistics hold has no part in it.
    stale = {n: t + 5 if n.endswith(("running_mean", "running_var")) else t for n, t in moving.items()}
    assert (
        StraightThrough(steps=20, batch_size=300)(fixed, stale, normed.problem()).trace[-1]["loss"]
        == (found.trace[-1]["loss"])
    )
    for network, kept in zip((fixed, moving, normed.model.state_dict()), (*before, own), strict=True):
        assert all(torch.equal(network[name], tensor) for name, tensor in kept.items())
    assert not any(module.training for module in normed.model.modules())


def test_what_is_left_of_a_batch(digits: Task, pair: tuple[State, State]):
    loss = TrainingLoss(digits.problem(), 110)
    assert [len(labels) for _, labels in itertools.islice(loss.minibatches(), 5)] == [110] * 5
    assert [len(labels) for _, labels in loss.first(None)] == [110, 110, 80]
    assert [len(labels) for _, labels in loss.first(221)] == [110, 110]
    assert [len(labels) for _, labels in loss.first(1)] == [1]
    assert loss.over(pair[0], loss.first(None)) == pytest.approx(digits.loss(pair[0]), rel=1e-5)
    whole = TrainingLoss(digits.problem(), 1000)
    assert [len(labels) for _, labels in itertools.islice(whole.minibatches(), 2)] == [300, 300]
    images = torch.cat([batch for batch, _ in loss.first(None)])
    assert torch.equal(images, torch.cat(list(digits.problem().images(None, 64))))


def test_projections_may_be_rare(digits: Task, pair: tuple[State, State]):
    method = StraightThrough(**{**QUICK, "evaluate_every": 30}, project_every=7, learning_rate=0.3)
    found = method(*pair, digits.problem())
    assert {record["step"] for record in found.trace[1:] if record["moved"]} <= {7, 14, 21, 28, 30}
    assert any(record["moved"] for record in found.trace[1:])


def test_an_interrupted_search_returns_the_best_so_far(digits: Task, pair: tuple[State, State]):
    method = StraightThrough(steps=60, batch_size=100, learning_rate=0.1, evaluate_every=5)
    whole = method(*pair, digits.problem())
    assert whole.complete
    for stop in (0, 1, 33):

        def interrupt(record: Mapping[str, float], stop: int = stop) -> None:
            if record["step"] == stop:
                raise KeyboardInterrupt

        found = method(*pair, digits.problem(), interrupt)
        assert not found.complete
        assert len(found.trace) == stop + 1
        assert found.objective == max(r["objective"] for r in whole.trace[: stop + 1] if "objective" in r)
        aligned = found.permutation.apply(pair[1])
        assert found.objective == pytest.approx(-digits.loss(pair[0], aligned), rel=1e-5)


def test_same_seed_same_answer(digits: Task, pair: tuple[State, State]):
    def run(seed: int) -> tuple[Matching, list[dict[str, float]]]:
        before = torch.random.get_rng_state()
        seen: list[Mapping[str, float]] = []
        found = StraightThrough(**QUICK)(*pair, digits.problem(seed), seen.append)
        assert seen == found.trace
        assert torch.equal(before, torch.random.get_rng_state())
        return found, [{k: v for k, v in record.items() if k != "seconds"} for record in found.trace]

    first, second = run(0), run(0)
    assert first[0].permutation == second[0].permutation
    assert first[1] == second[1]
    assert isinstance(run(1)[0].objective, float)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("start", "identity"),
        ("restarts", 0),
        ("optimiser", "adamw"),
        ("learning_rate", 0.0),
        ("momentum", 1.0),
        ("batch_size", 0),
        ("steps", 0),
        ("project_every", 0),
        ("evaluate_every", 0),
        ("images", 0),
        ("max_sweeps", 0),
        ("tolerance", -1.0),
    ],
)
def test_unusable_settings_are_named(setting: str, value: object):
    with pytest.raises(UserError, match=rf"alignment\.{setting}"):
        config.build({"_target_": "lmc.alignment.straight_through.StraightThrough", setting: value}, "alignment")


def test_the_file_lists_the_defaults(conf: Path):
    node = yaml.safe_load((conf / "alignment" / "straight_through.yaml").read_text())
    assert config.build(node, "alignment") == StraightThrough()
    assert set(config.settings(node, "alignment")) == set(node)


@pytest.mark.parametrize(
    ("missing", "message"),
    [("model", "no model was given"), ("labelled", "no labels were given"), ("images", "given no images")],
)
def test_what_is_missing_is_named(digits: Task, pair: tuple[State, State], missing: str, message: str):
    value: dict[str, Callable[..., object] | None] = (
        {"labelled": lambda size: []} if missing == "images" else {missing: None}
    )
    with pytest.raises(UserError, match=message):
        StraightThrough(**QUICK)(*pair, replace(digits.problem(), **value))


def test_a_search_that_diverges_says_so(digits: Task, pair: tuple[State, State]):
    wild = {name: 1e30 * tensor for name, tensor in pair[1].items()}
    with pytest.raises(UserError, match=r"diverged: the loss became (nan|inf); lower alignment\.learning_rate"):
        StraightThrough(**QUICK)(pair[0], wild, digits.problem())
