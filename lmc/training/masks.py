"""Masks of the weights of a network: which of them are pruned away."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

Masks = dict[str, Tensor]
"""Tensor name to bool of the same shape: False where the weight is pruned, True where it stays."""


def prunable(model: nn.Module, kept: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the names of the tensors of `model` that are pruned: weights of layers, in the order of the network.

    That is, every trained tensor of at least two dimensions: neither biases nor the scales and shifts of norms. A tied
    tensor goes by the first of its names.

    Args:
        model: the architecture.
        kept: names that are left out, with * and ? as in file names.
    """
    return tuple(
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim >= 2 and not any(fnmatchcase(name, pattern) for pattern in kept)
    )


def all_kept(state: Mapping[str, Tensor], names: Sequence[str]) -> Masks:
    """Return the masks of a dense network."""
    return {name: torch.ones_like(state[name], dtype=torch.bool) for name in names}


def of_state(state: Mapping[str, Tensor]) -> Masks:
    """Return the masks that a network shows: of every tensor of at least two dimensions, where it is not zero."""
    return {name: tensor != 0 for name, tensor in state.items() if tensor.ndim >= 2 and tensor.is_floating_point()}


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """Return the share of weights that are pruned, over all tensors of `masks`."""
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def pruned(masks: Masks, scores: Mapping[str, Tensor], fraction: float, rounds: int = 1, *, layer: bool) -> Masks:
    """Return `masks` without the weights of the lowest scores; ties go in the order of the tensors.

    Args:
        masks: what is there.
        scores: tensor name to a number for each weight (those of pruned ones do not matter).
        fraction: of the remaining weights, that each round removes.
        rounds: how many times that is done with the same scores.
        layer: remove this share of each tensor; otherwise of all together.
    """
    together = [[name] for name in masks] if layer else [list(masks)]
    found: Masks = {}
    for names in together:
        flat = torch.cat([masks[name].flatten() for name in names])
        rank = torch.cat([scores[name].flatten() for name in names]).masked_fill(~flat, -torch.inf)
        here = int(flat.sum())
        gone = len(flat) - survivors(here, fraction, rounds)
        left = torch.ones_like(flat)
        left[torch.sort(rank, stable=True).indices[:gone]] = False
        parts = torch.split(left, [masks[name].numel() for name in names])
        found |= {name: part.reshape(masks[name].shape) for name, part in zip(names, parts, strict=True)}
    return {name: found[name] for name in masks}


def survivors(count: int, fraction: float, rounds: int) -> int:
    """Return how many of `count` weights are left after `rounds` rounds that remove round(fraction * remaining)."""
    for _ in range(rounds):
        count -= round(fraction * count)
    return count


def magnitudes(state: Mapping[str, Tensor], masks: Masks) -> dict[str, Tensor]:
    """Return the absolute values of the weights, as scores."""
    return {name: state[name].abs() for name in masks}


def drawn(masks: Masks, generator: torch.Generator) -> dict[str, Tensor]:
    """Return uniform random scores; `generator` is on the CPU."""
    return {name: torch.rand(mask.shape, generator=generator).to(mask.device) for name, mask in masks.items()}


@dataclass(frozen=True)
class Masked:
    """The `Constraint` that pruned weights are zero."""

    masks: Masks

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """Return `tensor` with zeros where it is pruned."""
        mask = self.masks.get(name)
        return tensor if mask is None else tensor.masked_fill(~mask, 0)
