"""Training a network itself."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lmc.state import State, check_fits, of_model


class NetworkTrainable:
    """The weights and buffers of one network; a `Trainable`.

    Args:
        model: the architecture; it is copied, not changed. Parameters that do not require gradients are not trained.
        state: the weights and buffers to start from.
        device: where to train; None for the device of `model`.

    Raises:
        UserError: `state` is of another architecture.
    """

    decay_on_sample = False

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor], device: str | torch.device | None = None) -> None:
        own = copy.deepcopy(model)
        check_fits(state, own.state_dict(), "the initial state")
        own.load_state_dict(dict(state))
        self._own = own if device is None else own.to(device)
        # Tied tensors appear under each of their names, as one and the same leaf.
        self._live: State = {
            **dict(self._own.named_parameters(remove_duplicate=False)),
            **dict(self._own.named_buffers(remove_duplicate=False)),
        }

    def parameters(self) -> list[Tensor]:
        """Return the trained leaves (see `Trainable.parameters`)."""
        return [parameter for parameter in self._own.parameters() if parameter.requires_grad]

    def state(self, generator: torch.Generator) -> State:
        """Return the network's own live tensors, always the same dict; nothing is drawn."""
        return self._live

    def tensors(self) -> State:
        """Return the network's own live tensors."""
        return self._live

    def validated(self) -> State:
        """Return the network's own live tensors."""
        return self._live

    def final_state(self) -> State:
        """Return a detached, contiguous copy of the network as it is now: every tensor of its state dict."""
        return {name: tensor.contiguous() for name, tensor in of_model(self._own).items()}
