"""Many named tensors as slices of one flat vector, so that they are combined and optimised by single kernels."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lmc.state import State


class Layout:
    """Where each tensor lies in the flat vector.

    Args:
        tensors: names and shapes, in their order.
        channels_last: lay 4-d tensors out as (out, height, width, in), so that the views are in the channels-last
            memory format.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, channels_last: bool = False) -> None:
        self.names = list(tensors)
        self._sizes = [tensor.numel() for tensor in tensors.values()]
        self._shapes = [tensor.shape for tensor in tensors.values()]
        self._last = [channels_last and tensor.ndim == 4 for tensor in tensors.values()]

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self._sizes)

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a fresh vector (size,) that holds `tensors`, detached."""
        parts = [
            (tensors[name].detach().permute(0, 2, 3, 1) if last else tensors[name].detach()).reshape(-1)
            for name, last in zip(self.names, self._last, strict=True)
        ]
        return torch.cat(parts) if parts else torch.empty(0)

    def views(self, flat: Tensor) -> State:
        """Return the tensors as views of `flat` (size,); one split, whose gradient is one concatenation."""
        state: State = {}
        parts: Sequence[Tensor] = torch.split_with_sizes(flat, self._sizes)
        for name, part, shape, last in zip(self.names, parts, self._shapes, self._last, strict=True):
            if last:
                out, inside, height, width = shape
                state[name] = part.view(out, height, width, inside).permute(0, 3, 1, 2)
            else:
                state[name] = part.view(shape)
        return state
