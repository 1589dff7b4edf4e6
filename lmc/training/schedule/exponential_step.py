"""Tatro's schedule: halved every twenty epochs, with a slight decay in between."""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt


@dataclass(frozen=True, kw_only=True)
class ExponentialStep:
    """gamma ** floor(epoch / period) * decay ** epoch, changed at the start of an epoch.

    The schedule of Tatro et al. 2020, as their code has it.

    Args:
        period: epochs between two drops.
        gamma: what the rate is multiplied by at each of them.
        decay: what the rate is multiplied by after every epoch.
    """

    period: PositiveInt = 20
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.5
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9996

    after_warmup: ClassVar[bool] = False

    def factor(self, epoch: float, epochs: float) -> float:
        """Return the factor at `epoch` (see `Schedule.factor`)."""
        whole = math.floor(epoch)
        return float(self.gamma ** (whole // self.period) * self.decay**whole)
