"""Frank-Wolfe: all groups move at once, through mixtures of permutations, and are rounded at the end."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol, TypeVar

from pydantic import Field, PositiveInt
from torch import Tensor

from lmc.alignment.assignment import assign_all
from lmc.alignment.problem import AnySymmetry, Matching, OnStep, Problem, check_pair, until_interrupted
from lmc.alignment.similarity.mixture import Mixture, SoftNetwork, centre, rise, towards, zero_like
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.alignment.weight_matching import Descent
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State
from lmc.symmetry.permutation import Permutation

Point = TypeVar("Point")
Vertex = TypeVar("Vertex")


@dataclass(frozen=True, kw_only=True)
class FrankWolfe(AnySymmetry):
    """Maximises <fixed, P moving> by Frank-Wolfe over mixtures of permutations (Crisostomi et al. 2024, C2M3).

    The objective is that of weight matching, as a function of one doubly stochastic matrix for each group. A step
    takes the gradient for all groups at once, finds the permutation that is best for the gradient (one assignment for
    each group), and goes towards it by one step size for all groups: the best on the segment. When several steps have
    gained next to nothing the mixture is rounded, by one assignment for each group, to the permutation nearest to it.

    The step size is exact: the objective is a polynomial along a segment. Units inside blocks (heads) are mixed over
    all units of all blocks. Where one tensor has two groups inside the same blocks (a grouped convolution), the two are
    mixed independently of each other inside each pair of blocks; the objective is then a quotient of polynomials, and
    the step size is found by a bounded scalar search, as C2M3 finds all.

    This is C2M3 for two networks, which ends there. By default a coordinate descent (weight matching) follows, without
    which the rounded permutation need not be a local optimum.

    Trace: for each step {"restart", "step", "objective" (of the mixture, before the step), "gap" (the rise that the
    gradient promises), "step_size", "seconds"}; then for each sweep of the descent {"restart", "sweep", "objective",
    "seconds", "moved" (groups)}, sweep 0 being the rounded permutation. The objective of `Matching` is that of the
    best permutation, the first of equals.

    Memory: three (units, units) matrices for each group, as all groups move at once: the mixture, its gradient, and
    the next mixture. Beside them one mixed tensor at a time, and what weight matching holds.

    Args:
        start: where the search begins: "identity", "random" (a permutation), or "centre" (every unit is mixed from all
            units equally: the barycentre), from which the order of the units does not matter.
        restarts: searches from different random permutations, of which the best is kept (C2M3: 3).
        max_steps: of a search (C2M3: 100).
        patience: steps without gain after which a search ends (C2M3: 5).
        tolerance: gain that counts, as a share of ||fixed|| ||moving||, the objective's bound (C2M3: 1e-4, absolute).
        finish: what follows the rounding: "weight_matching" (a descent from there) or "none" (C2M3).
        max_sweeps: of that descent.

    Raises:
        UserError: several restarts from one and the same start.
    """

    needs_data: ClassVar[bool] = False

    start: Literal["identity", "random", "centre"] = "centre"
    restarts: PositiveInt = 1
    max_steps: PositiveInt = 100
    patience: PositiveInt = 5
    tolerance: Annotated[float, Field(ge=0)] = 1e-6
    finish: Literal["none", "weight_matching"] = "weight_matching"
    max_sweeps: PositiveInt = 100

    def __post_init__(self) -> None:
        if self.restarts > 1 and self.start != "random":
            raise UserError(
                f"alignment.restarts={self.restarts}: from alignment.start={self.start} all searches are the same; set "
                "alignment.restarts=1 or alignment.start=random"
            )

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the rounded permutation; see `lmc.alignment.problem.Alignment`."""
        check_pair(fixed, moving, problem.symmetry)
        symmetry = problem.symmetry
        weights = WeightSimilarity(fixed, moving, symmetry, problem.device)
        landscape = _Pair(fixed, moving, problem, weights)
        trace: list[dict[str, float]] = []

        def note(record: Mapping[str, float]) -> None:
            trace.append(dict(record))
            if on_step is not None:
                on_step(trace[-1])

        def rounded(mixture: Mixture) -> Descent:
            return Descent(weights, symmetry, 1e-9 * weights.bound, assign_all(symmetry, mixture))

        mixture, ends = self._begin(landscape, problem, 0), list[Descent]()
        with until_interrupted() as run:
            for restart in range(self.restarts):
                mixture = self._begin(landscape, problem, restart)
                climb = ascend(
                    landscape,
                    mixture,
                    max_steps=self.max_steps,
                    patience=self.patience,
                    threshold=self.tolerance * weights.bound,
                )
                for record, reached in climb:
                    mixture = reached
                    note({"restart": restart, **record})
                ends.append(rounded(mixture))
                sweeps = ends[-1].run(itertools.repeat(list(symmetry.families)), self.max_sweeps)
                for record in itertools.islice(sweeps, 1 if self.finish == "none" else None):
                    note({"restart": restart, **record})
        if not run.complete:
            ends.append(rounded(mixture))
        best = max(ends, key=lambda end: end.objective)
        permutation = Permutation(symmetry, best.permutation)
        return Matching(permutation, weights.objective(best.permutation), trace, run.complete)

    def _begin(self, landscape: "_Pair", problem: Problem, restart: int) -> Mixture:
        symmetry = problem.symmetry
        if self.start == "centre":
            return landscape.centre
        draw = generator(problem.seed, "frank_wolfe", restart)
        begin = Permutation.random(symmetry, draw) if self.start == "random" else Permutation.identity(symmetry)
        return landscape.towards(landscape.centre, begin, 1.0)


