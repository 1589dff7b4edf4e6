"""The nudged elastic band: the forces on its pivots, and where pivots are missing."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from lmc.curve.bending import Bending
from lmc.state import State
from lmc.training.trainable import Forward, Look


class BandTrainable:
    """The pivots of a band between two networks; a `lmc.training.trainable.Composite`.

    Every step sends the same minibatch through all pivots and both ends.

    Args:
        bending: makes a network of a pivot.
        controls: (pivots + 2, P), the ends and between them the pivots to start from; they are copied.
        shares: (pivots + 1,), which part of the length of the band each segment is to have; their sum is 1.
        spring: stiffness of the springs between neighbours; None: infinite, the pivots are put in their places.
        decay: weight decay; 0.5 * decay * ||pivot||^2 belongs to the landscape.
    """

    decay_on_sample = True

    def __init__(
        self, bending: Bending, controls: Tensor, shares: Tensor, *, spring: float | None, decay: float
    ) -> None:
        self._bending, self._shares, self._spring, self._decay = bending, shares, spring, decay
        self._controls = controls.clone()
        self._leaf = self._controls[1:-1].detach().requires_grad_()
        self.stepped()

    def parameters(self) -> list[Tensor]:
        """Return the one leaf, (pivots, P)."""
        return [self._leaf]

    def state(self, generator: torch.Generator) -> State:
        """Refuse: no single network stands for the band.

        Raises:
            ValueError: always.
        """
        raise ValueError("a step of a band looks at all its pivots")

    def tensors(self) -> State:
        """Return the leaf by its name in checkpoints."""
        return {"pivots": self._leaf}

    def validated(self) -> None:
        """Return None: no single network of the band stands for it."""
        return

    def descend(self, network: Forward, images: Tensor, labels: Tensor, generator: torch.Generator) -> Look:
        """Leave the nudged gradients of all pivots (see `Composite.descend`)."""
        last = len(self._controls) - 1
        energies, gradients, seen = [], [], []
        for index, row in enumerate(self._controls.detach()):
            inner = 0 < index < last
            point = row.detach().requires_grad_(inner)
            with torch.set_grad_enabled(inner):
                logits = network(self._bending.network(point, index / last), images)
                loss = cross_entropy(logits, labels)
            energies.append(loss.detach() + 0.5 * self._decay * row.square().sum())
            if inner:
                (gradient,) = torch.autograd.grad(loss, point)
                gradients.append(gradient.add_(row, alpha=self._decay))
                seen.append(logits.detach())
        self._leaf.grad = nudged(
            torch.stack(gradients), self._controls, torch.stack(energies), self._shares, self._spring
        )
        return Look.of(None, torch.stack(seen), labels)

    @torch.no_grad()
    def stepped(self) -> None:
        """Put the pivots back into their places on the band, if the springs are infinitely stiff."""
        if self._spring is None:
            self._leaf.copy_(redistributed(self._controls, self._shares))

    def handed_on(self) -> State:
        """Return the band: "controls" (pivots + 2, P) and "shares" (pivots + 1,)."""
        return {"controls": self._controls.detach().clone(), "shares": self._shares.clone()}


def tangents(controls: Tensor, energies: Tensor) -> Tensor:
    """Return the unit tangents (n - 2, P) of a chain (n, P) at its inner points (Henkelman and Jonsson 2000, Eq. 8-11).

    On a slope it points to the higher neighbour, which keeps the chain from kinking; at a maximum or minimum it is the
    sum of both differences, the one towards the higher neighbour weighted with the larger difference in energy.

    Args:
        controls: the points.
        energies: (n,), of the points.
    """
    steps, rises = controls.diff(dim=0), energies.diff()
    before, after = rises[:-1], rises[1:]
    larger, smaller = torch.maximum(before.abs(), after.abs()), torch.minimum(before.abs(), after.abs())
    upward = energies[2:] > energies[:-2]
    one_sided = torch.stack([(~upward).to(rises), upward.to(rises)])
    both = torch.stack([torch.where(upward, smaller, larger), torch.where(upward, larger, smaller)])
    extremum = before * after <= 0
    weight = torch.where(extremum & (larger > 0), both, one_sided)
    found = weight[0][:, None] * steps[:-1] + weight[1][:, None] * steps[1:]
    return torch.nn.functional.normalize(found, dim=1)


def nudged(gradients: Tensor, controls: Tensor, energies: Tensor, shares: Tensor, spring: float | None) -> Tensor:
    """Return what the optimiser descends, (n - 2, P): the gradient across the tangent, and the springs along it.

    Args:
        gradients: (n - 2, P), of the landscape at the inner points.
        controls: (n, P).
        energies: (n,), of the points.
        shares: (n - 1,), which part of the length each segment is to have: the springs are at rest when they do.
        spring: k of the force k * (stretch after - stretch before) along the tangent; None: no such force.
    """
    along = tangents(controls, energies)
    found = gradients - (gradients * along).sum(1, keepdim=True) * along
    if spring is None:
        return found
    lengths = controls.diff(dim=0).norm(dim=1)
    stretch = lengths - shares * lengths.sum()
    pull: Tensor = spring * stretch.diff()[:, None] * along
    return found - pull


def redistributed(controls: Tensor, shares: Tensor) -> Tensor:
    """Return the inner points (n - 2, P) of a chain (n, P), moved along it to where `shares` (n - 1,) put them."""
    lengths = controls.diff(dim=0).norm(dim=1)
    ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    places = shares.to(lengths).cumsum(0)[:-1] * ends[-1]
    segment = (torch.searchsorted(ends, places, right=True) - 1).clamp(0, len(lengths) - 1)
    within = (places - ends[segment]) / lengths[segment].clamp_min(torch.finfo(lengths.dtype).tiny)
    return torch.lerp(controls[segment], controls[segment + 1], within.clamp(0, 1)[:, None])


def missing(energies: NDArray[np.float64], count: int, threshold: float) -> list[tuple[int, float]]:
    """Return where pivots are missing: at most `count` pairs (segment, place in (0, 1)), by segment.

    At most one in a segment: where the energy lies highest above the straight line between its two pivots, if that is
    more than `threshold` of the range of the pivots' energies (Draxler et al. 2018).

    Args:
        energies: (segments, samples + 2), at equal distances along each segment, its two pivots included.
        count: how many at most.
        threshold: as a fraction.
    """
    places = np.linspace(0, 1, energies.shape[1])
    first, last = energies[:, :1], energies[:, -1:]
    excess = (energies - (first * (1 - places) + last * places))[:, 1:-1]
    pivots = np.concatenate([first, last])
    enough = threshold * (pivots.max() - pivots.min())
    best = excess.argmax(axis=1)
    highest = excess.max(axis=1)
    order = [segment for segment in np.argsort(-highest, kind="stable") if highest[segment] > enough]
    return [(int(segment), float(places[best[segment] + 1])) for segment in sorted(order[:count])]


def inserted(controls: Tensor, shares: Tensor, places: Sequence[tuple[int, float]]) -> tuple[Tensor, Tensor]:
    """Return `controls` (n, P) and `shares` (n - 1,) with further pivots on the chain at `places` (see `missing`)."""
    at = dict(places)
    rows, parts = [controls[0]], []
    for segment, share in enumerate(shares):
        if segment in at:
            rows.append(torch.lerp(controls[segment], controls[segment + 1], at[segment]))
            parts += [share * at[segment], share * (1 - at[segment])]
        else:
            parts.append(share)
        rows.append(controls[segment + 1])
    return torch.stack(rows), torch.stack(parts)
