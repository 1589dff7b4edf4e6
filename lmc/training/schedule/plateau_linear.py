"""Garipov's schedule: a plateau, a straight line down, and a low plateau."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from lmc.errors import UserError

Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class PlateauLinear:
    """Constant until `hold`, linear down to `final` at `end`, constant after (Garipov et al. 2018, appendix A.1).

    Changed at the start of an epoch. As in the authors' code the epochs are counted from 1, so that the last of them
    has the fraction 1.

    Args:
        hold: fraction of the epochs up to which the factor is 1.
        end: fraction of the epochs from which the factor is `final`.
        final: the factor of the low plateau.

    Raises:
        UserError: `hold` is not below `end`.
    """

    hold: Fraction = 0.5
    end: Fraction = 0.9
    final: Fraction = 0.01

    after_warmup: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.hold >= self.end:
            raise UserError(
                f"schedule.hold={self.hold} must lie below schedule.end={self.end}; lower hold or raise end"
            )

    def factor(self, epoch: float, epochs: float) -> float:
        """Return the factor at `epoch` (see `Schedule.factor`)."""
        done = (math.floor(epoch) + 1) / epochs
        return 1.0 - (1.0 - self.final) * min(max((done - self.hold) / (self.end - self.hold), 0.0), 1.0)
