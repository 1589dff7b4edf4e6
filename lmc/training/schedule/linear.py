"""A straight line from the full learning rate down to a fraction of it."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field


@dataclass(frozen=True, kw_only=True)
class Linear:
    """1 - (1 - final) * epoch / epochs, changed at every step (Jordan et al. 2023, with final = 0).

    Args:
        final: the factor that would be reached at the very end.
    """

    final: Annotated[float, Field(ge=0, le=1)] = 0.0

    after_warmup: ClassVar[bool] = True

    def factor(self, epoch: float, epochs: float) -> float:
        """Return the factor at `epoch` (see `Schedule.factor`)."""
        return 1.0 - (1.0 - self.final) * epoch / epochs
