"""How alike two networks' units answer: second moments of their activations, pooled over all samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

_CHUNK = 2**22
"""Activations of one network that are widened to float64 at a time: 32 MiB."""

_RESOLUTION = torch.finfo(torch.float32).eps


@dataclass
class PairMoments:
    """First and second moments of n units of two networks over the same samples, in float64.

    Pooled: batches are merged exactly (Chan, Golub, LeVeque 1983), so that nothing but rounding depends on how the
    samples came in batches. A mean over batches of their deviations or correlations is not the pooled value.

    Attributes:
        count: samples (examples times positions).
        means: (n,) of the fixed and of the moving network.
        squares: (n,) sums of squared deviations from the mean, of both.
        products: (n, n) sums of products of deviations; rows belong to the fixed network.
    """

    count: int
    means: tuple[Tensor, Tensor]
    squares: tuple[Tensor, Tensor]
    products: Tensor

    @classmethod
    def none(cls, units: int, device: torch.device) -> "PairMoments":
        """Return the moments of no samples."""
        zero = torch.zeros(units, dtype=torch.float64, device=device)
        return cls(0, (zero, zero), (zero, zero), zero.new_zeros(units, units))

    def add(self, fixed: Tensor, moving: Tensor) -> None:
        """Merge samples of both networks, each (n, samples), in the same order of samples."""
        width = max(1, _CHUNK // max(1, len(fixed)))
        for ours, theirs in zip(torch.split(fixed, width, dim=1), torch.split(moving, width, dim=1), strict=True):
            self._merge(ours.to(torch.float64), theirs.to(torch.float64))

    def _merge(self, fixed: Tensor, moving: Tensor) -> None:
        count = fixed.shape[1]
        means = (fixed.mean(1), moving.mean(1))
        deviations = (fixed - means[0][:, None], moving - means[1][:, None])
        steps = (means[0] - self.means[0], means[1] - self.means[1])
        total = self.count + count
        weight = self.count * count / total
        self.products.addmm_(deviations[0], deviations[1].T).addr_(steps[0], steps[1], alpha=weight)
        first, second = (
            self.squares[side] + deviations[side].square().sum(1) + steps[side].square() * weight for side in (0, 1)
        )
        self.squares = (first, second)
        self.means = (self.means[0] + steps[0] * (count / total), self.means[1] + steps[1] * (count / total))
        self.count = total

    def pearson(self) -> Tensor:
        """Return the (n, n) correlation coefficients; 0 for a unit that is constant in either network.

        A unit is constant if its deviation is below the float32 resolution of its mean: what is left is rounding.
        """
        scales = []
        for mean, squares in zip(self.means, self.squares, strict=True):
            dead = (squares / self.count).sqrt() <= _RESOLUTION * mean.abs()
            scales.append(torch.where(dead, 0.0, squares.rsqrt()))
        return (self.products * scales[0][:, None] * scales[1]).clamp(-1, 1)

    def product(self) -> Tensor:
        """Return the (n, n) mean products E[a b], not centred (Ainsworth et al. 2023, Eq. 1)."""
        return self.products / self.count + torch.outer(*self.means)

    def cosine(self) -> Tensor:
        """Return the (n, n) cosines E[a b] / sqrt(E[a^2] E[b^2]), not centred; 0 for a unit that is always zero."""
        scales = [torch.where(power > 0, power.rsqrt(), 0.0) for power in self._powers()]
        return (self.product() * scales[0][:, None] * scales[1]).clamp(-1, 1)

    def distance(self) -> Tensor:
        """Return the (n, n) mean squared distances E[(a - b)^2], not centred."""
        fixed, moving = self._powers()
        return (fixed[:, None] + moving - 2 * self.product()).clamp(min=0)

    def _powers(self) -> tuple[Tensor, Tensor]:
        """(n,) mean squares E[a^2] of the units of both networks."""
        first, second = (
            squares / self.count + mean.square() for squares, mean in zip(self.squares, self.means, strict=True)
        )
        return first, second
