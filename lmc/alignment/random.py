"""A random element of the symmetry: the control that no method may lose to."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import NonNegativeInt

from lmc.alignment.problem import AnySymmetry, Matching, OnStep, Problem, check_pair
from lmc.seeding import generator
from lmc.state import State
from lmc.symmetry.permutation import Permutation


@dataclass(frozen=True, kw_only=True)
class RandomPermutation(AnySymmetry):
    """Draws uniformly from the whole symmetry, whatever the networks are; the objective is 0 and the trace is empty.

    Of two networks trained apart the identity is as good as any such draw; of networks with a common past it is not,
    and how much worse the draws are says how much of the past is left (the control of Entezari et al. 2022).

    Args:
        draw: which of the draws; each is independent of the others, and the same for every pair of networks.
    """

    needs_data: ClassVar[bool] = False

    draw: NonNegativeInt = 0

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the draw; see `lmc.alignment.problem.Alignment`."""
        check_pair(fixed, moving, problem.symmetry)
        drawn = generator(problem.seed, "random_permutation", self.draw)
        return Matching(Permutation.random(problem.symmetry, drawn), 0.0, [])
