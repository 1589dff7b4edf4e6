"""Weak, strong and simultaneous connectivity on networks of which it is known what they are connected by."""

import csv
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lmc import config
from lmc.alignment.none import NoAlignment
from lmc.alignment.problem import Matching
from lmc.alignment.weight_matching import WeightMatching
from lmc.alignment.zip import Zip
from lmc.analysis.base import Finding, OnStep, Subject
from lmc.analysis.convex_hull import ConvexHull
from lmc.analysis.frankenstein import Frankenstein
from lmc.analysis.simultaneous_connectivity import SimultaneousConnectivity
from lmc.analysis.strong_connectivity import StrongConnectivity
from lmc.analysis.transitivity import Transitivity, composed, draw_chains
from lmc.dataset.images import Dataset, Images
from lmc.endpoints.base import Moments
from lmc.errors import UserError
from lmc.seeding import generator, isolated
from lmc.state import State, mean, of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from tests.analysis.subjects import data, subject

CLASSES, UNITS = 3, 6


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, UNITS), nn.ReLU(), nn.Linear(UNITS, CLASSES))


@pytest.fixture(scope="module")
def symmetry() -> Symmetry:
    return discover(network(), torch.zeros(2, 1, 2, 2))


def drawn(seed: int) -> State:
    with isolated(seed, "connectivity"):
        model = network()
    return {name: 3 * tensor for name, tensor in of_model(model).items()}


def taught(teacher: State) -> Dataset:
    """Images with the labels that a network gives them: it is good at them, and what is merged from it is worse."""
    drawn = data(classes=CLASSES, train=40, test=30)

    def labelled(images: Images) -> Images:
        inputs = (drawn.normalise(images.images),)
        return replace(images, labels=torch.func.functional_call(network(), teacher, inputs).argmax(1))

    return replace(drawn, train=labelled(drawn.train), test=labelled(drawn.test))


def turned(symmetry: Symmetry, seed: int) -> Permutation:
    return Permutation.random(symmetry, generator(seed, "turned"))


def loss_by_hand(of: Subject, state: State, split: str) -> float:
    images = of.splits.images[split]
    inputs = of.dataset.normalise(images.images).flatten(1).double().numpy()
    w1, b1, w2, b2 = (state[name].double().numpy() for name in ("1.weight", "1.bias", "3.weight", "3.bias"))
    logits = np.maximum(inputs @ w1.T + b1, 0) @ w2.T + b2
    rows = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), images.labels.numpy()]
    return float(rows.mean())


def barrier_by_hand(of: Subject, fixed: State, moving: State, split: str = "test") -> float:
    """On a grid of 0, 1/2 and 1."""
    ends = [loss_by_hand(of, state, split) for state in (fixed, moving)]
    return max(0.0, loss_by_hand(of, mean([fixed, moving]), split) - sum(ends) / 2)


def value(findings: Sequence[Finding], what: str, **more: Any) -> float:
    (found,) = (
        one.value
        for one in findings
        if (one.what, one.split, one.metric, dict(one.more)) == (what, "test", "loss", more)
    )
    return found


def test_a_permutation_is_tried_at_every_moment(symmetry: Symmetry, tmp_path: Path) -> None:
    fixed = [{name: scale * tensor for name, tensor in drawn(0).items()} for scale in (1, 1.1, 1.2)]
    turns = [turned(symmetry, 0), turned(symmetry, 0), turned(symmetry, 3)]
    assert turns[0] != turns[2]
    moving = [turn.inverse().apply(state) for turn, state in zip(turns, fixed, strict=True)]
    shown: list[tuple[int, int]] = []

    def match(first: Sequence[State], second: Sequence[State], on_step: OnStep) -> Matching:
        shown.append((len(first), len(second)))
        return Matching(turns[len(first) - 1], 0.0, [])

    of = subject(
        network(),
        [fixed[-1], fixed[-1]],
        dataset=taught(drawn(0)),
        symmetry=symmetry,
        trained=[fixed, moving],
        moments=Moments("epoch", (1.0, 2.0, 5.0)),
        match=match,
    )
    steps: list[object] = []
    option = SimultaneousConnectivity()
    found = option(of, tmp_path, steps.append)
    assert len(steps) == option.steps(of) == 12
    assert shown == [(1, 1), (2, 2), (3, 3)]
    expected: dict[tuple[float, float], float] = {}
    for (i, at), (j, applied) in itertools.product(enumerate(of.moments.values), repeat=2):
        expected[at, applied] = barrier_by_hand(of, fixed[j], turns[i].apply(moving[j]))
        assert value(found, "moment_barrier", axis="epoch", found_at=at, applied_at=applied) == pytest.approx(
            expected[at, applied], abs=1e-5
        )
    none = [barrier_by_hand(of, *states) for states in zip(fixed, moving, strict=True)]
    assert [value(found, "moment_barrier", axis="epoch", applied_at=at) for at in of.moments.values] == pytest.approx(
        none, abs=1e-5
    )
    # The first two have one permutation in common, the third has another.
    assert expected[1.0, 2.0] == pytest.approx(0, abs=1e-6)
    assert expected[1.0, 5.0] > 0.01
    assert value(found, "own_barrier") == pytest.approx(0, abs=1e-6)
    worst = min(max(expected[at, applied] for applied in of.moments.values) for at in of.moments.values)
    assert value(found, "simultaneous_barrier") == pytest.approx(worst, abs=1e-5)
    assert worst > 0.01
    last = [expected[5.0, applied] for applied in of.moments.values]
    assert value(found, "last_barrier") == pytest.approx(sum(last) / 3, abs=1e-5)
    assert value(found, "unaligned_barrier") == pytest.approx(sum(none) / 3, abs=1e-5)


