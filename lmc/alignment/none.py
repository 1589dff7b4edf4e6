"""No alignment: the baseline of every comparison."""

from dataclasses import dataclass
from typing import ClassVar

from lmc.alignment.problem import AnySymmetry, Matching, OnStep, Problem, check_pair
from lmc.state import State
from lmc.symmetry.permutation import Permutation


@dataclass(frozen=True, kw_only=True)
class NoAlignment(AnySymmetry):
    """Leaves every unit where it is; the objective is 0 and the trace is empty."""

    needs_data: ClassVar[bool] = False

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the identity; see `lmc.alignment.problem.Alignment`."""
        check_pair(fixed, moving, problem.symmetry)
        return Matching(Permutation.identity(problem.symmetry), 0.0, [])
