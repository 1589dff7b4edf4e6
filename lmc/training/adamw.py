"""Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lmc.training.adam import Adam
from lmc.training.recipe import NonNegative, fusable


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """`torch.optim.AdamW`: as `Adam`, but the weights shrink by learning rate times weight decay at every step."""

    weight_decay: NonNegative = 0.01

    def optimizer(self, parameters: Sequence[Tensor], weight_decay: float) -> torch.optim.Optimizer:
        """Return the optimiser (see `Training.optimizer`)."""
        return torch.optim.AdamW(
            parameters,
            lr=self.learning_rate,
            betas=(self.beta1, self.beta2),
            eps=self.epsilon,
            weight_decay=weight_decay,
            fused=fusable(parameters),
        )
