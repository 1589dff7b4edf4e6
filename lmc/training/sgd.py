"""Stochastic gradient descent with momentum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lmc.errors import UserError
from lmc.training.recipe import Momentum, Training, fusable


@dataclass(frozen=True, kw_only=True)
class SGD(Training):
    """`torch.optim.SGD`; weight decay is added to the gradient.

    Args:
        momentum: fraction of the last update that is kept.
        nesterov: take the gradient's momentum one step ahead (Nesterov).

    Raises:
        UserError: Nesterov's variant without momentum.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    momentum: Momentum = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.momentum == 0:
            raise UserError("training.nesterov=true needs momentum; set training.momentum=0.9 or nesterov=false")

    def optimizer(self, parameters: Sequence[Tensor], weight_decay: float) -> torch.optim.Optimizer:
        """Return the optimiser (see `Training.optimizer`)."""
        return torch.optim.SGD(
            parameters,
            lr=self.learning_rate,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=weight_decay,
            fused=fusable(parameters),
        )
