"""Merging by canonical correlation analysis: directions in the space of units are matched instead of units."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lmc.alignment.problem import Matching, OnStep, PlainGroupsOnly, Problem, check_pair, until_interrupted
from lmc.alignment.similarity.correlation import PairMoments
from lmc.alignment.similarity.observed import ByActivations
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import LinearMap, refuse_both_ways


@dataclass(frozen=True, kw_only=True)
class CanonicalCorrelation(ByActivations, PlainGroupsOnly):
    """Maps the units of `moving` to those of `fixed` by canonical correlation analysis (Horoi et al. 2024, CCA Merge).

    With the covariances S_xx (fixed), S_yy (moving) and S_xy of a group's activations, and U S V^T the singular value
    decomposition of S_xx^-1/2 S_xy S_yy^-1/2, what makes units is multiplied by M = S_xx^1/2 U V^T S_yy^-1/2 (the
    paper's T transposed: there the rows are samples), and what reads them by N = M^-1. Of all maps that give the
    activations of `moving` the covariance of `fixed`, M has the greatest sum of correlations with `fixed` once both are
    whitened, tr(S_xx^-1/2 S_xy M^T S_xx^-1/2): the sum of S, the canonical correlations. If the activations of `fixed`
    are an invertible linear map of those of `moving`, M is that map (without a ridge).

    The samples of a unit are all images and all positions of its feature map; of a group that is observed at several
    places, the covariances are averaged. (The authors' code looks at the last place of a residual stage alone.) A
    nonlinearity of a mixture is not the mixture of the nonlinearities: the mapped network computes something else than
    `moving`, and statistics of normalisation layers are to be reset.

    The objective is the mean canonical correlation (with the ridge in place) over all units of all groups.

    Trace: one record for each group in the order of the symmetry, {"group" (its number), "units", "places",
    "correlation" (the mean of its canonical correlations), "condition" (the condition number of M)}.

    Memory: 32 n^2 bytes for each place at which a group of n units is observed (of as many groups as `memory` has room
    for), beside one batch of activations, and 16 n^2 bytes for each map that is returned.

    Args:
        gamma: ridge that is added to the diagonal of both covariances.
        scale: of the ridge: "absolute", as in the paper's code, or "relative" to the mean variance of the group's
            units in each network.
        images, kind, batch_size, memory: of what is compared; see `ByActivations`.
    """

    gamma: Annotated[float, Field(ge=0)] = 0.1
    scale: Literal["absolute", "relative"] = "absolute"

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` for units inside blocks and for tied weights, of which M and N cannot both hold."""
        super().check(symmetry)
        refuse_both_ways(symmetry, type(self).__name__)

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the matching; see `lmc.alignment.problem.Alignment`. Groups that Ctrl-C leaves undone stay as is.

        Raises:
            UserError: also if a group cannot be observed, an activation is not finite, or a covariance is singular.
        """
        self.check(problem.symmetry)
        check_pair(fixed, moving, problem.symmetry)
        maps: dict[str, tuple[Tensor, Tensor]] = {}
        trace: list[dict[str, float]] = []
        with until_interrupted() as run:
            observed = self.observe(fixed, moving, problem, joint=True, on_step=on_step)
            for number, (name, places) in enumerate(observed):
                make, read, correlations = self._map(name, places.values())
                maps[name] = (make, read)
                record = {
                    "group": number,
                    "units": len(make),
                    "places": len(places),
                    "correlation": correlations.mean().item(),
                    "condition": (torch.linalg.matrix_norm(make, 2) * torch.linalg.matrix_norm(read, 2)).item(),
                }
                trace.append(record)
                if on_step is not None:
                    on_step(record)
        units = sum(record["units"] for record in trace)
        objective = sum(record["units"] * record["correlation"] for record in trace) / max(1, units)
        for name, group in problem.symmetry.groups.items():
            if name not in maps:
                maps[name] = (torch.eye(group.size), torch.eye(group.size))
        return Matching(LinearMap(problem.symmetry, maps), objective, trace, run.complete)

    def _map(self, name: str, places: Collection[PairMoments]) -> tuple[Tensor, Tensor, Tensor]:
        joint = torch.stack([place.products / place.count for place in places]).mean(0)
        n = len(joint) // 2
        fixed, moving, cross = joint[:n, :n], joint[n:, n:], joint[:n, n:]
        try:
            return canonical_map(self._with_ridge(fixed), self._with_ridge(moving), cross)
        except SingularError:
            raise UserError(
                f"the activations of group {name!r} are linearly dependent (dead units, or fewer samples than units); "
                f"raise alignment.gamma from {self.gamma:g} or give it more images"
            ) from None

    def _with_ridge(self, covariance: Tensor) -> Tensor:
        unit = covariance.diagonal().mean() if self.scale == "relative" else 1.0
        return covariance + self.gamma * unit * torch.eye(len(covariance)).to(covariance)


class SingularError(ValueError):
    """A covariance has no inverse."""


def canonical_map(fixed: Tensor, moving: Tensor, cross: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return M = S_xx^1/2 U V^T S_yy^-1/2, its inverse, and the canonical correlations, largest first.

    Args:
        fixed: (n, n) covariance S_xx of the fixed network, ridge included.
        moving: (n, n) covariance S_yy of the moving network.
        cross: (n, n) covariance S_xy; rows belong to the fixed network.

    Raises:
        SingularError: S_xx or S_yy is not positive definite to working precision.
    """
    ours, ours_inverse = _roots(fixed)
    theirs, theirs_inverse = _roots(moving)
    left, correlations, right = torch.linalg.svd(ours_inverse @ cross @ theirs_inverse)
    rotation = left @ right
    return ours @ rotation @ theirs_inverse, theirs @ rotation.T @ ours_inverse, correlations


def _roots(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric square root of a positive definite matrix, and its inverse."""
    values, vectors = torch.linalg.eigh(covariance)
    if not values[0] > len(values) * torch.finfo(values.dtype).eps * values[-1]:
        raise SingularError
    root = values.sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
