"""Optimal transport: the units of one network are transported to those of the other, layer by layer."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from lmc.alignment.problem import Matching, OneCheckpoint, OnStep, Problem, check_pair, until_interrupted
from lmc.alignment.similarity.observed import ByActivations
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Axis, Symmetry, unit_rows
from lmc.symmetry.transform import LinearMap, mix, refuse_blocks

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class OptimalTransport(ByActivations, OneCheckpoint):
    """Transports the units of `moving` to those of `fixed` at the least cost (Singh and Jaggi 2020, OTFusion).

    Every unit of either network weighs 1 / n. Group by group, in the order of the network, the plan T (n, n) minimises
    <T, C>, C[i, j] being the distance between unit i of `fixed` and unit j of `moving`; an entropic plan (Cuturi 2013)
    minimises <T, C> less `regularisation` times the mean of C times the entropy of T. What makes units is multiplied by
    the barycentric map M = n T, whose rows sum to one, and what reads them by N = M^T. An exact plan between equally
    many units of equal weight is a permutation, and is returned as one; an entropic one mixes units, and the mapped
    network computes something else than `moving`.

    `cost` "weights" compares what makes, scales or shifts a unit: all trainable tensors, those of `moving` mapped by
    the plans found before. (The authors leave biases out.) Plans are not revised, as in their code; groups whose turn
    has not come count as unmatched, all of their units as their mean: of a residual stream only what the groups before
    it make is told apart.

    `cost` "activations" compares the answers to the same images: the root of the mean squared difference over all
    images and positions, squares added over the places where a group is observed. With squared distances an exact plan
    is the assignment by the products of activations (`activation_matching` with `similarity` "product").

    The objective, to be minimised, is the mean distance over which a unit is transported, over all groups.

    Trace: one record for each group in the order of the symmetry, {"group" (its number), "units", "cost" (the mean
    distance under the plan), "identity" (the same if its units stay where they are)}.

    Memory: of one group of n units at a time, about 40 n^2 bytes and its incoming weights in float64; by activations 8
    n^2 bytes for each place at which a group is observed, of as many groups as `memory` has room for; and 8 n^2 bytes
    for each entropic map that is returned.

    Args:
        cost: what units are compared by.
        distance: "euclidean", as in OTFusion's experiments, or "squared" Euclidean.
        plan: "exact" (network simplex) or "entropic" (Sinkhorn's iterations on logarithms, which neither overflow nor
            underflow).
        regularisation: of an entropic plan, as a share of the mean cost; the less, the closer to exact and the slower.
        max_iterations: of Sinkhorn for a group.
        tolerance: on the marginals of an entropic plan, as a share of all that is transported.
        kind: of the activations: "pre", as in OTFusion's experiments, are inputs of the nonlinearities, "post" outputs.
        images, batch_size, memory: of the activations, if they are compared; see `ByActivations`.
    """

    cost: Literal["weights", "activations"] = "weights"
    distance: Literal["euclidean", "squared"] = "euclidean"
    plan: Literal["exact", "entropic"] = "exact"
    regularisation: Annotated[float, Field(gt=0)] = 0.03
    max_iterations: PositiveInt = 10_000
    tolerance: Annotated[float, Field(gt=0)] = 1e-5
    kind: Literal["post", "pre"] = "pre"

    @property
    def is_soft(self) -> bool:
        """Whether units are mixed: by an entropic plan."""
        return self.plan == "entropic"

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` if some groups live inside others, or by weights if no trainable tensor makes a group."""
        refuse_blocks(symmetry, type(self).__name__)
        if self.cost == "weights":
            for name in symmetry.groups:
                if not _making(name, symmetry):
                    raise UserError(
                        f"no trainable tensor makes the units of group {name!r}, which leaves no weights to compare; "
                        "set alignment.cost=activations"
                    )

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the matching; see `lmc.alignment.problem.Alignment`. Groups that Ctrl-C leaves undone stay as is.

        Raises:
            UserError: also what `check` refuses, or if by activations a group cannot be observed or is not finite.
        """
        symmetry = problem.symmetry
        self.check(symmetry)
        check_pair(fixed, moving, symmetry)
        plans: dict[str, Tensor] = {}
        trace: list[dict[str, float]] = []
        with until_interrupted() as run:
            for number, (name, squares) in enumerate(self._squares(fixed, moving, plans, problem, on_step)):
                costs = squares if self.distance == "squared" else squares.sqrt()
                plan = self._plan(name, costs)
                plans[name] = plan.argmax(1) if self.plan == "exact" else plan
                record = {
                    "group": number,
                    "units": len(costs),
                    "cost": (plan.to(costs) * costs).sum().item() / len(costs),
                    "identity": costs.diagonal().mean().item(),
                }
                trace.append(record)
                if on_step is not None:
                    on_step(record)
        units = sum(record["units"] for record in trace)
        objective = sum(record["units"] * record["cost"] for record in trace) / max(1, units)
        if self.plan == "exact":
            permutation = Permutation(symmetry, {**Permutation.identity(symmetry), **plans})
            return Matching(permutation, objective, trace, run.complete)
        still = {name: torch.eye(group.size) for name, group in symmetry.groups.items() if name not in plans}
        return Matching(LinearMap.symmetric(symmetry, {**plans, **still}), objective, trace, run.complete)

    def _squares(
        self, fixed: State, moving: State, plans: Mapping[str, Tensor], problem: Problem, on_step: OnStep | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield each group with the squared distances (n, n) of its units; by weights, of units mapped by `plans`."""
        if self.cost == "weights":
            for name in problem.symmetry.groups:
                yield name, _between_weights(name, fixed, moving, plans, problem)
        else:
            for name, places in self.observe(fixed, moving, problem, joint=False, on_step=on_step):
                yield name, torch.stack([place.distance() for place in places.values()]).sum(0)

    def _plan(self, name: str, costs: Tensor) -> Tensor:
        """The plan n T (n, n) of a group, on the CPU."""
        return _exact(name, costs) if self.plan == "exact" else self._entropic(name, costs).cpu()

    def _entropic(self, name: str, costs: Tensor) -> Tensor:
        n, scale = len(costs), costs.mean()
        if scale == 0:  # all units are equal, and any plan costs nothing
            return torch.full_like(costs, 1 / n)
        weights = torch.full_like(costs[0], 1 / n)
        found: Tensor = _transport().sinkhorn(
            weights,
            weights,
            costs / scale,
            reg=self.regularisation,
            method="sinkhorn_log",
            numItermax=self.max_iterations,
            stopThr=self.tolerance / n**0.5,  # on the Euclidean norm, which bounds the sum of the deviations
            warn=False,
        )
        missing = max((found.sum(side) - weights).abs().sum().item() for side in (0, 1))
        if missing > self.tolerance:
            log.warning(
                "the plan of group %r has not converged after %d iterations: %.1e of what is transported is amiss; "
                "raise alignment.max_iterations or alignment.regularisation",
                name,
                self.max_iterations,
                missing,
            )
        return found / found.sum(1, keepdim=True)


