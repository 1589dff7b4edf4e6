"""Straight-through estimation for several networks: permutations that make a good mean of all."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lmc.alignment.problem import Alignment, OnStep, Problem
from lmc.alignment.straight_through import StraightThroughSearch
from lmc.merge.base import Frame, check_all, refuse_soft
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True, kw_only=True)
class StraightThroughMany(StraightThroughSearch):
    """Minimises the loss of the mean of all networks (after Ainsworth et al. 2023, Git Re-Basin, Algorithm 2).

    min over B~_2, ..., B~_n of L((W_1 + proj(B~_2) + ... + proj(B~_n)) / n): network 1 stays, and proj(B~_i) is the
    permuted copy of network i that weight matching brings nearest to B~_i. Of two networks it is
    `lmc.alignment.straight_through.StraightThrough`, whose docstring says how the search goes on; begun with the same
    permutation it takes the same steps. The paper has it for two networks.

    The search begins with what `alignment` makes of each network and the first (with `NoAlignment` the identity). The
    permutations with the lowest loss of the mean on the first `images` training images are kept, those of the start
    included, so that the result is never worse than the start by that measure.

    The objective of `Frame` is minus that loss, in nats. The trace is that of `StraightThrough`; "moved" counts the
    units of all networks.

    Memory: on the device copies of all networks and, with `start="aligned"`, another of all but the first; the
    displacement and the state of its optimiser are those of one network, whatever the number of networks.

    Args:
        start: where B~_i begins: at the "first" network, or at network i as "aligned".
        optimiser, learning_rate, momentum: see `StraightThroughSearch`.
        batch_size, steps, project_every, evaluate_every, images, max_sweeps, tolerance: likewise.
    """

    start: Literal["first", "aligned"] = "first"

    def check(self, symmetry: Symmetry, alignment: Alignment) -> None:
        """Accept every symmetry; raise a `UserError` if `alignment` does not give permutations."""
        refuse_soft(alignment, "straight_through")

    def __call__(
        self, states: Sequence[State], alignment: Alignment, problem: Problem, on_step: OnStep | None = None
    ) -> Frame:
        """Return the best frame met; see `lmc.merge.base.JointMerge`.

        Raises:
            UserError: also if there is no model or no labelled image, or the loss is not finite.
        """
        self.check(problem.symmetry, alignment)
        first = Permutation.identity(problem.symmetry)
        start, complete = [], True
        check_all(states, problem.symmetry)
        for state in states[1:]:
            if not complete:  # interrupted: networks that have not had their turn stay as they are
                start.append(first)
                continue
            matching = alignment(states[0], state, problem)
            start.append(matching.permutation)
            complete = matching.complete
        at_first = self.start == "first"
        found = self.search(states, start, problem, "straight_through", on_step, at_first=at_first, complete=complete)
        return Frame((first, *found.permutations), found.objective, found.trace, found.complete)
