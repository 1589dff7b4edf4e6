"""Which tensors of a network a curve bends, as one flat vector, and the network that such a vector stands for."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lmc.curve.flat import Layout
from lmc.state import State


class Bending:
    """The parameters that require gradients as one vector (P,); all other tensors lie on the line between two networks.

    Args:
        model: the architecture; says which tensors bend (parameters that require gradients).
        fixed: the network at t = 0, on the training device.
        moving: the network at t = 1, on the training device.
        channels_last: store convolutions in the channels-last memory format.
    """

    def __init__(
        self, model: nn.Module, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], *, channels_last: bool
    ) -> None:
        bending = {name: fixed[name] for name, p in model.named_parameters() if p.requires_grad}
        self._aliases = _aliases(model, bending)
        rest = {name: t for name, t in fixed.items() if name not in bending and name not in self._aliases}
        self._layout = Layout(bending, channels_last=channels_last)
        self._straight = Layout({name: t for name, t in rest.items() if t.is_floating_point()})
        self._straight_ends = self._straight.flatten(fixed), self._straight.flatten(moving)
        self._whole = {name: t.clone() for name, t in rest.items() if not t.is_floating_point()}

    def flatten(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return the tensors of `state` that bend as a fresh vector (P,), detached."""
        return self._layout.flatten(state)

    def network(self, point: Tensor, t: float) -> State:
        """Return the network whose bending tensors are views of `point` (P,).

        The others are fresh copies from `t` on the line, so that what a forward pass writes into them is thrown away.
        """
        state = self._layout.views(point)
        state |= {alias: state[name] for alias, name in self._aliases.items()}
        state |= self._straight.views(torch.lerp(*self._straight_ends, t))
        return state | self._whole

    def points(self, rows: Tensor) -> list[State]:
        """Return each row of `rows` (n, P) as a dict of detached contiguous tensors, all that bend."""
        points = [self._layout.views(row) for row in rows.detach()]
        named = [point | {alias: point[name] for alias, name in self._aliases.items()} for point in points]
        return [{name: view.clone(memory_format=torch.contiguous_format) for name, view in p.items()} for p in named]


def combination(leaf: Tensor, controls: Tensor, weights: Sequence[float], trained: slice, decay: float) -> Tensor:
    """Return weights @ controls, (P,), differentiable in `leaf`, with the gradient of the decay added on the way back.

    Args:
        leaf: (m, P), shares its memory with `controls[trained]`, so that the point is one product with all the rows.
        controls: (n, P).
        weights: one a row of `controls`.
        trained: the rows that are `leaf`.
        decay: d of the penalty 0.5 * d * ||point||^2, whose gradient is added.
    """
    point: Tensor = _Combination.apply(leaf, controls, list(weights), trained, decay)
    return point


class _Combination(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, leaf: Tensor, controls: Tensor, weights: list[float], trained: slice, decay: float) -> Tensor:
        point = torch.tensor(weights, device=controls.device) @ controls
        ctx.inner, ctx.decay = weights[trained], decay
        ctx.save_for_backward(point if decay else None)
        return point

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        # Changed in place, which saves two passes over memory: it is the fresh concatenation that the one split of the
        # point has made, and nobody else holds it.
        (gradient,) = gradients
        if ctx.decay:
            gradient.add_(ctx.saved_tensors[0], alpha=ctx.decay)
        if len(ctx.inner) == 1:
            return gradient.mul_(ctx.inner[0])[None], None, None, None, None
        return torch.outer(torch.tensor(ctx.inner, device=gradient.device), gradient), None, None, None, None


def _aliases(model: nn.Module, bending: Mapping[str, Tensor]) -> dict[str, str]:
    """The further names of tied parameters, each with the name under which it bends."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = model.named_parameters(remove_duplicate=False)
    return {name: names[id(p)] for name, p in tied if names[id(p)] != name and names[id(p)] in bending}
