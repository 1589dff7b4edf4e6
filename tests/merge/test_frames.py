"""What every method that brings networks into one frame has to keep."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from lmc import state as states_of
from lmc.alignment.canonical_correlation import CanonicalCorrelation
from lmc.alignment.none import NoAlignment
from lmc.alignment.problem import Matching, Problem
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.merge.base import JointMerge, rebased
from lmc.merge.cycle_consistent import CycleConsistent
from lmc.merge.cycles import cycle_error
from lmc.merge.many import MergeMany
from lmc.merge.reference import Reference
from lmc.merge.sequential import Sequential
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

Draw = Callable[[Symmetry, int], State]
Pose = Callable[..., Problem]
Plant = Callable[[Symmetry, State, int, float], tuple[State, Permutation]]
METHODS: dict[str, JointMerge] = {
    "reference": Reference(),
    "sequential": Sequential(),
    "many": MergeMany(),
    "cycle consistent": CycleConsistent(),
    "cycle consistent, not finished": CycleConsistent(finish="none"),
    "cycle consistent from the identity": CycleConsistent(start="identity"),
    "cycle consistent from the reference": CycleConsistent(start="reference"),
}
PLAIN = ["mlp", "residual", "concatenation", "self-coupled", "three groups"]
BLOCKS = ["packed attention", "grouped convolution"]
ALIGNMENT = WeightMatching()


@pytest.fixture(scope="module")
def perceptron(build: Callable[..., Symmetry]) -> Symmetry:
    return build(
        {"a": 20, "b": 16}, {"1.w": ("a", 10), "1.b": ("a",), "2.w": ("b", "a"), "2.b": ("b",), "3.w": (5, "b")}
    )


def drawn(symmetry: Symmetry, draw: Draw, networks: Any, count: int = 3, seed: int = 0) -> list[State]:
    return [networks.double(draw(symmetry, 10 * seed + number)) for number in range(count)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", [*PLAIN, *BLOCKS])
def test_what_is_reported_is_true(
    symmetries: dict[str, Symmetry],
    draw: Draw,
    pose: Pose,
    networks: Any,
    method: str,
    name: str,
):
    symmetry = symmetries[name]
    given = drawn(symmetry, draw, networks)
    before = [{key: tensor.clone() for key, tensor in network.items()} for network in given]
    seen: list[Mapping[str, float]] = []
    random = torch.random.get_rng_state()
    found = METHODS[method](given, ALIGNMENT, pose(symmetry), seen.append)
    again = METHODS[method](given, ALIGNMENT, pose(symmetry))
    assert torch.equal(random, torch.random.get_rng_state())
    assert found.permutations == again.permutations
    assert [record["objective"] for record in again.trace] == [record["objective"] for record in found.trace]
    assert all(torch.equal(a[key], b[key]) for a, b in zip(given, before, strict=True) for key in a)
    assert found.complete
    assert seen == found.trace
    assert found.permutations[0] == Permutation.identity(symmetry)
    assert found.objective == pytest.approx(networks.agreement(given, found.permutations), abs=1e-8)
    assert found.trace[-1]["objective"] == pytest.approx(found.objective, abs=1e-8)
    assert found.objective > networks.agreement(given, [Permutation.identity(symmetry)] * 3)
    pairs = {
        (i, j): found.permutations[i].inverse().compose(found.permutations[j])
        for i, j in itertools.combinations(range(3), 2)
    }
    assert cycle_error(pairs) == 0


@pytest.mark.parametrize("noise", [0.0, 0.1])
@pytest.mark.parametrize("method", METHODS)
def test_permuted_copies_are_brought_back(
    perceptron: Symmetry, draw: Draw, pose: Pose, plant: Plant, method: str, noise: float
):
    for seed in range(2):
        source = draw(perceptron, seed)
        copies = [plant(perceptron, source, 10 * seed + number, noise) for number in range(4)]
        found = METHODS[method]([copy for copy, _ in copies], ALIGNMENT, pose(perceptron))
        assert found.permutations == rebased([truth for _, truth in copies])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", BLOCKS)
def test_permuted_copies_with_blocks_are_brought_back(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, plant: Plant, networks: Any, name: str, method: str
):
    symmetry = symmetries[name]
    assert symmetry.outer
    source = networks.double(draw(symmetry, 0))
    copies = [plant(symmetry, source, number, 0.01) for number in range(3)]
    found = METHODS[method]([networks.double(copy) for copy, _ in copies], ALIGNMENT, pose(symmetry))
    assert found.permutations == rebased([truth for _, truth in copies])


@pytest.mark.parametrize("method", METHODS)
def test_no_frame_is_better_than_brute_force(
    build: Callable[..., Symmetry], draw: Draw, pose: Pose, plant: Plant, networks: Any, method: str
):
    """Over all joint permutations of three networks with three units; of near copies the best one is found."""
    symmetry = build({"a": 3}, {"1.w": ("a", 4), "1.b": ("a",), "2.w": (2, "a")})
    every = [Permutation(symmetry, {"a": torch.tensor(order)}) for order in itertools.permutations(range(3))]

    def best(given: list[State]) -> float:
        choices = itertools.product([Permutation.identity(symmetry)], every, every)
        return max(networks.agreement(given, chosen) for chosen in choices)

    optimal = 0
    for seed in range(8):
        given = drawn(symmetry, draw, networks, seed=seed)
        found, bound = METHODS[method](given, ALIGNMENT, pose(symmetry)).objective, best(given)
        assert found <= bound + 1e-9
        optimal += found > bound - 1e-9
        easy = [networks.double(plant(symmetry, given[0], number, 0.1)[0]) for number in range(3)]
        assert METHODS[method](easy, ALIGNMENT, pose(symmetry)).objective == pytest.approx(best(easy), abs=1e-9)
    assert method in ("reference", "sequential") or optimal >= 6


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("method", ["reference", "sequential", "cycle consistent"])
def test_the_order_of_the_units_of_no_network_matters(
    perceptron: Symmetry, draw: Draw, pose: Pose, networks: Any, method: str, number: int
):
    """With an alignment that does not know the order either, the mean is the same network."""
    given = drawn(perceptron, draw, networks)
    shift = Permutation.random(perceptron, torch.Generator().manual_seed(3))
    moved = [shift.apply(network) if place == number else network for place, network in enumerate(given)]
    means = []
    for states in (given, moved):
        frame = METHODS[method](states, WeightMatching(restarts=1, start="centre"), pose(perceptron))
        means.append(states_of.mean([p.apply(s) for p, s in zip(frame.permutations, states, strict=True)]))
    expected = shift.apply(means[0]) if number == 0 else means[0]
    for name, tensor in means[1].items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_an_interrupted_search_returns_what_it_has(
    perceptron: Symmetry, draw: Draw, pose: Pose, networks: Any, method: str
):
    given = drawn(perceptron, draw, networks)
    whole = METHODS[method](given, ALIGNMENT, pose(perceptron))
    for last in sorted({1, len(whole.trace) // 2, len(whole.trace) - 1}):
        seen: list[Mapping[str, float]] = []

        def stop(record: Mapping[str, float], seen: list = seen, last: int = last) -> None:
            seen.append(record)
            if len(seen) == last:
                raise KeyboardInterrupt

        found = METHODS[method](given, ALIGNMENT, pose(perceptron), stop)
        assert not found.complete
        assert [record["objective"] for record in seen] == [record["objective"] for record in whole.trace[:last]]
        assert found.trace == seen
        assert found.permutations[0] == Permutation.identity(perceptron)
        assert found.objective == pytest.approx(networks.agreement(given, found.permutations), abs=1e-8)
        assert found.objective >= networks.agreement(given, [Permutation.identity(perceptron)] * 3) - 1e-8


class Interrupted(NoAlignment):
    """An alignment during which Ctrl-C was pressed: it returns what it had."""

    def __call__(self, *arguments: Any, **named: Any) -> Matching:
        best = WeightMatching(restarts=1)(*arguments, **named)
        return Matching(best.transform, best.objective, best.trace, complete=False)


@pytest.mark.parametrize("method", ["reference", "sequential", "cycle consistent from the reference"])
def test_an_interrupted_alignment_ends_the_whole_and_is_kept(
    perceptron: Symmetry, draw: Draw, pose: Pose, networks: Any, method: str
):
    given = drawn(perceptron, draw, networks)
    found = METHODS[method](given, Interrupted(), pose(perceptron))
    assert not found.complete
    assert len(found.trace) == 1
    first = WeightMatching(restarts=1)(given[0], given[1], pose(perceptron)).permutation
    assert found.permutations == (Permutation.identity(perceptron), first, Permutation.identity(perceptron))


@pytest.mark.parametrize("method", METHODS)
def test_soft_alignments_are_refused(perceptron: Symmetry, draw: Draw, pose: Pose, networks: Any, method: str):
    with pytest.raises(UserError, match=r"merge=\w+ needs an alignment that gives a permutation.*CanonicalCorrelation"):
        METHODS[method].check(perceptron, CanonicalCorrelation())
    with pytest.raises(UserError, match="CanonicalCorrelation"):
        METHODS[method](drawn(perceptron, draw, networks), CanonicalCorrelation(), pose(perceptron))
    METHODS[method].check(perceptron, ALIGNMENT)


@pytest.mark.parametrize("method", ["reference", "sequential"])
def test_without_an_alignment_the_networks_stay(
    perceptron: Symmetry, draw: Draw, pose: Pose, networks: Any, method: str
):
    given = drawn(perceptron, draw, networks)
    METHODS[method].check(perceptron, NoAlignment())
    found = METHODS[method](given, NoAlignment(), pose(perceptron))
    assert found.permutations == (Permutation.identity(perceptron),) * 3
    assert found.objective == pytest.approx(networks.agreement(given, found.permutations), abs=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_networks_that_do_not_fit_are_refused(perceptron: Symmetry, draw: Draw, pose: Pose, networks: Any, method: str):
    given = drawn(perceptron, draw, networks)
    broken = {**given[2], "2.b": torch.full((16,), float("nan"), dtype=torch.float64)}
    with pytest.raises(UserError, match=r"network 3 of 3 cannot be aligned: tensor '2\.b' holds NaN"):
        METHODS[method]([*given[:2], broken], ALIGNMENT, pose(perceptron))
    with pytest.raises(UserError, match=r"network 3 of 3 .*has no tensor"):
        METHODS[method]([*given[:2], {n: t for n, t in given[2].items() if n != "2.b"}], ALIGNMENT, pose(perceptron))


@pytest.mark.parametrize("method", METHODS)
def test_networks_without_groups_have_nothing_to_bring_together(pose: Pose, method: str):
    symmetry = Symmetry({}, {"w": (3, 2)}, frozenset({"w"}))
    found = METHODS[method]([{"w": torch.full((3, 2), float(n))} for n in range(3)], ALIGNMENT, pose(symmetry))
    assert (len(found.permutations), found.objective) == (3, 0.0)
