"""Training a network whose weights stay in a set: masked, or rearrangements of what they were."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from lmc.state import State, of_model
from lmc.training.network import NetworkTrainable

_STEPS = "steps_of_constraint"


class Constraint(Protocol):
    """The set that the trained tensors have to stay in."""

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return what tensor `name` becomes, of the same shape; `tensor` itself where nothing is asked of it.

        A tied tensor goes by the first of its names. What is in the set already comes back with the same bits.
        """
        ...


class ConstrainedTrainable(NetworkTrainable):
    """A network that is put back into a set after every `period` steps; a `Trainable` that is `Stepped`.

    The optimiser knows nothing of it and keeps its own state.

    Args:
        model, state, device: as those of `NetworkTrainable`.
        constraint: the set.
        period: steps from one time to the next. In between the weights are free; what is measured and what comes out at
            the end is a copy that has been put back.

    Raises:
        UserError: `state` is of another architecture.
    """

    def __init__(
        self,
        model: nn.Module,
        state: Mapping[str, Tensor],
        constraint: Constraint,
        period: int = 1,
        device: str | torch.device | None = None,
    ) -> None:
        super().__init__(model, state, device)
        self._constraint = constraint
        self._period = period
        self._steps = torch.zeros((), dtype=torch.int64)
        self._trained = {name: p for name, p in self._own.named_parameters() if p.requires_grad}
        self._put_back()

    def stepped(self) -> None:
        """Count the step; put the weights back if their time has come."""
        self._steps += 1
        if int(self._steps) % self._period == 0:
            self._put_back()

    def tensors(self) -> State:
        """Return the network's own live tensors and the number of steps."""
        return {**super().tensors(), _STEPS: self._steps}

    def validated(self) -> State:
        """Return the network as it is when it has been put back."""
        return self._live if self._period == 1 else self.final_state()

    @torch.no_grad()
    def final_state(self) -> State:
        """Return a detached, contiguous copy of the network, put back: every tensor of its state dict."""
        names = {parameter: name for name, parameter in self._trained.items()}
        found = of_model(self._own)
        for alias, parameter in self._own.named_parameters(remove_duplicate=False):
            if parameter in names:
                found[alias] = self._constraint(names[parameter], parameter.detach()).clone()
        return {name: tensor.contiguous() for name, tensor in found.items()}

    @torch.no_grad()
    def _put_back(self) -> None:
        for name, parameter in self._trained.items():
            current = parameter.detach()
            if (found := self._constraint(name, current)) is not current:
                parameter.copy_(found)