def test_layers_of_two_moments_are_put_together(symmetry: Symmetry, tmp_path: Path) -> None:
    fixed = [{name: scale * tensor for name, tensor in drawn(0).items()} for scale in (0.5, 1)]
    turn = turned(symmetry, 3)
    moving = [turn.inverse().apply(state) for state in fixed]
    of = subject(
        network(),
        [fixed[-1], fixed[-1]],
        dataset=taught(drawn(0)),
        symmetry=symmetry,
        trained=[fixed, moving],
        moments=Moments("epoch", (1.0, 2.0)),
        match=lambda first, second, on_step: Matching(turn, 0.0, []),
    )
    steps: list[object] = []
    option = Frankenstein()
    found = option(of, tmp_path, steps.append)
    # Of two layers, one is from the first epoch: the lower or the upper one; aligned and not.
    assert len(steps) == option.steps(of) == 4
    for order, layer, early in (("bottom", "1", 1), ("top", "3", 3)):
        parts = [
            {name: (states[0] if name.startswith(str(early)) else states[1])[name] for name in states[0]}
            for states in (fixed, moving)
        ]
        expected = barrier_by_hand(of, *parts)
        more = {"moment": 1.0, "order": order, "layer": layer, "layers": 1, "axis": "epoch"}
        assert value(found, "mixed_barrier", aligned="unaligned", **more) == pytest.approx(expected, abs=1e-5)
        assert value(found, "mixed_barrier", aligned="aligned", **more) == pytest.approx(0, abs=1e-6)
        assert expected > 0.01
    assert value(found, "aligned_mixed_mean_barrier") == pytest.approx(0, abs=1e-6)


def test_lines_that_a_killed_attempt_measured_are_not_measured_again(symmetry: Symmetry, tmp_path: Path) -> None:
    asked = 0

    def corrected(state: State, weights: Sequence[float]) -> State:
        nonlocal asked
        asked += 1
        return dict(state)

    networks = [drawn(seed) for seed in range(3)]
    of = subject(
        network(), networks, None, data(classes=CLASSES, train=9, test=9), corrected, symmetry=symmetry
    )  # fmt: skip
    whole = StrongConnectivity()(of, tmp_path, lambda numbers: None)
    file = tmp_path / "lines.csv"
    text = file.read_text()
    assert asked == 6 * 3
    lines = text.splitlines(keepends=True)
    # Two whole lines of 3 points and 2 splits, half of a third, and a torn row.
    file.write_text("".join(lines[: 1 + 2 * 6 + 3]) + lines[16][:20])
    asked = 0
    assert StrongConnectivity()(of, tmp_path, lambda numbers: None) == whole
    assert asked == 4 * 3
    assert file.read_text() == text


