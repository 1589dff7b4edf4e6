"""Every network is aligned to the mean of those before it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lmc.alignment.problem import Alignment, OnStep, Problem
from lmc.merge.base import Frame, refuse_soft
from lmc.merge.reference import one_by_one
from lmc.state import State, mean
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """Aligns every network, in order, to the mean of those before it, which are aligned already.

    One pass of merge=many: of an alignment of the weights, every step maximises the sum of the inner products with the
    networks before it. The result depends on the order of the networks. The mean is run as it is where the alignment
    looks at activations: running statistics of normalisation layers are averaged, not measured again. With
    `NoAlignment` the networks stay as they are.

    Trace and objective: as of `lmc.merge.reference.Reference`.
    """

    needs_data: ClassVar[bool] = False

    def check(self, symmetry: Symmetry, alignment: Alignment) -> None:
        """Raise a `UserError` if `alignment` gives no permutation."""
        refuse_soft(alignment, "sequential")

    def __call__(
        self, states: Sequence[State], alignment: Alignment, problem: Problem, on_step: OnStep | None = None
    ) -> Frame:
        """Return the frame of the first network; see `lmc.merge.base.JointMerge`."""
        self.check(problem.symmetry, alignment)
        return one_by_one(states, alignment, problem, on_step, mean)