def _exact(name: str, costs: Tensor) -> Tensor:
    given = costs.cpu().numpy()
    ones = torch.ones(len(given), dtype=torch.float64).numpy()  # n times the weights: sums of them are exact
    # The simplex needs pivots in the order of n^2; a limit is only there against an endless loop.
    found, record = _transport().emd(ones, ones, given, numItermax=100_000 + 100 * given.size, log=True)
    if record["warning"] is not None:
        raise RuntimeError(f"group {name!r}: {record['warning']}")
    return torch.from_numpy(found)


def _transport() -> Any:
    """POT, imported when it is needed: it brings scikit-learn along, which takes seconds."""
    with warnings.catch_warnings():
        # Raised by the compiler at the very first import (POT 0.9.7): an invalid escape sequence in a docstring.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", SyntaxWarning)
        import ot  # type: ignore[import-untyped]
    return ot


def _between_weights(name: str, fixed: State, moving: State, plans: Mapping[str, Tensor], problem: Problem) -> Tensor:
    """(n, n) squared Euclidean distances of the incoming weights of two units, as far as they are aligned."""
    symmetry, device = problem.symmetry, problem.device
    size = symmetry.groups[name].size
    total = torch.zeros(size, size, dtype=torch.float64, device=device)
    for axis in _making(name, symmetry):
        ours = _rows(name, axis, fixed[axis.tensor].to(device), symmetry, plans, moves=False)
        theirs = _rows(name, axis, moving[axis.tensor].to(device), symmetry, plans, moves=True)
        total += ours.square().sum(1)[:, None] + theirs.square().sum(1) - 2 * ours @ theirs.T
    return total.clamp(min=0)


def _making(name: str, symmetry: Symmetry) -> list[Axis]:
    """The axes along which trainable tensors make, scale or shift the units of a group."""
    return [
        axis
        for axis in symmetry.groups[name].axes
        if axis.tensor in symmetry.parameters
        and ((axis.tensor, axis.dim) not in symmetry.reading or (axis.tensor, axis.dim) in symmetry.both_ways)
    ]


def _rows(
    name: str, axis: Axis, tensor: Tensor, symmetry: Symmetry, plans: Mapping[str, Tensor], *, moves: bool
) -> Tensor:
    """One row for each unit of a group along `axis`; the other units mapped, or replaced by their mean if unmatched.

    Plans are matrices, or permutations.
    """
    axes = symmetry.axes_of[axis.tensor]
    for other in axes:
        maps = {}
        for group in other.groups - ({name} if other is axis else set()):
            size = symmetry.groups[group].size
            if group not in plans:
                maps[group] = torch.full((1, 1), 1 / size).expand(size, size)
            elif moves:
                maps[group] = plans[group] if plans[group].ndim == 2 else torch.eye(size)[plans[group]]
        tensor = mix(tensor, other, maps)
    return unit_rows(tensor, axis, (name,), axes).to(torch.float64)
