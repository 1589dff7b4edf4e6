"""Fast geometric ensembling: an ordinary training, then short cycles around one valley."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lmc.errors import UserError
from lmc.training.schedule.base import Schedule

Factor = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class Cyclic:
    """`before` up to round(start * epochs), then triangles between `alpha_1` and `alpha_2` (Garipov et al. 2018).

    Section 5 of the paper: with t in [0, 1) the part of a cycle that is over, the factor is
    (1 - 2 t) alpha_1 + 2 t alpha_2 in the first half of a cycle and (2 - 2 t) alpha_2 + (2 t - 1) alpha_1 in the
    second, changed at every step. As in the authors' code t is 0 at the first step of a cycle, where the paper has the
    value that belongs to the step before: the rates are the same, one step later.

    The networks of the ensemble are those in the middle of each cycle, where the rate is lowest: see `minima`. All
    epochs are counted from the start of the training, warm-up included.

    Args:
        before: the schedule of the ordinary training of which the first part is run, as if it went on to the end.
        start: fraction of the epochs from which there are cycles; whole epochs, rounded.
        cycle_epochs: length of a cycle; even, so that its middle is the end of an epoch.
        alpha_1: the highest factor of a cycle.
        alpha_2: the lowest.

    Raises:
        UserError: `alpha_2` is above `alpha_1`.
    """

    before: Schedule
    start: Annotated[float, Field(ge=0, le=1)] = 0.8
    cycle_epochs: Annotated[int, Field(ge=2, multiple_of=2)] = 2
    alpha_1: Factor = 0.5
    alpha_2: Factor = 0.1

    after_warmup: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.alpha_2 > self.alpha_1:
            raise UserError(
                f"schedule.alpha_2={self.alpha_2} is above schedule.alpha_1={self.alpha_1}, but a cycle goes from "
                "alpha_1 down to alpha_2; exchange them"
            )

    def factor(self, epoch: float, epochs: float) -> float:
        """Return the factor at `epoch` (see `Schedule.factor`)."""
        start = self._first(epochs)
        if epoch < start:
            return self.before.factor(epoch, epochs)
        t = (epoch - start) % self.cycle_epochs / self.cycle_epochs
        return self.alpha_2 + (self.alpha_1 - self.alpha_2) * abs(1.0 - 2.0 * t)

    def minima(self, epochs: int) -> tuple[int, ...]:
        """Return the numbers (from 1) of the epochs at whose end the rate is lowest; the last may be the last of all.

        These are the `endpoints.epochs` of endpoints=trajectory, without the very last epoch, which is kept anyway.
        """
        return tuple(range(self._first(epochs) + self.cycle_epochs // 2, epochs + 1, self.cycle_epochs))

    def _first(self, epochs: float) -> int:
        """How many epochs belong to the ordinary training."""
        return round(self.start * epochs)
