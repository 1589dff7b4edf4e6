"""Weight matching of transformers: the residual stream kept, permuted, or mapped by an orthogonal matrix."""

import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from lmc.alignment.problem import Matching, OnStep, Problem, check_pair, until_interrupted
from lmc.alignment.similarity.blocks import expected
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.alignment.weight_matching import Descent, Descents, starting_point
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, to_device
from lmc.symmetry.normalisation import fold, foldable, mapped_axes
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry, unit_rows
from lmc.symmetry.transform import OrthogonalMap, map_streams, mix

log = logging.getLogger(__name__)

_RESOLUTION = 1e-6
"""Directions with smaller singular values, as a share of the greatest, are rounding, and so unmatched at the centre."""


@dataclass(frozen=True, kw_only=True)
class TransformerMatching(Descents):
    """Maximises <fixed, T moving> over permutations and orthogonal maps of the stream (after Theus et al. 2025).

    Heads, what is inside them, hidden units of feed-forward layers and all other groups are matched by permutations, as
    weight matching does; the residual stream

    - is left alone ("identity", which Verma and Elbayad 2024 find best among permutations of it for BERT),
    - is a group as any other ("permutation"), or
    - is mapped by an orthogonal matrix O ("orthogonal", Theus et al.): everything that writes to it is multiplied by O
      and everything that reads it by O^T.

    A network computes the same after the map if its norms have neither scale nor shift, so these are first moved into
    the layers that read them, in both networks (`lmc.symmetry.normalisation`; Ashkboos et al. 2024, SliceGPT).
    `transform` and `fixed_transform` contain this. LayerNorm keeps its subtraction of the mean, with which O commutes
    if it keeps the mean of every vector, O 1 = 1. Where all layers read the stream through LayerNorm nothing is lost by
    that: once both networks are centred their products have no part along 1, and the best of all orthogonal matrices
    has this form. A network with several streams (encoder and decoder) has a matrix for each; a stream that cannot be
    folded is permuted.

    For "orthogonal", permutations and matrices take turns. With the permutations held, the best O is known: with U S
    V^T the singular value decomposition of C = sum over tensors F M^T, the rows of F (fixed) and M (moving) being the
    units of the stream, O = U V^T (orthogonal Procrustes, Schoenemann 1966), and <fixed, T moving> = tr S. With O
    held, coordinate descent finds permutations. Neither lowers the objective; the search ends when O gains nothing. Of
    a tensor that both writes to and reads the same stream the objective is quadratic in O; C is then its gradient,
    and O is taken if the objective rises.

    The queries and keys of a head, and its values and outputs, have a common basis of their own, which could be mapped
    too; here it is permuted.

    At the start "centre", O is sought while nothing else is matched (an unmatched group counts as the mean of its
    units), from what embeddings, the last layer and biases have in common. Directions that these do not determine are
    left out of the first assignments, for the mean over all orthogonal maps of them is zero. "identity" begins with
    O = 1; "random" draws O by Haar's measure. If there are several descents the first begins at the identity.

    The objective is the inner product of all trainable tensors on which some group acts, but for folded scales and
    shifts, which are equal. Objectives of folded and unfolded networks cannot be compared.

    Trace: one record for each turn, {"restart", "round", "sweeps", "moved" (groups, summed over the sweeps),
    "permuted" (the objective when no group could be improved), "turned" (streams whose map was changed), "objective"
    (after that), "seconds"}. The objective of `Matching` is that of the best descent, the first of equals.

    Memory: copies of both networks, 4 n^2 bytes for each group of n units and each of its neighbours, and 24 d^2 for a
    stream of d units.

    Args:
        residual: "identity", "permutation" or "orthogonal".
        fold: whether norms are folded. "orthogonal" needs it; without it the others return a `Permutation`, and
            "permutation" is weight matching.
        restarts: number of descents, of which the best is kept.
        start: where they begin: "centre", "identity" or "random".
        order: of the groups in a sweep, "forward" being the network's own; "random" draws anew for every sweep.
        max_sweeps: of a turn.
        max_rounds: of permutations and matrices taking turns.
        tolerance: smallest gain for which a group or a stream is moved, as a share of ||fixed|| ||moving||.

    Raises:
        UserError: "orthogonal" without folding; or several descents that would be equal.
    """

    needs_data: ClassVar[bool] = False

    residual: Literal["identity", "permutation", "orthogonal"] = "orthogonal"
    fold: bool = True
    max_rounds: PositiveInt = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.residual == "orthogonal" and not self.fold:
            raise UserError(
                "alignment.fold=false: an orthogonal map of the residual stream keeps the function only if norms are "
                "folded; set alignment.fold=true, or alignment.residual=permutation"
            )

    @property
    def is_soft(self) -> bool:
        """Whether norms are folded, so that something else than a permutation is returned."""
        return self.fold

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` if the network has no residual stream, or none whose norms can be folded."""
        self._streams(symmetry)

    def _streams(self, symmetry: Symmetry) -> list[str]:
        """The residual streams that `residual` and `fold` are about."""
        if self.fold:
            return list(foldable(symmetry))
        found = [name for name, stream in symmetry.streams.items() if stream.is_residual]
        if not found:
            raise UserError(
                "this network has no residual stream that LayerNorm or RMSNorm normalises; choose "
                "alignment=weight_matching"
            )
        return found

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the best matching found; see `lmc.alignment.problem.Alignment`.

        Raises:
            UserError: also if no norm can be folded, or one has a shift that no layer can take.
        """
        symmetry = problem.symmetry
        streams = self._streams(symmetry)
        check_pair(fixed, moving, symmetry)
        if self.fold:
            fixed, moving = fold(fixed, symmetry), fold(moving, symmetry)
        pair = _Pair(fixed, moving, problem, self.fold)
        held = frozenset(streams) if self.residual != "permutation" else frozenset[str]()
        best = pair.point(Permutation.identity(symmetry), {})
        threshold = self.tolerance * pair.weights({}).bound
        trace: list[dict[str, float]] = []
        reached: dict[int, _Point] = {}  # by each descent, so far
        with until_interrupted() as run:
            for restart in range(self.restarts):
                for record, point in self._descend(restart, pair, streams, held, threshold):
                    reached[restart] = point
                    trace.append(record)
                    if on_step is not None:
                        on_step(record)
        # The identity is what an interruption before the end of the first turn leaves.
        for restart, point in reached.items():
            if restart == 0 or point.objective > best.objective + threshold:
                best = point
        permutation = Permutation(symmetry, best.permutation)
        if not self.fold:
            return Matching(permutation, best.objective, trace, run.complete)
        transform, fixed_transform = OrthogonalMap(permutation, best.matrices), OrthogonalMap.folding(symmetry)
        return Matching(transform, best.objective, trace, run.complete, fixed_transform)

    def _descend(
        self, restart: int, pair: "_Pair", streams: list[str], held: frozenset[str], threshold: float
    ) -> Iterator[tuple[dict[str, float], "_Point"]]:
        """Take turns from one starting point, and yield a record and the point after each."""
        problem, symmetry = pair.problem, pair.problem.symmetry
        draw = generator(problem.seed, "transformer_matching", restart)
        start = "identity" if restart == 0 and self.restarts > 1 else self.start
        permutation = starting_point(start, problem, draw, held)
        matrices: dict[str, Tensor] = {}
        orthogonal = streams if self.residual == "orthogonal" else []
        for name in orthogonal:
            if start == "centre":
                matrices[name] = pair.best_map(name, permutation, matrices, partial=True)
            elif start == "random":
                matrices[name] = _drawn(symmetry.groups[name].size, symmetry.streams[name].centred, draw)
            else:
                matrices[name] = torch.eye(symmetry.groups[name].size, dtype=torch.float64)
        partial = start == "centre"
        roots = [root for root in symmetry.families if root not in held]
        for turn in range(self.max_rounds):
            started = time.perf_counter()
            weights = pair.weights(matrices)
            descent = Descent(weights, symmetry, threshold, permutation, held)
            sweeps = list(descent.run(self.orders(symmetry, weights, draw, roots), self.max_sweeps))
            permutation = descent.permutation
            permuted = weights.objective(permutation)
            matrices, turned, objective = pair.turned(orthogonal, permutation, matrices, permuted, threshold, partial)
            partial = False
            record: dict[str, float] = {"restart": restart, "round": turn, "sweeps": len(sweeps) - 1}
            record |= {"moved": sum(sweep["moved"] for sweep in sweeps), "permuted": permuted, "turned": turned}
            record |= {"objective": objective, "seconds": time.perf_counter() - started}
            yield record, _Point(dict(permutation), matrices, objective)
            if not turned:
                return
        log.warning(
            "transformer matching has not converged after %d rounds; raise alignment.max_rounds", self.max_rounds
        )


@dataclass(frozen=True)
class _Point:
    """A permutation, a matrix for each stream that is mapped, and the objective there."""

    permutation: Mapping[str, Tensor]
    matrices: dict[str, Tensor] = field(default_factory=dict)
    objective: float = 0.0


class _Pair:
    """Two networks with folded norms, and the objective of permutations and maps of the moving one."""

    def __init__(self, fixed: State, moving: State, problem: Problem, folded: bool) -> None:
        self.problem = problem
        symmetry = problem.symmetry
        self._fixed, self._moving = to_device(fixed, problem.device), to_device(moving, problem.device)
        self._left_out = frozenset[str]()
        if folded:
            streams = foldable(symmetry)
            mapped = {axis.tensor for name in streams for axis in mapped_axes(symmetry, name)}
            acted = {axis.tensor for name in streams for axis in symmetry.groups[name].axes}
            self._left_out = frozenset(acted - mapped)

    def weights(self, matrices: Mapping[str, Tensor]) -> WeightSimilarity:
        """The objective with the streams mapped."""
        symmetry = self.problem.symmetry
        moving = map_streams(self._moving, symmetry, matrices)
        return WeightSimilarity(self._fixed, moving, symmetry, self.problem.device, leave_out=self._left_out)

    def point(self, permutation: Mapping[str, Tensor], matrices: dict[str, Tensor]) -> _Point:
        """The objective at a permutation and maps."""
        on_device = {name: value.to(self.problem.device) for name, value in permutation.items()}
        return _Point(on_device, matrices, self.weights(matrices).objective(on_device))

    def turned(
        self,
        streams: list[str],
        permutation: Mapping[str, Tensor],
        matrices: dict[str, Tensor],
        objective: float,
        threshold: float,
        partial: bool,
    ) -> tuple[dict[str, Tensor], int, float]:
        """Give each stream its best map, the others held still; return the maps, how many changed and the objective.

        `partial` are maps that leave directions out: they are replaced in any case.
        """
        turned = 0
        for name in streams:
            tried = {**matrices, name: self.best_map(name, permutation, matrices)}
            found = self.weights(tried).objective(permutation)
            if partial or found > objective + threshold:
                matrices, objective, turned = tried, found, turned + 1
        return matrices, turned, objective

    def best_map(
        self, name: str, permutation: Mapping[str, Tensor], matrices: Mapping[str, Tensor], *, partial: bool = False
    ) -> Tensor:
        """Return the best map of a stream, the permutations and the maps of the other streams held still.

        A group that `permutation` lacks counts as the mean of its units; a stream without a matrix as zero.
        """
        return procrustes(
            self._cross(name, permutation, matrices), self.problem.symmetry.streams[name].centred, partial=partial
        )

    def _cross(self, name: str, permutation: Mapping[str, Tensor], matrices: Mapping[str, Tensor]) -> Tensor:
        """The sum of F M^T over all tensors and their axes along a stream: (size, size)."""
        symmetry = self.problem.symmetry
        size = symmetry.groups[name].size
        total = torch.zeros(size, size, dtype=torch.float64, device=self.problem.device)
        for axis in mapped_axes(symmetry, name):
            if axis.tensor not in symmetry.parameters:
                continue
            fixed, moving = (side[axis.tensor].to(torch.float64) for side in (self._fixed, self._moving))
            axes = symmetry.axes_of[axis.tensor]
            others = [other for other in axes if other is not axis and other.groups & self._mapped(name, matrices)]
            if any(not other.groups <= matrices.keys() for other in others):
                continue
            for other in others:
                moving = mix(moving, other, matrices)
            fixed, moving, left = expected(fixed, moving, axes, permutation, symmetry.outer, keep=name)
            here = next(each for each in left if each.dim == axis.dim)
            ours, theirs = (unit_rows(side, here, (name,), left) for side in (fixed, moving))
            total += ours @ theirs.T
        return total

    def _mapped(self, name: str, matrices: Mapping[str, Tensor]) -> frozenset[str]:
        return frozenset({name, *matrices})


def procrustes(cross: Tensor, keeps_mean: bool = False, *, partial: bool = False) -> Tensor:
    """Return the orthogonal O that maximises tr(O^T cross): U V^T of the singular value decomposition U S V^T.

    Args:
        cross: (n, n), F M^T for rows F that stay and rows M that O M is to come close to F.
        keeps_mean: whether O 1 = 1 has to hold; O is then the best of these.
        partial: whether directions that `cross` does not determine are mapped to zero.

    Returns:
        (n, n) float64 on the device of `cross`.
    """
    cross = cross.to(torch.float64)
    basis = _without_mean(len(cross)).to(cross.device) if keeps_mean else torch.eye(len(cross)).to(cross)
    left, values, right = torch.linalg.svd(basis.T @ cross @ basis)
    if partial:
        known = values > _RESOLUTION * values[:1]
        left, right = left[:, known], right[known]
    found: Tensor = basis @ left @ right @ basis.T
    return found + 1 / len(cross) if keeps_mean else found


def _without_mean(size: int) -> Tensor:
    """An orthonormal basis of the vectors whose mean is zero: (size, size - 1)."""
    ones = torch.ones(size, 1, dtype=torch.float64)
    whole: Tensor = torch.linalg.qr(torch.cat([ones, torch.eye(size, dtype=torch.float64)[:, :-1]], 1)).Q
    return whole[:, 1:]


def _drawn(size: int, keeps_mean: bool, draw: torch.Generator) -> Tensor:
    """An orthogonal matrix from Haar's measure: the nearest to a matrix of normal numbers."""
    return procrustes(torch.randn(size, size, dtype=torch.float64, generator=draw), keeps_mean)
