"""Every network is aligned to the first."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lmc.alignment.problem import Alignment, OnStep, Problem, until_interrupted
from lmc.merge.base import Frame, refuse_soft
from lmc.merge.placed import Placed
from lmc.state import State
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Aligns every network to the first, as that pair alone would be (the star of Sharma et al. 2024, strong LMC).

    Nothing is maximised but what `alignment` does for each pair. What two of the others have in common, and the first
    lacks, is not seen; the result depends on which network is the first. With `NoAlignment` the networks stay as they
    are.

    Trace: one record for each network, {"network", "objective", "matched" (the alignment's own objective), "seconds"}.
    The objective, there and of `Frame`, is the sum over all pairs of networks of <P_i W_i, P_j W_j>, over all trainable
    tensors on which some group acts; of networks whose turn has not come, as they are. It is the one that merge=many
    and merge=cycle_consistent maximise; here it may fall.

    Where the search was interrupted, networks whose turn has not come stay as they are.
    """

    needs_data: ClassVar[bool] = False

    def check(self, symmetry: Symmetry, alignment: Alignment) -> None:
        """Raise a `UserError` if `alignment` gives no permutation."""
        refuse_soft(alignment, "reference")

    def __call__(
        self, states: Sequence[State], alignment: Alignment, problem: Problem, on_step: OnStep | None = None
    ) -> Frame:
        """Return the frame of the first network; see `lmc.merge.base.JointMerge`."""
        self.check(problem.symmetry, alignment)
        return one_by_one(states, alignment, problem, on_step, lambda before: before[0])


def one_by_one(
    states: Sequence[State],
    alignment: Alignment,
    problem: Problem,
    on_step: OnStep | None,
    target: Callable[[Sequence[State]], State],
) -> Frame:
    """Align every network but the first, in order, to the `target` of those before it, which are aligned already."""
    placed = Placed(states, problem)
    trace: list[dict[str, float]] = []
    with until_interrupted() as run:
        for number in range(1, len(states)):
            started = time.perf_counter()
            found = alignment(target(placed.moved[:number]), placed.moved[number], problem)
            placed.move(number, found.permutation)
            objective, seconds = placed.objective, time.perf_counter() - started
            trace.append({"network": number, "objective": objective, "matched": found.objective, "seconds": seconds})
            if on_step is not None:
                on_step(trace[-1])
            if not found.complete:  # one Ctrl-C ends the whole, not this alignment alone
                raise KeyboardInterrupt
    return Frame(tuple(placed.permutations), placed.objective, trace, run.complete)
