import itertools
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from lmc import config
from lmc.alignment.none import NoAlignment
from lmc.alignment.problem import AnySymmetry, Matching, Problem
from lmc.alignment.random import RandomPermutation
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.merge.many import MergeMany
from lmc.merge.placed import Placed
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

Draw = Callable[[Symmetry, int], State]
Pose = Callable[..., Problem]
GIT_REBASIN = WeightMatching(restarts=1, start="identity")


@pytest.mark.parametrize("alignment", [WeightMatching(), GIT_REBASIN, RandomPermutation()], ids=["5", "1", "random"])
@pytest.mark.parametrize("name", ["mlp", "residual", "self-coupled", "packed attention", "grouped convolution"])
def test_no_step_loses_and_a_bad_one_is_not_taken(
    symmetries: dict[str, Symmetry],
    draw: Draw,
    pose: Pose,
    networks: Any,
    alignment: Any,
    name: str,
):
    symmetry = symmetries[name]
    given = [networks.double(draw(symmetry, seed)) for seed in range(4)]
    found = MergeMany()(given, alignment, pose(symmetry))
    start = networks.agreement(given, [Permutation.identity(symmetry)] * 4)
    objectives = [start, *(record["objective"] for record in found.trace)]
    for record, (before, after) in zip(found.trace, itertools.pairwise(objectives), strict=True):
        assert record["gain"] >= 0
        assert after - before == pytest.approx(record["gain"], abs=1e-8)
    rounds = [[r["network"] for r in found.trace if r["round"] == n] for n in range(int(found.trace[-1]["round"]) + 1)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in rounds)
    assert all(record["gain"] < 1e-6 for record in found.trace[-4:])  # the round that settled it


def test_in_the_end_no_network_can_be_aligned_to_the_others(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, networks: Any
):
    """A fixed point of Algorithm 3: aligning any network to the mean of the others moves nothing."""
    symmetry = symmetries["residual"]
    given = [networks.double(draw(symmetry, seed)) for seed in range(4)]
    found = MergeMany()(given, GIT_REBASIN, pose(symmetry))
    moved = [p.apply(s) for p, s in zip(found.permutations, given, strict=True)]
    for number in range(4):
        others = [state for place, state in enumerate(moved) if place != number]
        mean = {name: sum(state[name] for state in others) / 3 for name in moved[0]}
        again = GIT_REBASIN(mean, moved[number], pose(symmetry)).permutation
        assert again == Permutation.identity(symmetry)


def test_the_gain_is_what_the_distances_lose(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, networks: Any):
    symmetry = symmetries["mlp"]
    given = [networks.double(draw(symmetry, seed)) for seed in range(3)]
    placed = Placed(given, pose(symmetry))

    def distances() -> float:
        pairs = itertools.combinations(placed.moved, 2)
        return sum((a[name] - b[name]).square().sum().item() for a, b in pairs for name in symmetry.axes_of)

    generator = torch.Generator().manual_seed(0)
    for number in (0, 2, 1, 2):
        permutation = Permutation.random(symmetry, generator)
        before, gain = (placed.objective, distances()), placed.gain(number, permutation)
        placed.move(number, permutation)
        assert placed.objective - before[0] == pytest.approx(gain, abs=1e-9)
        assert before[1] - distances() == pytest.approx(2 * gain, abs=1e-9)
        assert placed.objective == pytest.approx(networks.agreement(given, placed.permutations), abs=1e-9)
        assert abs(placed.objective) <= placed.bound


def test_an_alignment_draws_anew_in_every_step(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, networks: Any):
    seeds: list[int] = []

    class Noted(AnySymmetry):
        needs_data = False

        def __call__(self, fixed: State, moving: State, problem: Problem, on_step: object = None) -> Matching:
            seeds.append(problem.seed)
            return GIT_REBASIN(fixed, moving, problem)

    given = [networks.double(draw(symmetries["mlp"], seed)) for seed in range(3)]
    found = MergeMany()(given, Noted(), pose(symmetries["mlp"]))
    assert len(set(seeds)) == len(seeds) == len(found.trace)


def test_an_alignment_that_aligns_nothing_is_refused(symmetries: dict[str, Symmetry]):
    with pytest.raises(UserError, match="merge=many repeats an alignment, and alignment=none leaves"):
        MergeMany().check(symmetries["mlp"], NoAlignment())


def test_an_end_before_it_has_settled_is_said(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, networks: Any, caplog: pytest.LogCaptureFixture
):
    given = [networks.double(draw(symmetries["mlp"], seed)) for seed in range(3)]
    found = MergeMany(max_rounds=1)(given, GIT_REBASIN, pose(symmetries["mlp"]))
    assert len(found.trace) == 3
    assert "merge.max_rounds" in caplog.text


def test_an_interrupted_alignment_ends_the_rounds_and_is_kept(
    symmetries: dict[str, Symmetry], draw: Draw, pose: Pose, networks: Any
):
    class Interrupted(AnySymmetry):
        needs_data = False

        def __call__(self, fixed: State, moving: State, problem: Problem, on_step: object = None) -> Matching:
            best = GIT_REBASIN(fixed, moving, problem)
            return Matching(best.transform, best.objective, best.trace, complete=False)

    given = [networks.double(draw(symmetries["mlp"], seed)) for seed in range(3)]
    found = MergeMany()(given, Interrupted(), pose(symmetries["mlp"]))
    whole = MergeMany()(given, GIT_REBASIN, pose(symmetries["mlp"]))
    assert (found.complete, len(found.trace)) == (False, 1)
    assert found.objective == pytest.approx(whole.trace[0]["objective"], abs=1e-9)


@pytest.mark.parametrize(("setting", "value"), [("max_rounds", 0), ("tolerance", -1.0)])
def test_unusable_settings_are_named(setting: str, value: object):
    with pytest.raises(UserError, match=rf"merge\.{setting}"):
        config.build({"_target_": "lmc.merge.many.MergeMany", setting: value}, "merge")


def test_the_objective_is_summed_in_double_precision(symmetries: dict[str, Symmetry], draw: Draw, pose: Pose):
    given: list[Mapping[str, Any]] = [draw(symmetries["mlp"], seed) for seed in range(3)]
    assert Placed(given, pose(symmetries["mlp"])).objective == pytest.approx(
        Placed([{n: t.double() for n, t in s.items()} for s in given], pose(symmetries["mlp"])).objective, abs=1e-12
    )