def test_strong_connectivity_is_between_those_that_are_aligned_to_the_first(symmetry: Symmetry, tmp_path: Path) -> None:
    trained = [drawn(seed) for seed in range(3)]
    aligned = [drawn(seed + 10) for seed in range(3)]
    of = subject(
        network(),
        aligned,
        dataset=data(classes=CLASSES, train=20, test=15),
        symmetry=symmetry,
        trained=[(state,) for state in trained],
    )
    steps: list[object] = []
    found = StrongConnectivity()(of, tmp_path, steps.append)
    assert len(steps) == StrongConnectivity().steps(of) == 6
    weak = [barrier_by_hand(of, aligned[0], aligned[k]) for k in (1, 2)]
    strong = barrier_by_hand(of, aligned[1], aligned[2])
    unaligned = [barrier_by_hand(of, *pair) for pair in itertools.combinations(trained, 2)]
    assert value(found, "weak_mean_barrier") == pytest.approx(sum(weak) / 2, abs=1e-5)
    assert value(found, "weak_largest_barrier") == pytest.approx(max(weak), abs=1e-5)
    assert value(found, "strong_largest_barrier") == pytest.approx(strong, abs=1e-5)
    assert value(found, "unaligned_mean_barrier") == pytest.approx(sum(unaligned) / 3, abs=1e-5)
    assert value(found, "line_barrier", kind="strong", line="1-2") == pytest.approx(strong, abs=1e-5)


