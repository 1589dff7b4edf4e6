"""Drops by a constant factor at given epochs."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from lmc.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Step:
    """gamma ** (milestones passed), changed at the start of an epoch.

    Args:
        milestones: epochs, counted from the start of the training (warm-up included), at which the rate drops.
        gamma: what the rate is multiplied by at each of them.

    Raises:
        UserError: the milestones do not increase.
    """

    milestones: list[PositiveInt]
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1

    after_warmup: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if sorted(set(self.milestones)) != list(self.milestones):
            raise UserError(f"schedule.milestones={self.milestones}: the epochs must increase, for example [80,120]")

    def factor(self, epoch: float, epochs: float) -> float:
        """Return the factor at `epoch` (see `Schedule.factor`)."""
        return float(self.gamma ** bisect_right(self.milestones, epoch))
