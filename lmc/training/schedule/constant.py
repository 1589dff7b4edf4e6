"""A learning rate that never changes."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The factor is 1 throughout."""

    after_warmup: ClassVar[bool] = True

    def factor(self, epoch: float, epochs: float) -> float:
        """Return 1, whatever the time (see `Schedule.factor`)."""
        return 1.0