def test_chains_compose_what_brings_neighbours_together(symmetry: Symmetry, tmp_path: Path) -> None:
    first = drawn(0)
    turns = [turned(symmetry, seed) for seed in range(4)]
    trained = [turn.apply(first) for turn in turns]

    def match(fixed: Sequence[State], moving: Sequence[State], on_step: OnStep) -> Matching:
        i, j = (next(n for n, one in enumerate(trained) if one is states[-1]) for states in (fixed, moving))
        assert i < j
        return Matching(turns[i].compose(turns[j].inverse()), 0.0, [])

    of = subject(
        network(),
        [first] * 4,
        dataset=taught(drawn(0)),
        symmetry=symmetry,
        trained=[(state,) for state in trained],
        match=match,
    )
    steps: list[object] = []
    found = Transitivity(longest=3)(of, tmp_path, steps.append)
    assert len(steps) == Transitivity(longest=3).steps(of)
    lengths = [one.more["length"] for one in found if one.what == "chain_barrier"]
    # 4 networks have 6 chains of one step, 12 of two and 12 of three; two splits, loss and error.
    assert [lengths.count(length) // 4 for length in (1, 2, 3)] == [6, 12, 12]
    assert all(value(found, "chain_mean_barrier", length=length) == pytest.approx(0, abs=1e-6) for length in (1, 2, 3))
    assert barrier_by_hand(of, trained[0], trained[1]) > 0.01


def test_a_composed_permutation_is_that_of_numpy(symmetry: Symmetry) -> None:
    (group,) = symmetry.groups
    steps = {(i, j): turned(symmetry, 10 * i + j) for i in range(3) for j in range(3)}
    found = composed((2, 0, 1), lambda fixed, moving: steps[fixed, moving])
    # Row i of the result of (2, 0) is row p[i]; then row p[i] of the result of (0, 1) is row q[p[i]].
    p, q = steps[2, 0][group].numpy(), steps[0, 1][group].numpy()
    assert found[group].numpy().tolist() == q[p].tolist()


@pytest.mark.parametrize(("networks", "length", "count"), [(5, 2, 7), (5, 4, 20), (6, 5, 20), (3, 2, 100)])
def test_chains_are_different_and_go_through_different_networks(networks: int, length: int, count: int) -> None:
    found = draw_chains(networks, length, count, generator(0, "chains"))
    assert len(found) == min(count, math.perm(networks, length + 1) // 2)
    assert len(set(found)) == len(found)
    for chain in found:
        assert len(set(chain)) == length + 1 == len(chain)
        assert set(chain) <= set(range(networks))
        assert chain[::-1] not in found
    assert found == draw_chains(networks, length, count, generator(0, "chains"))


def test_mixtures_of_all_networks_are_compared_with_them(symmetry: Symmetry, tmp_path: Path) -> None:
    networks = [drawn(seed) for seed in range(3)]
    of = subject(network(), networks, dataset=data(classes=CLASSES, train=20, test=15), symmetry=symmetry)
    steps: list[object] = []
    found = ConvexHull(samples=8)(of, tmp_path, steps.append)
    assert len(steps) == ConvexHull(samples=8).steps(of) == 11
    with (tmp_path / "mixtures.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    weights = np.array([[float(row[f"weight_{label}"]) for label in range(3)] for row in rows])
    assert weights[:3].tolist() == np.eye(3).tolist()
    assert weights.sum(1) == pytest.approx(np.ones(11))
    assert weights.min() >= 0
    alone = np.array([loss_by_hand(of, state, "test") for state in networks])
    excess = []
    for shares, row in zip(weights, rows, strict=True):
        mixture = {
            name: sum(share * state[name] for share, state in zip(shares.tolist(), networks, strict=True))
            for name in networks[0]
        }
        loss = loss_by_hand(of, mixture, "test")
        assert float(row["loss"]) == pytest.approx(loss, abs=1e-5)
        excess.append(loss - shares @ alone)
    assert value(found, "hull_mean_excess") == pytest.approx(np.mean(excess[3:]), abs=1e-5)
    assert value(found, "hull_largest_excess") == pytest.approx(max(excess[3:]), abs=1e-5)


def test_a_large_concentration_stays_near_the_mean(symmetry: Symmetry, tmp_path: Path) -> None:
    networks = [drawn(seed) for seed in range(3)]
    of = subject(network(), networks, dataset=data(classes=CLASSES, train=9, test=9), symmetry=symmetry)
    ConvexHull(samples=5, concentration=1e6)(of, tmp_path, lambda numbers: None)
    with (tmp_path / "mixtures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[6:]
    assert all(float(row["weight_1"]) == pytest.approx(1 / 3, abs=0.01) for row in rows)


def test_what_cannot_be_tried_is_refused(symmetry: Symmetry) -> None:
    networks = [drawn(0), drawn(1)]
    two = Moments("epoch", (1.0, 2.0))
    with pytest.raises(UserError, match=r"only the last is kept; choose endpoints=trajectory"):
        SimultaneousConnectivity().check(subject(network(), networks, symmetry=symmetry, alignment=NoAlignment()))
    with pytest.raises(UserError, match="there is one moment or one layer"):
        Frankenstein().check(subject(network(), networks, symmetry=symmetry))
    with pytest.raises(UserError, match="give bottom, top, or both"):
        Frankenstein(orders=["top", "top"])
    soft = subject(network(), networks, symmetry=symmetry, alignment=Zip(), moments=two)
    for option in (SimultaneousConnectivity(), Transitivity(longest=2), Frankenstein()):
        with pytest.raises(UserError, match="the chosen alignment gives none"):
            option.check(soft)
    SimultaneousConnectivity().check(
        subject(network(), networks, symmetry=symmetry, alignment=WeightMatching(), moments=two)
    )
    with pytest.raises(UserError, match="there are 2; give at least three"):
        StrongConnectivity().check(soft)
    with pytest.raises(UserError, match="needs 6 networks, and there are 2"):
        Transitivity().check(subject(network(), networks, symmetry=symmetry))
    for option_type in (SimultaneousConnectivity, StrongConnectivity, Transitivity, Frankenstein):
        with pytest.raises(UserError, match="a grid of 4 points"):
            option_type(grid=4)


def test_the_barrier_of_a_line_may_be_its_midpoint_and_then_be_negative(symmetry: Symmetry, tmp_path: Path) -> None:
    networks = [drawn(0), drawn(1), drawn(2)]
    of = subject(network(), networks, dataset=taught(mean(networks[1:])), symmetry=symmetry)
    first, second = networks[1:]
    losses = [loss_by_hand(of, mean([first, second], [1 - t, t]), "test") for t in (0, 0.25, 0.5, 0.75, 1)]
    of_ends = (losses[0] + losses[-1]) / 2
    excess = [loss - (4 - step) / 4 * losses[0] - step / 4 * losses[-1] for step, loss in enumerate(losses)]
    expected = {
        "barrier": max(excess),
        "barrier_mean_endpoints": max(losses) - of_ends,
        "barrier_midpoint": losses[2] - of_ends,
    }
    assert expected["barrier_midpoint"] < 0 == pytest.approx(expected["barrier"])
    assert expected["barrier_mean_endpoints"] > 0
    for name, by_hand in expected.items():
        folder = tmp_path / name
        folder.mkdir()
        found = StrongConnectivity(grid=5, barrier=name)(of, folder, lambda numbers: None)  # type: ignore[arg-type]
        assert value(found, "strong_mean_barrier") == pytest.approx(by_hand, abs=1e-5)
        assert value(found, "line_barrier", kind="strong", line="1-2") == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("name", ["strong_connectivity", "simultaneous_connectivity", "transitivity", "frankenstein"])
def test_the_usual_barrier_leaves_keys_as_they_were(name: str) -> None:
    node: dict[str, Any] = {
        "_target_": f"lmc.analysis.{name}.{''.join(part.title() for part in name.split('_'))}",
        **({"orders": ["bottom"]} if name == "frankenstein" else {}),
    }
    assert "barrier" not in config.identity({**node, "barrier": "barrier"}, name)
    assert config.identity({**node, "barrier": "barrier_midpoint"}, name)["barrier"] == "barrier_midpoint"
