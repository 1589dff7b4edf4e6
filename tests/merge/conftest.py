from collections.abc import Sequence

import pytest
import torch

from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from tests.alignment.conftest import build, draw, one_thread, plant, pose, symmetries
from tests.symmetry.test_structures import CASES

__all__ = ["build", "draw", "one_thread", "plant", "pose", "symmetries"]


class Networks:
    """Networks drawn for a test, and what is said of them by definition."""

    @staticmethod
    def double(state: State) -> State:
        return {name: tensor.double() for name, tensor in state.items()}

    @staticmethod
    def agreement(states: Sequence[State], permutations: Sequence[Permutation]) -> float:
        """The sum over all pairs of the inner products, tensor by tensor."""
        symmetry = permutations[0].symmetry
        moved = [permutation.apply(state) for permutation, state in zip(permutations, states, strict=True)]
        names = sorted(symmetry.axes_of.keys() & symmetry.parameters)
        return sum(
            (moved[i][name].double() * moved[j][name].double()).sum().item()
            for name in names
            for j in range(len(moved))
            for i in range(j)
        )


@pytest.fixture(scope="session")
def networks() -> type[Networks]:
    return Networks


@pytest.fixture(scope="session")
def structures() -> dict[str, Symmetry]:
    """Symmetries with units inside blocks."""
    names = ("packed attention", "grouped convolution")
    return {name: discover(CASES[name].make().eval(), torch.zeros(2, *CASES[name].shape)) for name in names}
