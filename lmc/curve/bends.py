"""Training the inner control points of a curve."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lmc.curve.flat import Layout
from lmc.state import State


class BendsTrainable:
    """The inner control points between two networks; a `Trainable`.

    They are one leaf (bends, P), whatever the network: a step of the curve costs a plain step, one small matrix product
    for the point, one split, one concatenation of the gradients, and the optimiser works on a single tensor.

    Args:
        model: the architecture; says which tensors bend (parameters that require gradients).
        fixed: the first control point, on the training device.
        moving: the last control point, on the training device.
        weights: the weights of all control points at t.
        bends: number of inner control points.
        decay: weight decay on the sampled point; None leaves decay to the optimiser.
        channels_last: store convolutions in the channels-last memory format.
    """

    def __init__(
        self,
        model: nn.Module,
        fixed: Mapping[str, Tensor],
        moving: Mapping[str, Tensor],
        *,
        weights: Callable[[float], list[float]],
        bends: int,
        decay: float | None,
        channels_last: bool,
    ) -> None:
        self.decay_on_sample = decay is not None
        self._decay = decay or 0.0
        self._weights = weights
        bending = {name: fixed[name] for name, p in model.named_parameters() if p.requires_grad}
        self._aliases = _aliases(model, bending)
        rest = {name: t for name, t in fixed.items() if name not in bending and name not in self._aliases}
        self._layout = Layout(bending, channels_last=channels_last)
        first, last = self._layout.flatten(fixed), self._layout.flatten(moving)
        along = torch.linspace(0, 1, bends + 2).tolist()
        self._controls = torch.stack([torch.lerp(first, last, t) for t in along])
        # A leaf that shares its memory with the inner rows, so that the point is one product with all the rows.
        self._leaf = self._controls[1:-1].detach().requires_grad_()
        self._straight = Layout({name: t for name, t in rest.items() if t.is_floating_point()})
        self._straight_ends = self._straight.flatten(fixed), self._straight.flatten(moving)
        self._whole = {name: t.clone() for name, t in rest.items() if not t.is_floating_point()}

    def parameters(self) -> list[Tensor]:
        """Return the one leaf, (bends, P)."""
        return [self._leaf]

    def state(self, generator: torch.Generator) -> State:
        """Return the network at a t drawn uniformly from [0, 1]; its buffers are throw-away copies."""
        return self.at(float(torch.rand((), generator=generator, dtype=torch.float64)))

    def at(self, t: float) -> State:
        """Return the network at `t`, differentiable in `parameters`; its buffers are throw-away copies."""
        point: Tensor = _Point.apply(self._leaf, self._controls, self._weights(t), self._decay)
        state = self._layout.views(point)
        state |= {alias: state[name] for alias, name in self._aliases.items()}
        state |= self._straight.views(torch.lerp(*self._straight_ends, t))
        return state | self._whole

    def tensors(self) -> State:
        """Return the leaf by its name in checkpoints."""
        return {"bends": self._leaf}

    def validated(self) -> None:
        """Return None: no single network of the curve stands for it."""
        return

    def points(self) -> list[State]:
        """Return the inner control points in order, each a dict of detached contiguous tensors that bend."""
        points = [self._layout.views(row) for row in self._leaf.detach()]
        named = [point | {alias: point[name] for alias, name in self._aliases.items()} for point in points]
        return [{name: view.clone(memory_format=torch.contiguous_format) for name, view in p.items()} for p in named]


class _Point(torch.autograd.Function):
    """weights @ controls, (P,); its gradient goes to the inner control points, with that of the decay added."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, controls: Tensor, weights: list[float], decay: float) -> Tensor:
        point = torch.tensor(weights, device=controls.device) @ controls
        ctx.inner, ctx.decay = weights[1:-1], decay
        ctx.save_for_backward(point if decay else None)
        return point

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        # Changed in place, which saves two passes over memory: it is the fresh concatenation that the one split of the
        # point has made, and nobody else holds it.
        (gradient,) = gradients
        if ctx.decay:
            gradient.add_(ctx.saved_tensors[0], alpha=ctx.decay)
        if len(ctx.inner) == 1:
            return gradient.mul_(ctx.inner[0])[None], None, None, None
        return torch.outer(torch.tensor(ctx.inner, device=gradient.device), gradient), None, None, None


def _aliases(model: nn.Module, bending: Mapping[str, Tensor]) -> dict[str, str]:
    """The further names of tied parameters, each with the name under which it bends."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tied = model.named_parameters(remove_duplicate=False)
    return {name: names[id(p)] for name, p in tied if names[id(p)] != name and names[id(p)] in bending}
