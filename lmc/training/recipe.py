"""What all optimisers have in common: how long, how fast and in which precision a network is trained."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from lmc.errors import UserError
from lmc.training.attack.base import Attack
from lmc.training.schedule.base import Schedule

NonNegative = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, kw_only=True)
class Training(ABC):
    """Settings of a training; a subclass per optimiser.

    Args:
        schedule: what the learning rate is multiplied by as time goes on.
        epochs: passes over the training images; 0 leaves the initial weights.
        batch_size: images a step (the last step of an epoch takes what is left, unless that is a single image).
        learning_rate: peak learning rate.
        weight_decay: L2 penalty, in the convention of the optimiser in `torch.optim`.
        warmup_epochs: epochs in which the learning rate rises linearly from 0 to its peak, step by step.
        precision: number format of the forward pass (the weights are always float32). "auto" is bfloat16 for a network
            with convolutions on a processor that computes in it, else float32.
        attack: what is done to every minibatch, after its augmentation, against the network of the step; None: nothing.
        channels_last: keep images and convolutions in the channels-last memory format; only speed depends on it.
        checkpoint_every: epochs between two checkpoints; only what a killed run loses depends on it.

    Raises:
        UserError: the warm-up is longer than the training.
    """

    schedule: Schedule
    epochs: NonNegativeInt = 60
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: NonNegative = 0.0
    warmup_epochs: NonNegative = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    attack: Attack | None = None
    channels_last: bool = True
    checkpoint_every: PositiveInt = 1

    outside_key: ClassVar[frozenset[str]] = frozenset({"checkpoint_every"})
    absent_at_default: ClassVar[frozenset[str]] = frozenset({"attack"})

    def __post_init__(self) -> None:
        if self.warmup_epochs > self.epochs:
            raise UserError(
                f"training.warmup_epochs={self.warmup_epochs} is longer than the {self.epochs} epochs of the training; "
                "shorten it or raise training.epochs"
            )

    @abstractmethod
    def optimizer(self, parameters: Sequence[Tensor], weight_decay: float) -> torch.optim.Optimizer:
        """Return a fresh optimiser of `parameters` with one parameter group and the given weight decay."""

    def rate(self, epoch: float) -> float:
        """Return the learning rate at `epoch`: step s of n in epoch e (from 0) is at e + s / n."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * epoch / self.warmup_epochs
        start = self.warmup_epochs if self.schedule.after_warmup else 0.0
        return self.learning_rate * self.schedule.factor(epoch - start, self.epochs - start)

    def autocast(self, model: nn.Module, device: torch.device) -> bool:
        """Tell whether the forward pass of `model` on `device` computes in bfloat16."""
        if self.precision != "auto":
            return self.precision == "bfloat16"
        return any(parameter.ndim == 4 for parameter in model.parameters()) and _computes_bfloat16(device)


def fusable(parameters: Sequence[Tensor]) -> bool:
    """Tell whether the fused optimisers of torch can take `parameters`: one kernel a step instead of one a tensor."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)


def _computes_bfloat16(device: torch.device) -> bool:
    """Whether the processor has bfloat16 instructions; where it emulates them they are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_avx512_bf16_supported())
    return False
