"""Adam (Kingma & Ba 2015)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lmc.training.recipe import Momentum, NonNegative, Training, fusable


@dataclass(frozen=True, kw_only=True)
class Adam(Training):
    """`torch.optim.Adam`; weight decay is added to the gradient (L2 regularisation).

    Args:
        beta1: decay of the running mean of the gradient.
        beta2: decay of the running mean of its square.
        epsilon: added to the square root of the latter.
    """

    weight_decay: NonNegative = 1e-3
    beta1: Momentum = 0.9
    beta2: Momentum = 0.999
    epsilon: Annotated[float, Field(gt=0)] = 1e-8

    def optimizer(self, parameters: Sequence[Tensor], weight_decay: float) -> torch.optim.Optimizer:
        """Return the optimiser (see `Training.optimizer`)."""
        return torch.optim.Adam(
            parameters,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=weight_decay,
            fused=fusable(parameters),
        )
