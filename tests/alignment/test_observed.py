"""Passes over the images: as many as memory asks for, with the same result."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc import state as states
from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.problem import Problem
from lmc.alignment.similarity.observed import ByActivations
from lmc.seeding import isolated
from lmc.state import State
from lmc.symmetry.discover import discover

GIB = 2**30


class Network(nn.Module):
    """Plain groups of 6, 8 and 4 units, and grouped convolutions, whose channels live inside blocks of two families."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.wide = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 8, 1)
        self.grouped, self.again = nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 6, 1, groups=2)
        self.narrow, self.leave = nn.Conv2d(6, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.enter, self.wide, self.grouped, self.again, self.narrow):
            x = functional.relu(layer(x))
        return self.leave(x.mean((2, 3)))


@pytest.fixture(scope="module")
def networks() -> tuple[State, State]:
    found = []
    for seed in (1, 2):
        with isolated(seed, "observed"):
            found.append(states.of_model(Network()))
    return found[0], found[1]


@pytest.fixture(scope="module")
def problem() -> Problem:
    with isolated(0, "observed"):
        model = Network().eval()
    images = torch.randn(40, 2, 3, 3, generator=torch.Generator().manual_seed(5))
    symmetry = discover(model, images[:2])
    return Problem(model, symmetry, 0, torch.device("cpu"), lambda size: torch.split(images, size))


def passes(memory: float, networks: tuple[State, State], problem: Problem) -> int:
    """How often the images are gone through."""
    steps: list[dict[str, float]] = []
    found = ByActivations(memory=memory).observe(
        *networks, problem, joint=False, on_step=lambda step: steps.append(dict(step))
    )
    assert sorted(name for name, _ in found) == sorted(
        name for name in problem.symmetry.groups if not problem.symmetry.inside(name)
    )
    assert {step["images"] for step in steps} == {40}
    return int(steps[-1]["pass"])


def test_families_share_a_pass_as_long_as_there_is_room(networks: tuple[State, State], problem: Problem) -> None:
    families = problem.symmetry.families
    assert len(families) > 2
    assert passes(1.0, networks, problem) == 1
    # Nothing fits: each family, and each group that lives in several, has a pass of its own.
    assert passes(1e-12, networks, problem) == len(families) + len(problem.symmetry.shared)


def test_a_pass_ends_where_the_next_family_has_no_room() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2), nn.ReLU())
    model.append(nn.Linear(2, 1))
    images = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    problem = Problem(
        model, discover(model, images[:2]), 0, torch.device("cpu"), lambda size: torch.split(images, size)
    )
    ends = (states.of_model(model), states.of_model(model))
    # Moments of 3, 5 and 2 units take 8 * 9, 8 * 25 and 8 * 4 bytes.
    for limit, expected in ((8 * 38, 1), (8 * 34, 2), (8 * 33, 2), (8 * 28, 3)):
        assert passes(limit / GIB, ends, problem) == expected, limit


@pytest.mark.parametrize("similarity", ["pearson", "l2"])
def test_the_matching_does_not_depend_on_the_number_of_passes(
    networks: tuple[State, State], problem: Problem, similarity: str
) -> None:
    whole = ActivationMatching(similarity=similarity)(*networks, problem)
    split = ActivationMatching(similarity=similarity, memory=1e-12)(*networks, problem)
    assert split.permutation == whole.permutation
    assert split.objective == whole.objective
    assert split.trace == whole.trace
    assert "memory" in ActivationMatching.outside_key
