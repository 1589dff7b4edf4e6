"""Simulated annealing: transpositions of units, some of them for the worse, while a temperature falls."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from torch import Tensor

from lmc.alignment.problem import AnySymmetry, Matching, OnStep, Problem, check_pair, until_interrupted
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State
from lmc.symmetry.permutation import Permutation

Array = NDArray[Any]
Temperature = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class SimulatedAnnealing(AnySymmetry):
    """Maximises <fixed, P moving> by simulated annealing over transpositions (after Entezari et al. 2022).

    The objective is that of weight matching. A move exchanges two units of a group: two blocks with all that is in
    them, or two units inside one block. One that raises the objective is made; one that lowers it by d is made with the
    probability exp(-d / temperature); one that changes nothing is not made.

    In a sweep every group has its turn, in a random order, the others held still. Its units are paired off at random,
    as often as `pairings` says, and every pair is a move, decided on its own: the objective is linear in one group, so
    that pairs that have no unit in common do not bear on each other, and the similarity that weight matching assigns by
    tells what all of them change. Blocks, and a group that acts on a tensor twice, have one pairing in a turn, and
    their moves are judged one after the other by the tensors that they change.

    The temperature falls geometrically from `hottest` to `coldest`, both in units of the mean change (as a magnitude)
    of the objective by a move at the start. The best permutation after any pairing is kept.

    The paper anneals the loss of the midpoint, which needs an evaluation of a network for each move, and finds that it
    helps for shallow networks only; this objective needs none.

    Trace: one record for each sweep, {"restart", "sweep", "temperature" (in units of the objective), "objective",
    "best" (so far, in this restart), "made" (moves), "proposed", "seconds"}. The objective of `Matching` is that of its
    permutation, computed anew.

    Memory: what weight matching holds, and 8 n^2 bytes for one group of n units at a time.

    Args:
        start: where the search begins: "identity" or "random".
        restarts: searches with other random moves, of which the best is kept.
        sweeps: of a search.
        pairings: of the units of a group in a turn.
        hottest: temperature of the first sweep.
        coldest: temperature of the last.

    Raises:
        UserError: `coldest` is above `hottest`.
    """

    needs_data: ClassVar[bool] = False

    start: Literal["identity", "random"] = "identity"
    restarts: PositiveInt = 1
    sweeps: PositiveInt = 1000
    pairings: PositiveInt = 20
    hottest: Temperature = 0.5
    coldest: Temperature = 0.01

    def __post_init__(self) -> None:
        if self.coldest > self.hottest:
            raise UserError(
                f"alignment.coldest={self.coldest} is above alignment.hottest={self.hottest}: the temperature must "
                "fall; exchange the two"
            )

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the best permutation met; see `lmc.alignment.problem.Alignment`."""
        check_pair(fixed, moving, problem.symmetry)
        weights = WeightSimilarity(fixed, moving, problem.symmetry, problem.device)
        walk = _Walk(weights, self._begin(problem, 0), problem.device)
        best, trace = walk.best, list[dict[str, float]]()
        with until_interrupted() as run:
            for restart in range(self.restarts):
                walk = _Walk(weights, self._begin(problem, restart), problem.device)
                draw = generator(problem.seed, "simulated_annealing", "moves", restart)
                unit = walk.typical_change(draw)
                ratio = (self.coldest / self.hottest) ** (1 / max(1, self.sweeps - 1))
                for sweep in range(self.sweeps):
                    started, temperature = time.perf_counter(), unit * self.hottest * ratio**sweep
                    proposed, made = walk.sweep(temperature, self.pairings, draw)
                    record = {"restart": restart, "sweep": sweep, "temperature": temperature}
                    record |= {"objective": walk.objective, "best": walk.best.objective}
                    record |= {"made": made, "proposed": proposed, "seconds": time.perf_counter() - started}
                    trace.append(record)
                    if on_step is not None:
                        on_step(record)
                best = max(best, walk.best, key=lambda met: met.objective)
        best = max(best, walk.best, key=lambda met: met.objective)  # of a search that was interrupted
        permutation = Permutation(problem.symmetry, best.permutation)
        return Matching(permutation, weights.objective(best.permutation), trace, run.complete)

    def _begin(self, problem: Problem, restart: int) -> Permutation:
        if self.start == "identity":
            return Permutation.identity(problem.symmetry)
        return Permutation.random(problem.symmetry, generator(problem.seed, "simulated_annealing", "start", restart))


class _Met(NamedTuple):
    """A permutation that the walk has come to, and its objective."""

    objective: float
    permutation: dict[str, Tensor]


