import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, minimize_scalar

from lmc import config
from lmc.alignment.frank_wolfe import FrankWolfe
from lmc.alignment.none import NoAlignment
from lmc.alignment.problem import Problem
from lmc.alignment.similarity.mixture import centre
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.merge.cycle_consistent import CycleConsistent, _Universe
from lmc.merge.reference import Reference
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

Draw = Callable[[Symmetry, int], State]
Pose = Callable[..., Problem]
NAMES = ["mlp", "residual", "concatenation", "self-coupled", "three groups", "packed attention", "grouped convolution"]


def drawn(symmetry: Symmetry, draw: Draw, networks: Any, count: int = 3) -> list[State]:
    return [networks.double(draw(symmetry, number)) for number in range(count)]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_and_the_step_are_those_of_the_objective(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, networks: Any, name: str
):
    """At permutations against the definition, between them against differences and a grid."""
    symmetry = symmetries[name]
    given = drawn(symmetry, draw, networks)
    universe = _Universe(given, pose(symmetry), first_stays=False)
    generator = torch.Generator().manual_seed(0)
    chosen = [[Permutation.random(symmetry, generator) for _ in given] for _ in range(3)]
    for permutations in chosen:
        expected = networks.agreement(given, permutations)
        assert universe.at(universe.begin(permutations)) == pytest.approx(expected, abs=1e-8)
    # Away from the border, where blocks that no mixture has met yet make the objective no smooth function.
    middle = [centre(symmetry, torch.zeros((), dtype=torch.float64))] * 3
    mixtures = universe.towards(universe.towards(middle, chosen[1], 0.4), chosen[2], 0.3)
    value, gradients = universe.gradient(mixtures)
    assert value == pytest.approx(universe.at(mixtures), abs=1e-8)
    for vertex in (universe.best(gradients), chosen[0]):
        slope = universe.rise(gradients, mixtures, vertex)
        steps = [universe.at(universe.towards(mixtures, vertex, size)) for size in (1e-4, 2e-4)]
        assert slope == pytest.approx((4 * steps[0] - steps[1] - 3 * value) / 2e-4, rel=1e-3, abs=1e-2)
        size = universe.step_size(mixtures, vertex, value, slope)
        grid = max(universe.at(universe.towards(mixtures, vertex, t)) for t in np.linspace(0, 1, 26))
        if slope > 0:
            assert universe.at(universe.towards(mixtures, vertex, size)) >= grid - 1e-7


@pytest.mark.parametrize("start", ["identity", "centre", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_the_mixtures_only_rise_and_what_follows_does_too(
    symmetries: dict[str, Symmetry],
    draw: Draw,
    pose: Pose,
    networks: Any,
    name: str,
    start: Any,
):
    symmetry = symmetries[name]
    given = drawn(symmetry, draw, networks)
    trace = CycleConsistent(start=start, max_steps=15)(given, WeightMatching(), pose(symmetry)).trace
    steps = [record for record in trace if "step" in record]
    (rounded,) = (record for record in trace if "rounded" in record)
    after = trace[trace.index(rounded) :]
    for part in (steps, after):
        assert all(b["objective"] >= a["objective"] - 1e-8 for a, b in itertools.pairwise(part))
    assert all(0 <= record["step_size"] <= 1 for record in steps)
    assert rounded["objective"] >= rounded["rounded"]
    if start != "centre":
        assert rounded["objective"] >= steps[0]["objective"] - 1e-8  # that is where it began


def test_of_two_networks_it_is_frank_wolfe(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, networks: Any):
    for name in ("mlp", "residual", "concatenation"):
        given = drawn(symmetries[name], draw, networks, 2)
        problem = pose(symmetries[name])
        pair = FrankWolfe(finish="none")(*given, problem)
        frame = CycleConsistent(finish="none")(given, NoAlignment(), problem)
        expected = [record["objective"] for record in pair.trace if "gap" in record]
        assert [r["objective"] for r in frame.trace if "gap" in r] == pytest.approx(expected, abs=1e-8)
        assert frame.permutations[1] == pair.permutation


def test_steps_are_those_of_an_independent_implementation(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, networks: Any
):
    """C2M3 for three perceptrons in NumPy, from the identity, the step size by a grid and a bounded search."""
    given = drawn(symmetries["mlp"], draw, networks)
    nets = [{name: tensor.numpy() for name, tensor in network.items()} for network in given]

    def mixed(net: dict[str, np.ndarray], p: np.ndarray, q: np.ndarray) -> list[np.ndarray]:
        hidden = [p @ net["1.w"], p @ net["1.b"], q @ net["2.w"] @ p.T, q @ net["2.b"]]
        return [*hidden, net["3.w"] @ q.T]

    def value(matrices: list[tuple[np.ndarray, np.ndarray]]) -> float:
        every = [mixed(net, *pair) for net, pair in zip(nets, matrices, strict=True)]
        return sum(float((a * b).sum()) for x, y in itertools.combinations(every, 2) for a, b in zip(x, y, strict=True))

    def end(slope: np.ndarray) -> np.ndarray:
        vertex = np.zeros_like(slope)
        vertex[linear_sum_assignment(slope, maximize=True)] = 1
        return vertex

    def between(t: float) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(p + t * (a - p), q + t * (b - q)) for (p, q), (a, b) in zip(matrices, vertex, strict=True)]

    matrices = [(np.eye(5), np.eye(4)) for _ in nets]
    expected = []
    for _ in range(4):
        expected.append(value(matrices))
        every = [mixed(net, *pair) for net, pair in zip(nets, matrices, strict=True)]
        vertex = []
        for number, (net, (p, q)) in enumerate(zip(nets, matrices, strict=True)):
            w1, b1, w2, b2, w3 = (sum(o[k] for n, o in enumerate(every) if n != number) for k in range(5))
            by_p = w1 @ net["1.w"].T + np.outer(b1, net["1.b"]) + w2.T @ q @ net["2.w"]
            by_q = w2 @ p @ net["2.w"].T + np.outer(b2, net["2.b"]) + w3.T @ net["3.w"]
            vertex.append((end(by_p), end(by_q)))
        grid = np.linspace(0, 1, 101)
        near = float(grid[int(np.argmax([value(between(t)) for t in grid]))])
        bounds = (max(0.0, near - 0.01), min(1.0, near + 0.01))
        size = minimize_scalar(lambda t: -value(between(t)), bounds=bounds, method="bounded").x
        matrices = between(float(size))
    found = CycleConsistent(start="identity", finish="none")(given, NoAlignment(), pose(symmetries["mlp"])).trace
    assert [record["objective"] for record in found[:4]] == pytest.approx(expected, rel=1e-4)


def test_the_reference_is_where_it_begins(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, networks: Any):
    symmetry, alignment = symmetries["residual"], WeightMatching()
    given = drawn(symmetry, draw, networks)
    begun = Reference()(given, alignment, pose(symmetry))
    found = CycleConsistent(start="reference", finish="none")(given, alignment, pose(symmetry))
    assert [r["objective"] for r in found.trace[:2]] == [r["objective"] for r in begun.trace]
    assert found.trace[2]["objective"] == pytest.approx(begun.objective, abs=1e-8)
    assert found.objective >= begun.objective


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("start", "middle"),
        ("max_steps", 0),
        ("patience", 0),
        ("tolerance", -1.0),
        ("finish", "round"),
        ("max_rounds", 0),
    ],
)
def test_unusable_settings_are_named(setting: str, value: object):
    with pytest.raises(UserError, match=rf"merge\.{setting}"):
        config.build({"_target_": "lmc.merge.cycle_consistent.CycleConsistent", setting: value}, "merge")
