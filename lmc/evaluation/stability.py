"""How sure a matching of units is of itself: of two networks that lie in one frame, group by group.

Activation matching has been called more stable than weight matching (Sharma et al. 2024; Adnan et al. 2025). What that
can mean is measured here for the similarities of both: whether the matching comes back when it is looked for anew,
whether two searches agree that nothing but chance sets apart, and how much better it is than others.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lmc.alignment.assignment import assign
from lmc.alignment.problem import Problem
from lmc.alignment.similarity.observed import ByActivations
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.alignment.sinkhorn import balance
from lmc.alignment.weight_matching import WeightMatching
from lmc.dataset.images import Dataset, Images
from lmc.evaluation.along_curve import observable
from lmc.seeding import derive
from lmc.statistics.moments import wide
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry, unit_rows

SEARCHES = 2
"""Two halves of the images, and two descents of weight matching: each pair is compared with itself."""

Pair = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Softness:
    """How the Sinkhorn operator weighs matchings against each other.

    Args:
        temperature: tau, in units of the spread of the similarities; see `entropy`.
        iterations: at most so many.
        tolerance: distance of a row sum from 1 at which they end.
    """

    temperature: float
    iterations: int = 1000
    tolerance: float = 1e-4


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """How sure one kind of similarity is of the matching of a group.

    Attributes:
        kept: share of the units that the best matching leaves where they are.
        agreement: share of the units that two searches match alike.
        entropy: of the soft matching, 0 (certain) to 1 (uniform); see `entropy`.
        margin: what the cheapest exchange of a unit with another one costs, mean over units, in units of the spread;
            nan of a single unit, or where there is no spread.
        violation: how far from 1 the rows of the soft matching were when its iterations ended.
    """

    kept: float
    agreement: float
    entropy: float
    margin: float
    violation: float


@dataclass(frozen=True, kw_only=True)
class GroupStability:
    """One group.

    Attributes:
        group: its name.
        units: how many there are.
        fixed_points: share of the matched pairs of units that stood at the same place before the networks were brought
            together, too; None if these are no permuted copies of what they were.
        weights: by inner products of weights, everything else held where it is.
        activations: by correlations of activations; None where the group cannot be observed.
    """

    group: str
    units: int
    fixed_points: float | None
    weights: Certainty
    activations: Certainty | None


def origins(symmetry: Symmetry, group: str, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor | None:
    """Return (units,) int64 on the CPU: unit i of `after` is unit p[i] of `before`; None if it is no permuted copy.

    Recovered from the tensors alone, so that it is what was done to the network, whichever method found it, and whether
    it was matched with one network or with several. A unit is known by the numbers that stand along it in the trainable
    tensors, in whatever order: the order is that of other groups, which may have moved too. Units that are the same by
    these numbers keep their order.

    Args:
        symmetry: of the architecture.
        group: its name.
        before: a network.
        after: the same network, with its units in another order.
    """
    prints = []
    for state in (before, after):
        rows = [
            unit_rows(state[axis.tensor], axis, symmetry.chain(group), symmetry.axes_of[axis.tensor]).sort(1).values
            for axis in symmetry.groups[group].axes
            if axis.tensor in symmetry.parameters
        ]
        prints.append(torch.cat(rows, 1))
    _, numbers = torch.unique(torch.cat(prints), dim=0, return_inverse=True)
    was, now = numbers.cpu().split(len(prints[0]))
    (was, order), (now, places) = (each.sort(stable=True) for each in (was, now))
    if not torch.equal(was, now):
        return None
    return torch.empty_like(order).index_copy_(0, places, order)


def spread(similarity: Tensor) -> float:
    """Return the standard deviation of what is left of a similarity (n, n) without the means of its rows and columns.

    These means are the same for every matching.
    """
    values = wide(similarity)
    left = values - values.mean(0) - values.mean(1, keepdim=True) + values.mean()
    # What rounding leaves of a similarity that is a sum of a term for each row and one for each column is none.
    found = left.square().mean().sqrt().item()
    return found if found > len(values) * torch.finfo(torch.float64).eps * values.abs().max().item() else 0.0


def entropy(similarity: Tensor, softness: Softness) -> tuple[float, float]:
    """Return the mean entropy of the rows of the soft matching as a share of log n, and the violation of its rows.

    The soft matching is the doubly stochastic matrix diag(a) exp(S / (tau s)) diag(b) with the spread s of S, as
    alignment=sinkhorn has it (see `lmc.alignment.sinkhorn.balance`): of all, the one with the largest
    <P, S> / s + tau H(P). 0 where every unit has one partner, 1 where all are equal; 0 of a single unit.
    """
    scale, n = spread(similarity), len(similarity)
    if n == 1:
        return 0.0, 0.0
    if not scale:
        return 1.0, 0.0
    scores = wide(similarity) / scale
    plan, _, violation = balance(
        scores, softness.temperature, torch.zeros_like(scores[0]), softness.iterations, softness.tolerance
    )
    plan = plan / plan.sum(1, keepdim=True)
    return -torch.xlogy(plan, plan).sum(1).mean().item() / math.log(n), violation


def margins(similarity: Tensor, permutation: Tensor) -> Tensor:
    """Return (n,) float64: what the cheapest exchange of a unit's partner with another unit's costs.

    min_j S[i, p_i] + S[j, p_j] - S[i, p_j] - S[j, p_i], never negative where p is the best matching; infinite of a
    single unit.
    """
    values = wide(similarity)
    placed = values[:, permutation.to(values.device)]
    own = placed.diagonal()
    costs = own[:, None] + own - placed - placed.T
    return costs.fill_diagonal_(math.inf).amin(1)


def stability(
    model: nn.Module,
    symmetry: Symmetry,
    before: Pair,
    after: Pair,
    dataset: Dataset,
    softness: Softness,
    *,
    seed: int,
    images: int | None = 10_000,
    batch_size: int = 500,
    on_search: Callable[[Mapping[str, float]], None] | None = None,
) -> tuple[GroupStability, ...]:
    """Return how sure the matching of two networks is, of every group.

    By weights, S[i, j] is the inner product of everything that stands along unit i of one network and unit j of the
    other, all other groups held where they are (the similarity that weight matching solves last); two descents of
    weight matching from nothing, which differ in the order of the groups alone, are compared with each other. By
    activations, S is the Pearson correlation behind the nonlinearities, the mean over the places where the group is
    observed; the matchings on two disjoint halves of the images are compared, and `kept`, entropy and margin are means
    over both halves.

    Memory: 8 n^2 bytes for a group of n units and each of its places, and a few times that for one group at a time.

    Args:
        model: the architecture; never changed.
        symmetry: without groups inside others.
        before: the networks as they were trained.
        after: the same networks in one frame; all tensors on one device.
        dataset: its training images are shown, without augmentation.
        softness: of the soft matching.
        seed: of the order of the groups in both descents.
        images: at most so many in both halves together, a fixed stratified choice; None: all.
        batch_size: images in a batch; changes nothing but rounding.
        on_search: called after each of the `SEARCHES` halves, and each of the descents.

    Raises:
        UserError: no unit can be observed, an activation is not finite, or there are fewer than two images.
    """
    device = dataset.train.images.device
    problem = Problem(model, symmetry, seed, device, None)
    tell = on_search or (lambda numbers: None)
    halves = list(_halves(problem, after, dataset, images, batch_size, softness, tell))
    found = list(_descents(problem, after, tell))
    weights = WeightSimilarity(*after, symmetry, device)
    still = {name: value.to(device) for name, value in Permutation.identity(symmetry).items()}
    return tuple(
        GroupStability(
            group=name,
            units=symmetry.units(name),
            fixed_points=_fixed_points(symmetry, name, before, after),
            weights=replace(
                _certainty(weights.of(name, still), softness)[1],
                agreement=_alike(*(permutation[name] for permutation in found)),
            ),
            activations=_of_halves([half[name] for half in halves]) if name in halves[0] else None,
        )
        for name in symmetry.groups
    )


def _fixed_points(symmetry: Symmetry, name: str, before: Pair, after: Pair) -> float | None:
    one, other = (origins(symmetry, name, old, new) for old, new in zip(before, after, strict=True))
    return None if one is None or other is None else _alike(one, other)


def _alike(one: Tensor, other: Tensor) -> float:
    return (one == other).double().mean().item()


def _certainty(similarity: Tensor, softness: Softness) -> tuple[Tensor, Certainty]:
    """The best matching for a similarity, and how sure it is; the agreement is not known yet."""
    best = assign(similarity)
    uncertain, violation = entropy(similarity, softness)
    scale = spread(similarity)
    return best, Certainty(
        kept=_alike(best, torch.arange(len(best))),
        agreement=math.nan,
        entropy=uncertain,
        margin=margins(similarity, best).mean().item() / scale if scale and len(best) > 1 else math.nan,
        violation=violation,
    )


def _of_halves(halves: Sequence[tuple[Tensor, Certainty]]) -> Certainty:
    (one, first), (other, second) = halves
    return Certainty(
        kept=(first.kept + second.kept) / 2,
        agreement=_alike(one, other),
        entropy=(first.entropy + second.entropy) / 2,
        margin=(first.margin + second.margin) / 2,
        violation=max(first.violation, second.violation),
    )


def _descents(
    problem: Problem, networks: Pair, tell: Callable[[Mapping[str, float]], None]
) -> Iterator[Mapping[str, Tensor]]:
    first, second = (dict(network) for network in networks)
    for number in range(SEARCHES):
        chosen = replace(problem, seed=derive(problem.seed, "stability", number))
        matching = WeightMatching(restarts=1, start="centre")(first, second, chosen)
        tell({"descent": number + 1, "objective": matching.objective})
        yield matching.permutation


def _halves(
    problem: Problem,
    networks: Pair,
    dataset: Dataset,
    images: int | None,
    batch_size: int,
    softness: Softness,
    tell: Callable[[Mapping[str, float]], None],
) -> Iterator[dict[str, tuple[Tensor, Certainty]]]:
    first, second = (dict(network) for network in networks)
    count = len(dataset.train) if images is None else min(images, len(dataset.train))
    chosen = dataset.train.first(count)  # of which every beginning holds all classes in their shares, and so the rest
    for number in range(SEARCHES):
        half = chosen.select(torch.arange(count // SEARCHES) + number * (count // SEARCHES))
        observed = ByActivations(images=None, batch_size=batch_size).observe(
            first,
            second,
            replace(problem, batches=_batches(dataset, half)),
            joint=False,
            groups=observable(problem.symmetry),
        )
        found = {}
        for name, places in observed:
            similarity = torch.stack([place.pearson() for place in places.values()]).mean(0)
            found[name] = _certainty(similarity, softness)
        tell({"half": number + 1, "images": len(half)})
        yield found


def _batches(dataset: Dataset, half: Images) -> Callable[[int], Iterator[Tensor]]:
    return lambda size: (inputs for inputs, _ in dataset.batches(half, size))
