"""What the training loop trains."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lmc.state import State

Forward = Callable[[State, Tensor], Tensor]
"""The network: (tensors by name, images (B, C, H, W)) to logits (B, classes), float32, differentiable."""


class Trainable(Protocol):
    """The weights of a network, or the bends of a curve through weight space.

    Attributes:
        decay_on_sample: True if the gradients already hold that of 0.5 * weight decay * ||sampled weights||^2, so that
            the optimiser must not decay anything itself.
    """

    decay_on_sample: bool

    def parameters(self) -> list[Tensor]:
        """Return the leaf tensors (requires_grad) that the optimiser changes in place; the same ones at every call."""
        ...

    def state(self, generator: torch.Generator) -> State:
        """Return the tensors of the network for one minibatch, differentiable in `parameters`.

        Names are those of the network's parameters and buffers; a tensor that is left out is the network's own. What
        the forward pass writes into the buffers is written into these very tensors. Where nothing is drawn the same
        dict may be returned every time, which then costs nothing.

        Args:
            generator: on the CPU; fresh in every epoch.
        """
        ...

    def tensors(self) -> State:
        """Return every tensor that training changes, by name, live: what a checkpoint holds and writes back into."""
        ...

    def validated(self) -> State | None:
        """Return the network to measure on the validation split after an epoch, or None if there is no such one."""
        ...


@dataclass(frozen=True)
class Look:
    """What one step saw, each a detached scalar.

    Attributes:
        objective: what is minimised, without weight decay.
        loss: the mean cross-entropy of the networks that were looked at.
        correct: how many images they classified correctly, in the mean.
    """

    objective: Tensor
    loss: Tensor
    correct: Tensor

    @classmethod
    def of(cls, objective: Tensor | None, logits: Tensor, labels: Tensor) -> "Look":
        """Return the look at networks with `logits` (networks, B, classes); without an objective that is the loss."""
        found = logits.detach()
        loss = cross_entropy(found.flatten(0, 1), labels.repeat(len(found)))
        correct = (found.argmax(2) == labels).sum(1, dtype=torch.float32).mean()
        return cls(loss if objective is None else objective.detach(), loss, correct)


@runtime_checkable
class Stepped(Protocol):
    """A trainable that does something after every step: what it trains has to stay in some set."""

    def stepped(self) -> None:
        """Do what has to be done after the optimiser has changed the parameters."""
        ...


@runtime_checkable
class Composite(Trainable, Stepped, Protocol):
    """A trainable whose step looks at several networks, or at something other than the cross-entropy.

    The loop then leaves the gradient to it; `state` is not called.
    """

    def descend(self, network: Forward, images: Tensor, labels: Tensor, generator: torch.Generator) -> Look:
        """Leave the gradient for one minibatch in `parameters`, which have none yet, and say what was seen.

        Args:
            network: is called as often as there are networks to look at.
            images: (B, C, H, W), augmented and normalised.
            labels: (B,) int64.
            generator: as that of `state`.
        """
        ...
