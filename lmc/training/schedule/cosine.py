"""Half a cosine, from the full learning rate down to zero."""

import math
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """(1 + cos(pi * epoch / epochs)) / 2, changed at every step (Loshchilov & Hutter 2017, Eq. 5, without restarts)."""

    after_warmup: ClassVar[bool] = True

    def factor(self, epoch: float, epochs: float) -> float:
        """Return the factor at `epoch` (see `Schedule.factor`)."""
        return 0.5 * (1.0 + math.cos(math.pi * epoch / epochs))
