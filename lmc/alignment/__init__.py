"""From two networks to the permutation of one of them: one module for each method.

A method is a class that is called as `lmc.alignment.problem.Alignment` says; `align` is the short way to all of them.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lmc.alignment.problem import Alignment, Problem
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import AnyTransform

__all__ = ["align"]


def align(
    symmetry: Symmetry,
    fixed: State,
    moving: State,
    method: Alignment | None = None,
    *,
    model: nn.Module | None = None,
    batches: Iterable[Tensor] | Iterable[tuple[Tensor, Tensor]] | None = None,
    earlier: Sequence[tuple[State, State]] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> AnyTransform:
    """Return the permutation, or what some methods give instead, whose `apply(moving)` brings `moving` to `fixed`.

    Args:
        symmetry: what may be permuted, from `lmc.symmetry.discover.discover`.
        fixed: the network that stays.
        moving: the network that is permuted; neither is changed.
        method: how; weight matching by default.
        model: the architecture of both; for methods that run the networks.
        batches: (batch, ...) inputs of the model, for methods that look at activations; with their labels (batch,),
            (inputs, labels), for methods that look at the loss. Read several times.
        earlier: further checkpoints of both, (fixed, moving), from earlier moments of training, the oldest first; for
            methods that stack them (`WeightMatching(stacked=...)`).
        seed: from which the method derives its random numbers.
        device: where to compute.

    Raises:
        UserError: the networks do not fit `symmetry` or hold NaN, the method needs a model, inputs or labels, or it
            transforms both networks: call it yourself then, for both transforms.
    """
    problem = Problem(
        model=model,
        symmetry=symmetry,
        seed=seed,
        device=torch.device(device),
        batches=None
        if batches is None
        else lambda _: (each if isinstance(each, Tensor) else each[0] for each in batches),
        labelled=None if batches is None else lambda _: (each for each in batches if not isinstance(each, Tensor)),
        earlier=earlier,
    )
    matching = (method or WeightMatching())(fixed, moving, problem)
    if matching.fixed_transform is not None:
        raise UserError(f"{type(method).__name__} transforms both networks; call it with a Problem, which gives both")
    return matching.transform
