"""Training the inner control points of a curve."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lmc.curve.bending import Bending, combination
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
        self._bending = Bending(model, fixed, moving, channels_last=channels_last)
        self._controls = straight_chain(self._bending.flatten(fixed), self._bending.flatten(moving), bends)
        self._leaf = self._controls[1:-1].detach().requires_grad_()

    def parameters(self) -> list[Tensor]:
        """Return the one leaf, (bends, P)."""
        return [self._leaf]

    def state(self, generator: torch.Generator) -> State:
        """Return the network at a t drawn uniformly from [0, 1]; its buffers are throw-away copies."""
        return self.at(float(torch.rand((), generator=generator, dtype=torch.float64)))

    def at(self, t: float) -> State:
        """Return the network at `t`, differentiable in `parameters`; its buffers are throw-away copies."""
        point = combination(self._leaf, self._controls, self._weights(t), slice(1, -1), self._decay)
        return self._bending.network(point, t)

    def tensors(self) -> State:
        """Return the leaf by its name in checkpoints."""
        return {"bends": self._leaf}

    def validated(self) -> None:
        """Return None: no single network of the curve stands for it."""
        return

    def points(self) -> list[State]:
        """Return the inner control points in order, each a dict of detached contiguous tensors that bend."""
        return self._bending.points(self._leaf)


def straight_chain(first: Tensor, last: Tensor, inner: int) -> Tensor:
    """Return (inner + 2, P): `first`, `inner` evenly spaced points of the line, `last` (vectors of length P)."""
    return torch.stack([torch.lerp(first, last, t) for t in torch.linspace(0, 1, inner + 2).tolist()])
