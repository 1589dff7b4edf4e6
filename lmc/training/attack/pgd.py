"""Projected gradient descent within a box around every image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import cross_entropy

from lmc.errors import UserError
from lmc.training.attack.base import Logits


@dataclass(frozen=True, kw_only=True)
class PGD:
    """The l-infinity attack of Madry et al. 2018, Eq. 2: x <- project(x + step * sign(gradient of the loss at x)).

    The loss is the cross-entropy. The projection goes onto the images in [0, 1] of which no pixel is further than
    `budget` from that of the given image: exactly, the bounds are rounded inwards. One step from the image itself with
    step = budget is the fast gradient sign method (Goodfellow et al. 2015).

    Args:
        budget: greatest change of a pixel; pixels are in [0, 1], not normalised (8/255 = 0.0314).
        step: change of a pixel in one step, in the same unit.
        steps: number of steps; each costs a forward and a backward pass.
        random_start: begin at a point drawn uniformly from the box instead of at the image.

    Raises:
        UserError: a step longer than from one end of the box to the other.
    """

    budget: Annotated[float, Field(gt=0, le=1)] = 8 / 255
    step: Annotated[float, Field(gt=0)] = 2 / 255
    steps: PositiveInt = 5
    random_start: bool = True

    def __post_init__(self) -> None:
        if self.step > 2 * self.budget:
            raise UserError(
                f"attack.step={self.step:g} is more than twice attack.budget={self.budget:g}, so that every step ends "
                "at the border of the budget; give a step of at most twice the budget"
            )

    def __call__(self, network: Logits, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return the attacked images (see `Attack.__call__`)."""
        low, high = box(images, self.budget)
        attacked = images.detach()
        if self.random_start:
            drawn = torch.rand(images.shape, generator=generator, device=generator.device).to(images.device)
            attacked = (attacked + (2 * drawn - 1) * self.budget).clamp(low, high)
        for _ in range(self.steps):
            attacked = (attacked + self.step * _uphill(network, attacked, labels)).clamp(low, high)
        return attacked


def box(images: Tensor, budget: float) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest value, in [0, 1], that each pixel of `images` may take.

    The numbers are float32, and the exact difference of each from the pixel is not more than `budget`.
    """
    exact = images.detach().double()
    low, high = (exact - budget).clamp(min=0), (exact + budget).clamp(max=1)
    return _rounded(low, torch.inf, torch.lt), _rounded(high, -torch.inf, torch.gt)


def _rounded(exact: Tensor, towards: float, outside: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The float32 number next to each of `exact` (float64) on the side that is not `outside`."""
    near = exact.float()
    inner = torch.nextafter(near, torch.full_like(near, towards))
    return torch.where(outside(near.double(), exact), inner, near)


@torch.enable_grad()
def _uphill(network: Logits, images: Tensor, labels: Tensor) -> Tensor:
    """The signs of the gradient with respect to the images alone: nothing is computed for the parameters.

    The losses are summed, not averaged, so that the gradient of an image does not depend on how many there are.
    """
    images = images.detach().requires_grad_()
    loss = cross_entropy(network(images), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return gradient.sign()