class _Walk:
    """A permutation that changes by transpositions.

    Attributes:
        permutation: where it is.
        objective: there.
        best: the highest objective met, the first of equals.
    """

    def __init__(self, weights: WeightSimilarity, begin: Permutation, device: torch.device) -> None:
        self._weights, self._symmetry = weights, begin.symmetry
        self._device = device
        self.permutation = {name: value.to(device) for name, value in begin.items()}
        self.objective = weights.objective(self.permutation)
        self.best = _Met(self.objective, dict(self.permutation))

    def typical_change(self, draw: torch.Generator) -> float:
        """Return the mean magnitude of the changes that transpositions would make now; 0 if none makes any."""
        changes = [torch.zeros(0, dtype=torch.float64)]
        for name in self._symmetry.groups:
            pairs = self._paired(name, draw)
            if self._is_linear(name):
                similarity, value = self._held(name)
                mine = _changes(similarity, value, *(side.numpy() for side in pairs))
                changes.append(torch.from_numpy(mine).abs().flatten())
            else:
                alone = [self._weights.difference(self.permutation, new) for new in self._one_by_one(name, pairs)]
                changes.append(torch.tensor(alone, dtype=torch.float64).abs())
        found = torch.cat(changes)
        found = found[found > 0]
        return found.mean().item() if len(found) else 0.0

    def sweep(self, temperature: float, pairings: int, draw: torch.Generator) -> tuple[int, int]:
        """Give every group its turn; return how many moves were proposed, and how many made."""
        names, proposed, made = list(self._symmetry.groups), 0, 0
        for place in torch.randperm(len(names), generator=draw).tolist():
            turn = self._turn if self._is_linear(names[place]) else self._turn_one_by_one
            counted = turn(names[place], temperature, pairings, draw)
            proposed, made = proposed + counted[0], made + counted[1]
        return proposed, made

    def _is_linear(self, name: str) -> bool:
        """Whether a group acts once on each of its tensors, and no other lives inside it."""
        axes = [axis for axis in self._symmetry.groups[name].axes if axis.tensor in self._symmetry.parameters]
        again = any([factor.group for factor in part].count(name) > 1 for axis in axes for part in axis.segments)
        return not again and len({axis.tensor for axis in axes}) == len(axes) and not self._symmetry.inside(name)

    def _paired(self, name: str, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pair off the units of a group at every place at random, (places, pairs) both; an odd one is left alone."""
        size = self._symmetry.groups[name].size
        order = torch.rand(self._symmetry.units(name) // size, size, generator=draw).argsort(-1)
        return order[:, : size // 2], order[:, size // 2 : size // 2 * 2]

    def _held(self, name: str) -> tuple[Array, Array]:
        """Of a linear group, the similarity (places, n, n) with all others held, and its permutations (places, n)."""
        size = self._symmetry.groups[name].size
        if self._symmetry.groups[name].outer:
            similarity = self._weights.inside(name, self.permutation)
        else:
            similarity = self._weights.of(name, self.permutation)
        value = self.permutation[name].reshape(-1, size).cpu().numpy().copy()
        return similarity.to("cpu", torch.float64).reshape(-1, size, size).numpy(), value

    def _turn(self, name: str, temperature: float, pairings: int, draw: torch.Generator) -> tuple[int, int]:
        similarity, value = self._held(name)
        places, size = value.shape
        orders = torch.rand(pairings, places, size, generator=draw).argsort(-1).numpy()
        # change > limit: exp(change / temperature) > chance, at a temperature of 0 too.
        chances = torch.rand(pairings, places, size // 2, generator=draw, dtype=torch.float64)
        limits = (temperature * chances.log()).numpy()
        made, rise = 0, 0.0
        highest, best = 0.0, value.copy()
        for order, limit in zip(orders, limits, strict=True):
            pairs = order[:, : size // 2], order[:, size // 2 : size // 2 * 2]
            changes = _changes(similarity, value, *pairs)
            where, which = ((changes > limit) & (changes != 0)).nonzero()
            first, second = (side[where, which] for side in pairs)
            value[where, first], value[where, second] = value[where, second], value[where, first]
            made += len(where)
            rise += float(changes[where, which].sum())
            if rise > highest:
                highest, best = rise, value.copy()
        shape = self._symmetry.lattice(name)
        before = self.objective
        for reached, change in ((best, highest), (value, rise)):
            self.objective = before
            self._arrive({name: torch.from_numpy(reached).reshape(shape).to(self._device)}, change)
        return pairings * places * (size // 2), made

    def _turn_one_by_one(self, name: str, temperature: float, _: int, draw: torch.Generator) -> tuple[int, int]:
        pairs, made = self._paired(name, draw), 0
        for new in self._one_by_one(name, pairs):
            change = self._weights.difference(self.permutation, new)
            limit = temperature * torch.rand((), generator=draw, dtype=torch.float64).log().item()
            if change > limit and change != 0:
                made += 1
                self._arrive(new, change)
        return pairs[0].numel(), made

    def _one_by_one(self, name: str, pairs: tuple[Tensor, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Yield for each pair what changes if it is exchanged now: the group, and what is inside its units."""
        still = Permutation.identity(self._symmetry)
        for place, sides in enumerate(zip(*(side.tolist() for side in pairs), strict=True)):
            for i, j in zip(*sides, strict=True):
                swap = still[name].reshape(-1, self._symmetry.groups[name].size).clone()
                swap[place, i], swap[place, j] = j, i
                step = Permutation(self._symmetry, {**still, name: swap.reshape(still[name].shape)})
                moved = step.compose(Permutation(self._symmetry, self.permutation))
                yield {other: moved[other].to(self._device) for other in (name, *self._symmetry.inside(name))}

    def _arrive(self, new: Mapping[str, Tensor], change: float) -> None:
        self.permutation.update(new)
        self.objective += change
        if self.objective > self.best.objective:
            self.best = _Met(self.objective, dict(self.permutation))


def _changes(similarity: Array, value: Array, first: Array, second: Array) -> Array:
    """By how much sum_i similarity[place, i, value[place, i]] changes if a pair is exchanged: (places, pairs)."""
    place = np.arange(len(value))[:, None]
    one, two = value[place, first], value[place, second]
    new = similarity[place, first, two] + similarity[place, second, one]
    changes: Array = new - similarity[place, first, one] - similarity[place, second, two]
    return changes
