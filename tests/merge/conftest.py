from collections.abc import Sequence

import pytest

from lmc.state import State
from lmc.symmetry.permutation import Permutation
from tests.alignment.conftest import build, draw, one_thread, plant, pose, symmetries

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
