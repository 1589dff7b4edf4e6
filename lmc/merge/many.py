"""MergeMany: each network in turn is aligned to the mean of all others, until none gains."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt

from lmc.alignment.none import NoAlignment
from lmc.alignment.problem import Alignment, OnStep, Problem, until_interrupted
from lmc.errors import UserError
from lmc.merge.base import Frame, rebased, refuse_soft
from lmc.merge.placed import Placed
from lmc.seeding import derive, generator
from lmc.state import State
from lmc.symmetry.structure import Symmetry

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MergeMany:
    """Aligns one network after the other to the mean of all others (Ainsworth et al. 2023, Git Re-Basin, Algorithm 3).

    Maximised is the sum over all pairs of networks of <P_i W_i, P_j W_j>, over all trainable tensors on which some
    group acts; that minimises the sum of their squared distances. The networks begin as they are. A round takes all of
    them in random order; what `alignment` finds for a network, seen from where it is now, is accepted only if the
    objective rises by it: an alignment that draws random starts, or that looks at activations, may return less than
    there is. Ends when a whole round has gained next to nothing. An alignment draws anew in every step.

    The result depends on the order of the units of every network. The mean is run as it is where the alignment looks at
    activations: running statistics of normalisation layers are averaged, not measured again.

    Trace: one record for each step, {"round", "network", "objective", "gain" (0 where the network stays), "seconds"}.
    The objective of `Frame` is that of its permutations.

    Memory: two copies of all networks.

    Args:
        max_rounds: of all networks.
        tolerance: gain of a whole round that counts, as a share of the objective's bound, the sum over all pairs of
            ||W_i|| ||W_j|| (Git Re-Basin: any decrease of a distance above 1e-12).
    """

    needs_data: ClassVar[bool] = False

    max_rounds: PositiveInt = 100
    tolerance: Annotated[float, Field(ge=0)] = 1e-9

    def check(self, symmetry: Symmetry, alignment: Alignment) -> None:
        """Raise a `UserError` if `alignment` gives no permutation, or aligns nothing."""
        refuse_soft(alignment, "many")
        if isinstance(alignment, NoAlignment):
            raise UserError(
                "merge=many repeats an alignment, and alignment=none leaves every network where it is; choose another "
                "alignment, or merge=pairs for networks as they are"
            )

    def __call__(
        self, states: Sequence[State], alignment: Alignment, problem: Problem, on_step: OnStep | None = None
    ) -> Frame:
        """Return the frame that no network can leave with a gain; see `lmc.merge.base.JointMerge`."""
        self.check(problem.symmetry, alignment)
        placed = Placed(states, problem)
        trace: list[dict[str, float]] = []
        with until_interrupted() as run:
            for record in rounds(placed, alignment, problem, max_rounds=self.max_rounds, tolerance=self.tolerance):
                trace.append(record)
                if on_step is not None:
                    on_step(record)
        return Frame(rebased(placed.permutations), placed.objective, trace, run.complete)


def rounds(
    placed: Placed, alignment: Alignment, problem: Problem, *, max_rounds: int, tolerance: float
) -> Iterator[dict[str, float]]:
    """Align the networks to the mean of the others in turn, in `placed`, and yield a record after each step.

    Args:
        placed: the networks; every step leaves it better or as it was.
        alignment: aligns a network, where it is now, to the mean of the others.
        problem: of the networks.
        max_rounds: of all networks.
        tolerance: gain of a whole round that counts, as a share of the objective's bound.

    Raises:
        KeyboardInterrupt: the alignment was interrupted; what it had found until then is in `placed`.
    """
    count, threshold = len(placed.moved), tolerance * placed.bound
    objective = placed.objective
    for number in range(max_rounds):
        before = objective
        order = torch.randperm(count, generator=generator(problem.seed, "merge_many", number)).tolist()
        for network in order:
            started = time.perf_counter()
            anew = replace(problem, seed=derive(problem.seed, "merge_many", number, network))
            found = alignment(placed.others(network), placed.moved[network], anew)
            gain = max(0.0, placed.gain(network, found.permutation))
            if gain > 0:
                placed.move(network, found.permutation)
                objective += gain
            seconds = time.perf_counter() - started
            yield {"round": number, "network": network, "objective": objective, "gain": gain, "seconds": seconds}
            if not found.complete:  # one Ctrl-C ends the whole, not this alignment alone
                raise KeyboardInterrupt
        if not objective - before > threshold:
            return
    log.warning("the networks have not settled after %d rounds; raise merge.max_rounds", max_rounds)
