"""What the training loop trains."""

from typing import Protocol

import torch
from torch import Tensor

from lmc.state import State


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
