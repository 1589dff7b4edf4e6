"""Weights that are only ever rearranged: the ranking of what the optimiser found, the values of the initialisation."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Within = Literal["tensor", "unit"]
"""Where a value may go: anywhere in its tensor, or only to another input of its unit (index of dimension 0)."""


class Rearranged:
    """The `Constraint` that tensors hold their initial values, each as often as at the beginning.

    A tensor becomes the rearrangement of its initial values that has the same ranking: its k-th smallest entry becomes
    the k-th smallest initial value (the synchronisation of LaPerm, Qiu & Suda 2020). Of all rearrangements that is the
    one at the smallest Euclidean distance. Equal entries keep their order.

    Args:
        initial: name to tensor, of those that are rearranged; others stay free.
        within: where a value may go; a tensor of one dimension is one piece in any case.
    """

    def __init__(self, initial: Mapping[str, Tensor], within: Within = "tensor") -> None:
        self._within = within
        self._sorted = {name: self._pieces(tensor.detach()).sort(1).values for name, tensor in initial.items()}

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return the initial values of tensor `name` in the ranking of `tensor`."""
        values = self._sorted.get(name)
        if values is None:
            return tensor
        order = torch.sort(self._pieces(tensor), dim=1, stable=True).indices
        found = torch.empty_like(values).scatter_(1, order, values).reshape(tensor.shape)
        # What is not a number has no ranking, and must not be hidden from whoever looks for it.
        return torch.where(tensor.isfinite().all(), found, tensor)

    def _pieces(self, tensor: Tensor) -> Tensor:
        """The tensor as (pieces, values)."""
        whole = self._within == "tensor" or tensor.ndim < 2
        return tensor.reshape(1, -1) if whole else tensor.reshape(len(tensor), -1)


def constant(state: Mapping[str, Tensor], names: Sequence[str]) -> tuple[str, ...]:
    """Return those of `names` whose values are all the same: there is only one arrangement of them."""
    return tuple(name for name in names if bool((state[name] == state[name].flatten()[0]).all()))
