"""From two networks to the permutation of one of them: one module for each method.

A method is a class that is called as `lmc.alignment.problem.Alignment` says; `align` is the short way to all of them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lmc.alignment.problem import Alignment, Problem
from lmc.alignment.weight_matching import WeightMatching
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import LinearMap

__all__ = ["align"]


def align(
    symmetry: Symmetry,
    fixed: State,
    moving: State,
    method: Alignment | None = None,
    *,
    model: nn.Module | None = None,
    batches: Iterable[Tensor] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Permutation | LinearMap:
    """Return the permutation, or the linear map of some methods, whose `apply(moving)` brings `moving` to `fixed`.

    Args:
        symmetry: what may be permuted, from `lmc.symmetry.discover.discover`.
        fixed: the network that stays.
        moving: the network that is permuted; neither is changed.
        method: how; weight matching by default.
        model: the architecture of both; for methods that run the networks.
        batches: (batch, ...) inputs of the model, for methods that look at activations.
        seed: from which the method derives its random numbers.
        device: where to compute.

    Raises:
        UserError: the networks do not fit `symmetry` or hold NaN, or the method needs a model or inputs.
    """
    problem = Problem(
        model=model,
        symmetry=symmetry,
        seed=seed,
        device=torch.device(device),
        batches=None if batches is None else lambda _: batches,
    )
    return (method or WeightMatching())(fixed, moving, problem).transform
