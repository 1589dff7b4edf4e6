import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.optimize import linear_sum_assignment
from torch.nn.functional import cross_entropy

from lmc import config
from lmc.alignment import sinkhorn, straight_through
from lmc.alignment.canonical_correlation import CanonicalCorrelation
from lmc.alignment.none import NoAlignment
from lmc.alignment.problem import Matching
from lmc.alignment.sinkhorn import Sinkhorn
from lmc.alignment.straight_through import StraightThrough
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.merge.base import Frame
from lmc.merge.straight_through import StraightThroughMany
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from tests.alignment.test_straight_through import Task, plant

QUICK: dict[str, Any] = {"steps": 30, "batch_size": 100, "evaluate_every": 5, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def digits() -> Task:
    return Task.digits(16, 12)


@pytest.fixture(scope="module")
def networks(digits: Task) -> list[State]:
    return [digits.trained(seed) for seed in (1, 2, 3)]


def merged(task: Task, networks: list[State], frame: Frame) -> float:
    return task.loss(*(p.apply(n) for p, n in zip(frame.permutations, networks, strict=True)))


@pytest.mark.parametrize("start", ["first", "aligned"])
@pytest.mark.parametrize("alignment", [NoAlignment(), WeightMatching()], ids=["none", "weights"])
def test_the_mean_is_never_worse_than_at_the_start(digits: Task, networks: list[State], alignment: Any, start: str):
    found = StraightThroughMany(**{**QUICK, "steps": 60}, start=start)(networks, alignment, digits.problem())
    assert found.permutations[0] == Permutation.identity(digits.symmetry)
    begin = [alignment(networks[0], network, digits.problem()).permutation.apply(network) for network in networks[1:]]
    assert found.trace[0]["objective"] == pytest.approx(-digits.loss(networks[0], *begin), rel=1e-5)
    assert found.objective == pytest.approx(-merged(digits, networks, found), rel=1e-5)
    assert found.objective >= found.trace[0]["objective"]
    if start == "first":
        assert found.objective > found.trace[0]["objective"]
        assert found.objective > 0.7 * -digits.loss(*networks)


def test_of_two_networks_it_is_the_alignment(digits: Task, networks: list[State]):
    for start, same in (("first", "fixed"), ("aligned", "weight_matching")):
        joint = StraightThroughMany(**QUICK, start=start)(networks[:2], WeightMatching(), digits.problem())
        alone = StraightThrough(**QUICK, start=same)(*networks[:2], digits.problem())
        assert joint.permutations == (Permutation.identity(digits.symmetry), alone.permutation)
        assert joint.objective == alone.objective
        ours, theirs = ([{**r, "seconds": 0.0} for r in each.trace] for each in (joint, alone))
        assert ours == theirs


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
@pytest.mark.parametrize("start", ["first", "aligned"])
def test_steps_are_those_of_an_independent_implementation(start: str, optimiser: str):
    """Every network has its own B~, with autograd through the mean; with one hidden layer one assignment matches."""
    task = Task.digits(14)
    (group,) = task.symmetry.groups
    made = {"1.weight": [0], "1.bias": [0], "3.weight": [1]}
    assert {axis.tensor for axis in task.symmetry.groups[group].axes} == set(made)
    networks = [task.trained(seed) for seed in (1, 2, 3)]

    def permuted(network: State, order: np.ndarray) -> State:
        index = torch.tensor(order)
        return {**network, **{name: network[name].index_select(dim, index) for name, (dim,) in made.items()}}

    def projected(target: State, network: State) -> np.ndarray:
        similarity = sum(
            target[name].detach().movedim(dim, 0).reshape(14, -1).double().numpy()
            @ network[name].movedim(dim, 0).reshape(14, -1).double().numpy().T
            for name, (dim,) in made.items()
        )
        return linear_sum_assignment(similarity, maximize=True)[1]

    aligned = [projected(networks[0], network) for network in networks[1:]]
    begin = [networks[0]] * 2 if start == "first" else list(map(permuted, networks[1:], aligned))
    targets = [{name: tensor.clone().requires_grad_() for name, tensor in network.items()} for network in begin]
    leaves = [leaf for target in targets for leaf in target.values()]
    rate = 0.3 if optimiser == "sgd" else 0.1
    made_of = torch.optim.SGD(leaves, rate, 0.9) if optimiser == "sgd" else torch.optim.Adam(leaves, rate)
    batches = list(task.labelled(100))
    orders, expected, moved = aligned, [], 0
    for step in range(20):
        images, labels = batches[step % 3]
        through = [
            {name: leaf + (permuted(network, order)[name] - leaf).detach() for name, leaf in target.items()}
            for target, network, order in zip(targets, networks[1:], orders, strict=True)
        ]
        mean = {name: (networks[0][name] + through[0][name] + through[1][name]) / 3 for name in networks[0]}
        loss = cross_entropy(torch.func.functional_call(task.model, mean, (images,)), labels)
        made_of.zero_grad()
        loss.backward()
        made_of.step()
        before, orders = orders, list(map(projected, targets, networks[1:]))
        changes = sum(int((a != b).sum()) for a, b in zip(orders, before, strict=True))
        expected.append((loss.item(), changes))
        moved += changes
    assert moved
    method = StraightThroughMany(
        start=start, optimiser=optimiser, learning_rate=rate, steps=20, batch_size=100, images=None
    )
    found = method(networks, WeightMatching(), task.problem())
    assert [record["moved"] for record in found.trace[1:]] == [changes for _, changes in expected]
    assert [record["loss"] for record in found.trace[1:]] == pytest.approx([loss for loss, _ in expected], rel=1e-4)
    assert found.trace[-1]["objective"] == pytest.approx(
        -task.loss(networks[0], *map(permuted, networks[1:], orders)), rel=1e-5
    )


def test_no_frame_is_better_than_the_best_of_all():
    task = Task.digits(3)
    (group,) = task.symmetry.groups
    elements = [Permutation(task.symmetry, {group: torch.tensor(order)}) for order in itertools.permutations(range(3))]
    optimal = 0
    for seed in range(3):
        networks = [task.trained(3 * seed + number) for number in range(3)]
        losses = sorted(
            task.loss(networks[0], one.apply(networks[1]), two.apply(networks[2]))
            for one, two in itertools.product(elements, repeat=2)
        )
        method = StraightThroughMany(**{**QUICK, "steps": 60, "evaluate_every": 1, "learning_rate": 0.3})
        found = method(networks, NoAlignment(), task.problem(seed))
        assert -found.objective >= losses[0] - 1e-5
        optimal += -found.objective <= losses[0] + 1e-5
    assert optimal >= 1


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_planted_permutations_are_recovered(digits: Task, networks: list[State], noise: float):
    planted = [plant(digits, networks[0], seed, noise) for seed in (1, 2)]
    method = StraightThroughMany(**{**QUICK, "learning_rate": 0.01})
    found = method([networks[0], *(moved for moved, _ in planted)], WeightMatching(), digits.problem())
    assert found.permutations == (Permutation.identity(digits.symmetry), *(truth for _, truth in planted))


def test_blocks_with_what_is_inside_them():
    task = Task.of_case("packed attention")
    networks = [task.trained(seed, steps=10) for seed in (1, 2, 3)]
    found = StraightThroughMany(**QUICK)(networks, WeightMatching(), task.problem())
    assert found.objective == pytest.approx(-merged(task, networks, found), rel=1e-4)
    planted, truth = plant(task, networks[0], 4, 0.01)
    method = StraightThroughMany(**{**QUICK, "learning_rate": 0.01})
    again = method([networks[0], networks[0], planted], WeightMatching(), task.problem())
    assert again.permutations[1:] == (Permutation.identity(task.symmetry), truth)


def test_matching_permuted_copies_gives_the_composed_frame(digits: Task, networks: list[State]):
    draw = torch.Generator().manual_seed(3)
    shuffles = [Permutation.random(digits.symmetry, draw) for _ in range(2)]
    method, alignment = StraightThroughMany(**QUICK), WeightMatching(restarts=1)
    found = method(networks, alignment, digits.problem())
    shuffled = [shuffle.apply(network) for shuffle, network in zip(shuffles, networks[1:], strict=True)]
    again = method([networks[0], *shuffled], alignment, digits.problem())
    assert again.objective == found.objective
    for new, old, shuffle in zip(again.permutations[1:], found.permutations[1:], shuffles, strict=True):
        assert new == old.compose(shuffle.inverse())


def test_interruption_and_determinism(digits: Task, networks: list[State]):
    before = [{name: tensor.clone() for name, tensor in network.items()} for network in networks]
    whole = StraightThroughMany(**QUICK)(networks, NoAlignment(), digits.problem())
    again = StraightThroughMany(**QUICK)(networks, NoAlignment(), digits.problem())
    assert whole.complete
    assert (again.permutations, again.objective) == (whole.permutations, whole.objective)

    def interrupt(record: Mapping[str, float]) -> None:
        if record["step"] == 12:
            raise KeyboardInterrupt

    found = StraightThroughMany(**QUICK)(networks, NoAlignment(), digits.problem(), interrupt)
    assert not found.complete
    assert found.objective == max(record["objective"] for record in whole.trace[:13] if "objective" in record)
    assert found.objective == pytest.approx(-merged(digits, networks, found), rel=1e-5)
    for network, kept in zip(networks, before, strict=True):
        assert all(torch.equal(network[name], tensor) for name, tensor in kept.items())


def test_an_interrupted_start_is_returned_as_it_is(digits: Task, networks: list[State]):
    class Interrupted(WeightMatching):
        def __call__(self, *given: Any, **others: Any) -> Matching:
            return replace(super().__call__(*given, **others), complete=False)

    identity = Permutation.identity(digits.symmetry)
    found = StraightThroughMany(**QUICK)(networks, Interrupted(), digits.problem())
    matched = WeightMatching()(*networks[:2], digits.problem()).permutation
    assert (found.permutations, found.complete) == ((identity, matched, identity), False)
    assert found.objective == pytest.approx(-merged(digits, networks, found), rel=1e-5)
    for module, method in ((straight_through, StraightThrough()), (sinkhorn, Sinkhorn(start="weight_matching"))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "WeightMatching", Interrupted)
            alone = method(*networks[:2], digits.problem())
        assert (alone.permutation, alone.complete) == (matched, False)
        assert alone.objective == pytest.approx(-digits.loss(networks[0], matched.apply(networks[1])), rel=1e-5)


def test_what_cannot_be_used_is_refused(digits: Task, networks: list[State]):
    soft = CanonicalCorrelation()
    with pytest.raises(UserError, match=r"merge=straight_through needs an alignment that gives a permutation"):
        StraightThroughMany().check(digits.symmetry, soft)
    with pytest.raises(UserError, match=r"merge=straight_through needs an alignment that gives a permutation"):
        StraightThroughMany()(networks, soft, digits.problem())
    StraightThroughMany().check(digits.symmetry, WeightMatching())
    broken = [networks[0], {**networks[1], "1.bias": networks[1]["1.bias"] * float("nan")}]
    with pytest.raises(UserError, match=r"network 2 of 2 cannot be aligned: tensor '1\.bias' holds NaN"):
        StraightThroughMany()(broken, NoAlignment(), digits.problem())


@pytest.mark.parametrize(
    ("setting", "value"), [("start", "fixed"), ("steps", 0), ("learning_rate", -1.0), ("restarts", 5)]
)
def test_unusable_settings_are_named(setting: str, value: object):
    with pytest.raises(UserError, match=rf"merge\.{setting}"):
        config.build({"_target_": "lmc.merge.straight_through.StraightThroughMany", setting: value}, "merge")


def test_the_file_lists_the_defaults(conf: Path):
    node = yaml.safe_load((conf / "merge" / "straight_through.yaml").read_text())
    assert config.build(node, "merge") == StraightThroughMany()
    assert set(config.settings(node, "merge")) == set(node)
