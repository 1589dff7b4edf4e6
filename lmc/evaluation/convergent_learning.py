"""Do networks that were trained apart have the same units? Correlations of all units with all (Li et al. 2015)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc.alignment.assignment import assign, matched
from lmc.alignment.problem import Problem
from lmc.alignment.similarity.correlation import PairMoments
from lmc.alignment.similarity.observed import ByActivations
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.along_curve import observable
from lmc.state import State
from lmc.symmetry.activations import Probe
from lmc.symmetry.structure import Symmetry

NOBODY = -1
"""The partner of a unit that has none."""


@dataclass(frozen=True, kw_only=True)
class UnitCorrelations:
    """Pearson correlations of the n units of one group within and between two networks.

    The samples are all images, all positions of the feature map, and all places of the network where the group is
    observed, each unit standardised at each place. For a group that is observed at one place this is the correlation
    there; for one at several places the mean of theirs.

    Attributes:
        group: its name.
        fixed: (n, n) float64 within the first network; ones on the diagonal.
        moving: (n, n) float64 within the second network.
        between: (n, n) float64; rows are units of the first network.
        live: (2, n) bool: the units of each network that are not constant at all places. The correlations of the others
            are 0, also with themselves.
    """

    group: str
    fixed: Tensor
    moving: Tensor
    between: Tensor
    live: Tensor

    @property
    def units(self) -> int:
        """How many units each network has."""
        return len(self.between)

    def of_live(self) -> tuple[Tensor, Tensor]:
        """The correlations of the live units of both networks, those of the first before those of the second.

        Returns:
            (live, live) float64, and (live,) bool: which of them belong to the second network.
        """
        joint = torch.cat([torch.cat([self.fixed, self.between], 1), torch.cat([self.between.T, self.moving], 1)])
        live = self.live.flatten()
        second = torch.arange(2 * self.units, device=joint.device) >= self.units
        return joint[live][:, live], second[live]


@dataclass(frozen=True, kw_only=True)
class Partners:
    """Which units of two networks belong together, one to one and each on its own.

    Attributes:
        match: (n,) the unit of the second network that each unit of the first is matched with, one to one, such that
            the sum of correlations is the greatest.
        matched: (n,) float64 the correlations of these pairs.
        best: (2, n) semi-matching: for each unit of the first network the unit of the second that correlates most with
            it, and for each of the second that of the first; several may have the same. `NOBODY` for dead units.
        highest: (2, n) float64 the correlations of these pairs; 0 for dead units.
        chosen: (2, n) for each unit of the first network how many of the second have it as their best, and the other
            way round.
    """

    match: Tensor
    matched: Tensor
    best: Tensor
    highest: Tensor
    chosen: Tensor


def observed_groups(model: nn.Module, symmetry: Symmetry) -> list[str]:
    """Return the groups whose units are compared: those that can be told apart behind a nonlinearity.

    Raises:
        UserError: there is none.
    """
    return list(Probe(model, symmetry, "post", observable(symmetry)).places)


def unit_correlations(
    model: nn.Module,
    symmetry: Symmetry,
    networks: tuple[State, State],
    dataset: Dataset,
    *,
    groups: Sequence[str] | None = None,
    examples: int | None = 10_000,
    batch_size: int = 500,
    memory: float = 4.0,
) -> Iterator[UnitCorrelations]:
    """Yield the correlations of every group, from as few passes over the images as memory allows.

    Args:
        model: the architecture; never changed.
        symmetry: of the architecture.
        networks: the two, each in its own frame.
        dataset: its first training images, without augmentation, are shown to the networks, on its device.
        groups: some of `observed_groups`; None for all.
        examples: at most so many images; None: all.
        batch_size: images in a batch; changes nothing but rounding.
        memory: GiB of moments that are held at a time; (2n)^2 numbers a group and place.

    Raises:
        UserError: no unit can be observed, or an activation is not finite.
    """
    chosen = observed_groups(model, symmetry) if groups is None else list(groups)
    device = dataset.train.images.device
    problem = Problem(
        model, symmetry, 0, device, lambda size: (images for images, _ in dataset.batches(dataset.train, size))
    )
    seen = ByActivations(images=examples, batch_size=batch_size, memory=memory)
    for name, places in seen.observe(*networks, problem, joint=True, groups=chosen):
        yield _standardised(name, list(places.values()))


def _standardised(group: str, places: Sequence[PairMoments]) -> UnitCorrelations:
    """From the moments of the units of both networks, (2n, 2n), at every place."""
    joint = torch.stack([place.pearson() for place in places]).mean(0)
    own = joint.diagonal()  # the share of the places at which the unit is not constant
    live = own > 0
    scale = torch.where(live, own.rsqrt(), 0.0)
    joint = (joint * scale[:, None] * scale).clamp(-1, 1)
    joint.diagonal().copy_(live)
    n = len(joint) // 2
    return UnitCorrelations(
        group=group, fixed=joint[:n, :n], moving=joint[n:, n:], between=joint[:n, n:], live=live.reshape(2, n)
    )


def partners(found: UnitCorrelations) -> Partners:
    """Return the best one-to-one matching of the units of two networks, and the best partner of each on its own.

    Both maximise the sum of (signed) correlations; a semi-matching may give a unit to several others. The units of a
    group inside others (the dimensions of attention heads) are matched among all of the group, whichever block they
    are in: the question is which units are alike, not which can be exchanged.
    """
    match = assign(found.between)
    sides = [_best(found.between, *found.live), _best(found.between.T, *found.live.flip(0))]
    best = torch.stack([side[0] for side in sides])
    chosen = torch.stack([torch.bincount(row[row != NOBODY], minlength=found.units) for row in best.flip(0)])
    return Partners(
        match=match,
        matched=matched(found.between, match).cpu(),
        best=best,
        highest=torch.stack([side[1] for side in sides]),
        chosen=chosen,
    )


def _best(between: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """For each live row the live column with the highest value, and this value; on the CPU."""
    values, best = between.masked_fill(~columns, -torch.inf).max(1)
    some = rows & columns.any()
    return best.where(some, NOBODY).cpu(), values.where(some, 0.0).cpu()


def check_shares(shares: Sequence[float], setting: str) -> None:
    """Raise a `UserError` unless `shares` are some different numbers in (0, 1]."""
    if not shares or len(set(shares)) < len(shares) or not all(0 < share <= 1 for share in shares):
        raise UserError(f"{setting}={list(shares)}: give at least one number, all different, above 0 and at most 1")