class Landscape(Protocol[Point, Vertex]):
    """An objective over mixtures of permutations."""

    def gradient(self, point: Point) -> tuple[float, Point]:
        """Return the objective and its derivative by every matrix."""
        ...

    def best(self, gradient: Point) -> Vertex:
        """Return the permutations that are best for a gradient."""
        ...

    def rise(self, gradient: Point, point: Point, vertex: Vertex) -> float:
        """Return by how much the objective would rise, to first order, if `point` became `vertex`."""
        ...

    def step_size(self, point: Point, vertex: Vertex, value: float, slope: float) -> float:
        """Return the share of `vertex` in [0, 1] at which the objective, `value` and rising by `slope`, is highest."""
        ...

    def towards(self, point: Point, vertex: Vertex, size: float) -> Point:
        """Return `point` with the share `size` of it replaced by `vertex`."""
        ...


def ascend(
    landscape: Landscape[Point, Vertex], point: Point, *, max_steps: int, patience: int, threshold: float
) -> Iterator[tuple[dict[str, float], Point]]:
    """Climb from `point` by Frank-Wolfe, and yield the record of every step, and where it led.

    Args:
        landscape: the objective.
        point: where to begin.
        max_steps: at most so many.
        patience: steps without a gain of `threshold` after which the search ends.
        threshold: gain that counts, from the last value that counted on.
    """
    counted, idle = -math.inf, 0
    for step in range(max_steps):
        started = time.perf_counter()
        value, gradient = landscape.gradient(point)
        if value - counted > threshold:
            counted, idle = value, 0
        else:
            idle += 1
        vertex = landscape.best(gradient)
        gap, size = landscape.rise(gradient, point, vertex), 0.0
        if gap > 0 and idle < patience:
            size = landscape.step_size(point, vertex, value, gap)
            point = landscape.towards(point, vertex, size)
        seconds = time.perf_counter() - started
        yield {"step": step, "objective": value, "gap": gap, "step_size": size, "seconds": seconds}, point
        if size == 0:
            return


class _Pair:
    """<fixed, P moving>, the landscape of two networks."""

    def __init__(self, fixed: State, moving: State, problem: Problem, weights: WeightSimilarity) -> None:
        like = zero_like([fixed, moving], problem)
        self.centre = centre(problem.symmetry, like)
        self._symmetry, self._weights = problem.symmetry, weights
        self._fixed = SoftNetwork(fixed, problem.symmetry, like).parts
        self._moving = SoftNetwork(moving, problem.symmetry, like)

    def gradient(self, point: Mixture) -> tuple[float, Mixture]:
        return self._moving.gradient(point, self._fixed)

    def best(self, gradient: Mixture) -> dict[str, Tensor]:
        return assign_all(self._symmetry, gradient)

    def rise(self, gradient: Mixture, point: Mixture, vertex: Mapping[str, Tensor]) -> float:
        return rise(gradient, point, self._symmetry, vertex)

    def step_size(self, point: Mixture, vertex: Mapping[str, Tensor], value: float, slope: float) -> float:
        return self._moving.step_size(point, vertex, self._fixed, value, slope, self._weights.objective(vertex))

    def towards(self, point: Mixture, vertex: Mapping[str, Tensor], size: float) -> Mixture:
        return towards(point, self._symmetry, vertex, size)
