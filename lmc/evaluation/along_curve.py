"""How alike the networks along a path are to its ends, unit by unit (Tatro et al. 2020).

A path between aligned networks should pass through networks whose units still play the parts that they play at the
ends. Where a network in between correlates better with an end after it is matched with it once more, the path has
wandered from one alignment to another.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc.alignment.assignment import assign_all, flat, matched
from lmc.alignment.problem import Problem
from lmc.alignment.similarity.observed import ByActivations
from lmc.curve.base import Path
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.state import State, to_device
from lmc.statistics.base import Correction
from lmc.statistics.moments import JointMoments, Pool
from lmc.symmetry.activations import Probe
from lmc.symmetry.structure import Symmetry

_RESOLUTION = torch.finfo(torch.float32).eps


@dataclass(frozen=True, kw_only=True)
class UnitCorrelations:
    """Pearson correlations of the units of two networks that stand at the same place.

    Attributes:
        units: group to (units,) float64 on the CPU: over all images and positions of the feature map; the mean over the
            places where the group is observed. A dead unit (constant in one of the networks) counts as 0.
        live: group to (units,) bool: which units are dead at none of the places.
    """

    units: Mapping[str, Tensor]
    live: Mapping[str, Tensor]

    @property
    def groups(self) -> dict[str, float]:
        """The mean over the units of each group."""
        return {name: values.mean().item() for name, values in self.units.items()}

    @property
    def total(self) -> float:
        """The mean over all units of all groups."""
        return torch.cat(list(self.units.values())).mean().item()


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """The network at `t` beside both ends of its path.

    Attributes:
        t: where.
        fixed: its units and those of the network at 0.
        moving: its units and those of the network at 1.
    """

    t: float
    fixed: UnitCorrelations
    moving: UnitCorrelations


@dataclass(frozen=True, kw_only=True)
class Rematching:
    """What one more matching would change between two networks; the fields are by group.

    Attributes:
        units: how many units.
        moved: fraction of the units that would be matched with another one.
        before: mean correlation of units at the same place, as `UnitCorrelations.groups`.
        after: mean correlation of matched units; never less, as it is what the matching maximises.
    """

    units: Mapping[str, int]
    moved: Mapping[str, float]
    before: Mapping[str, float]
    after: Mapping[str, float]

    def total(self, of: Mapping[str, float]) -> float:
        """Return the mean over all units of `moved`, `before` or `after`."""
        return sum(self.units[name] * value for name, value in of.items()) / sum(self.units.values())

    @property
    def gain(self) -> float:
        """By how much the mean correlation over all units would rise."""
        return self.total(self.after) - self.total(self.before)


def observable(symmetry: Symmetry) -> list[str]:
    """Return the groups of `symmetry` whose units appear in the network behind a nonlinearity.

    Raises:
        UserError: there is none.
    """
    seen = [name for name, group in symmetry.groups.items() if any(site.kind == "post" for site in group.sites)]
    if not seen:
        raise UserError(
            "no unit of this network can be observed behind a nonlinearity, so there is nothing to correlate; choose "
            "another architecture or leave this analysis out"
        )
    return seen


def correlations_along(
    model: nn.Module,
    symmetry: Symmetry,
    path: Path,
    correction: Correction,
    dataset: Dataset,
    points: Sequence[float],
    *,
    examples: int | None = 10_000,
    batch_size: int = 500,
    on_point: Callable[[Mapping[str, float]], None] | None = None,
) -> list[CurvePoint]:
    """Return for each t of `points` how the units of the network there correlate with those of both ends.

    Args:
        model: the architecture; never changed.
        symmetry: of the architecture; groups that appear in no value of the network are left out.
        path: gives the network at t.
        correction: what is done to each network, with the weights (1 - t, t); to both ends too, so that all networks
            are treated alike.
        dataset: the first training images, without augmentation, are shown to the networks, on their device.
        points: values of t.
        examples: at most so many images (Tatro et al.: 10,000); None: all.
        batch_size: images in a batch; changes nothing but rounding.
        on_point: called after each point with t and both mean correlations.

    Raises:
        UserError: no unit can be observed.
    """
    problem = _problem(model, symmetry, dataset)
    probe = Probe(model, symmetry, "post", observable(symmetry))
    ends = [_network(path, correction, t, problem.device) for t in (0.0, 1.0)]
    found = []
    for t in points:
        between = _network(path, correction, t, problem.device)
        pools: dict[str, Pool[JointMoments]] = {}
        for images in problem.images(examples, batch_size):
            for group, place, values in probe([*ends, between], images):
                pools.setdefault(group, Pool()).add(place, JointMoments.of(values, 0))
        found.append(CurvePoint(t=t, fixed=_correlations(pools, 0), moving=_correlations(pools, 1)))
        if on_point is not None:
            on_point({"t": t, "fixed": found[-1].fixed.total, "moving": found[-1].moving.total})
    return found


def rematch(
    model: nn.Module,
    symmetry: Symmetry,
    path: Path,
    correction: Correction,
    dataset: Dataset,
    t: float = 0.5,
    *,
    examples: int | None = 10_000,
    batch_size: int = 500,
    on_end: Callable[[Mapping[str, float]], None] | None = None,
) -> tuple[Rematching, Rematching]:
    """Match the network at `t` by its activations with each end; return what that changes: (fixed, moving).

    The matching is that of `ActivationMatching` with its defaults: every group on its own, by Pearson correlation, on
    the sum over the places where it is observed. Nothing is permuted.

    Args:
        model, symmetry, path, correction, dataset, examples, batch_size: as in `correlations_along`.
        t: which network.
        on_end: called after each end with its number (0 or 1) and the gain.

    Raises:
        UserError: no unit can be observed, or an activation is not finite.
    """
    problem = _problem(model, symmetry, dataset)
    between = _network(path, correction, t, problem.device)
    found = []
    for number, place in enumerate((0.0, 1.0)):
        end = _network(path, correction, place, problem.device)
        observed = ByActivations(images=examples, batch_size=batch_size).observe(
            end, between, problem, joint=False, groups=observable(symmetry)
        )
        # The mean over places orders the matchings as the sum does.
        similarities = {
            name: torch.stack([one.pearson() for one in places.values()]).mean(0) for name, places in observed
        }
        found.append(_rematching(symmetry, similarities))
        if on_end is not None:
            on_end({"end": number, "gain": found[-1].gain})
    return found[0], found[1]


def _rematching(symmetry: Symmetry, similarities: Mapping[str, Tensor]) -> Rematching:
    """The best matching for the correlations (units, units) of each group, against the one that moves nothing."""
    unseen = {
        name: torch.zeros(symmetry.units(name), symmetry.units(name), dtype=torch.float64)
        for name in symmetry.groups
        if name not in similarities
    }
    permutations = assign_all(symmetry, {**similarities, **unseen})
    moved, before, after = {}, {}, {}
    for name, values in similarities.items():
        chosen = flat(symmetry, symmetry.chain(name), permutations)
        idle = torch.arange(len(values))
        moved[name] = (chosen.cpu() != idle).double().mean().item()
        before[name] = matched(values, idle).mean().item()
        after[name] = matched(values, chosen).mean().item()
    return Rematching(
        units={name: len(values) for name, values in similarities.items()}, moved=moved, before=before, after=after
    )


def _correlations(pools: Mapping[str, Pool[JointMoments]], end: int) -> UnitCorrelations:
    """Of the units of network `end` with those of the last network, from the moments of all."""
    units, live = {}, {}
    for name, pool in pools.items():
        places = [_place(joint, end) for joint in pool.values()]
        units[name] = torch.stack([values for values, _ in places]).mean(0).cpu()
        live[name] = torch.stack([alive for _, alive in places]).all(0).cpu()
    return UnitCorrelations(units=units, live=live)


def _place(joint: JointMoments, end: int) -> tuple[Tensor, Tensor]:
    """(units,) correlations at one place, 0 for dead units, and which units are not dead."""
    pair = [end, len(joint.mean) - 1]
    squares = joint.products.diagonal().T[pair]  # (2, units)
    alive = ((squares / joint.count).sqrt() > _RESOLUTION * joint.mean[pair].abs()).all(0)
    product = joint.products[pair[0], pair[1]]
    return torch.where(alive, product * squares.prod(0).rsqrt(), 0.0).clamp(-1, 1), alive


def _network(path: Path, correction: Correction, t: float, device: torch.device) -> State:
    return to_device(correction(path.state(t), (1 - t, t)), device)


def _problem(model: nn.Module, symmetry: Symmetry, dataset: Dataset) -> Problem:
    def batches(batch_size: int) -> Iterator[Tensor]:
        return (images for images, _ in dataset.batches(dataset.train, batch_size))

    return Problem(model, symmetry, 0, dataset.train.images.device, batches)
