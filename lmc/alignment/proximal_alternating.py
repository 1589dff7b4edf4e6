"""Proximal alternating minimisation: permutations and a curve are trained in turn for the loss along the curve."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.assignment import assign
from lmc.alignment.birkhoff import Term, decompose, towards_doubly_stochastic
from lmc.alignment.problem import Matching, OneCheckpoint, OnStep, Problem, check_pair, until_interrupted
from lmc.alignment.sinkhorn import soft_network
from lmc.alignment.straight_through import Batch, TrainingLoss
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, interpolate, to_device
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import refuse_blocks

Positive = Annotated[float, Field(gt=0)]
Record = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class ProximalAlternating(OneCheckpoint):
    """Minimises the loss along a curve over permutations and the curve (Tatro et al. 2020, PAM).

    min over P and phi of E_{t ~ U(0, 1)} L(r_phi(t; A, P B)), for the fixed network A, the moving one B, and a
    quadratic Bezier curve with the inner control point (A + P B) / 2 + delta: r(t) = (1 - t) A + t P B + 2 t (1 - t)
    delta. The two are minimised in turn, `rounds` times; delta begins at zero, where the curve is the line.

    The permutation step lets P be one real matrix for each group, and the network P B is W' = P W Q^T. From the
    permutation P_old on, each minibatch and a fresh t give a gradient g and

        P <- (P - eta g + (eta / nu) P_old) / (1 + eta / nu), brought towards doubly stochastic matrices

    (`lmc.alignment.birkhoff.towards_doubly_stochastic`). At the end P is rounded. The candidates are the permutation
    nearest to P (one linear assignment for each group), P_old, and `samples` joint draws, every group's among the
    `terms` heaviest of the permutations that P is mixed of (Birkhoff - von Neumann), by their weights. The best is
    kept, P_old if none is better.

    The curve step trains delta by plain SGD, and keeps it if the curve is no worse than before. After the last
    permutation step nothing is trained: the permutation is what is returned, and a curve is fitted to it afresh by
    `curve=bezier`. With `rounds=1`, as in the authors' code, that is the curve step.

    What is compared is the loss at `points` fixed t, the midpoints of as many equal parts of [0, 1], on the first
    `images` training images, the same throughout, so that it never rises: not in a permutation step, not in a curve
    step, and not from the start to the result. BatchNorm normalises by the statistics of each batch, in the search and
    in what is measured, as in the authors' code. Batches come in the same order in every pass, without augmentation.

    The objective of `Matching` is minus that loss, in nats. Trace: {"round": 0, "objective"} for the start; for each
    pass over the images {"round", "epoch", "loss" (mean over its minibatches, each before its step), "seconds"}, with
    "curve_epoch" instead of "epoch" in a curve step; at the end of a permutation step {"round", "before", "objective"
    (before it and after it), "nearest" (of the permutation nearest to P), "candidates" (different ones, P_old
    included), "changed" and "changed_from_start" (shares of all units that have another partner than before the step,
    and than at the start), "seconds"}; at the end of a curve step {"round", "before", "objective", "kept" (1 or 0),
    "seconds"}. If "changed" is 0 in the first round, the start is optimal among all that the step has found around it.

    Units inside blocks (heads, grouped convolutions) are refused.

    Memory: 16 n^2 bytes for each group of n units (P, P_old, the gradient, and the next P), all groups at once; copies
    of both networks, of the mapped one, of the point on the curve, of the gradient and of delta; the evaluated images.

    Args:
        start: the first permutation: the "identity", or what "activation_matching" or "weight_matching" finds.
        rounds: permutation steps, with a curve step between any two.
        permutation_epochs: passes over the training images in a permutation step.
        learning_rate: eta.
        nu: of the proximal term; the larger, the less P is drawn to P_old.
        projections: rounds of alternating projections after each minibatch.
        terms: of the Birkhoff - von Neumann decomposition of each group.
        samples: joint draws among them.
        curve_epochs: passes over the training images in a curve step; not read with one round.
        curve_learning_rate: of SGD on delta; not read with one round.
        batch_size: images in a batch.
        points: fixed t at which the loss is compared.
        images: at most so many training images, the first ones, for that; None for all.
    """

    needs_data: ClassVar[bool] = True
    is_soft = False

    start: Literal["identity", "activation_matching", "weight_matching"] = "activation_matching"
    rounds: PositiveInt = 1
    permutation_epochs: PositiveInt = 20
    learning_rate: Positive = 0.05
    nu: Positive = 1e3
    projections: PositiveInt = 20
    terms: PositiveInt = 11
    samples: NonNegativeInt = 32
    curve_epochs: PositiveInt = 250
    curve_learning_rate: Positive = 0.1
    batch_size: PositiveInt = 128
    points: PositiveInt = 5
    images: PositiveInt | None = 10_000

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` if some groups live inside others."""
        refuse_blocks(symmetry, "alignment=proximal_alternating")

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the best matching met; see `lmc.alignment.problem.Alignment`.

        Raises:
            UserError: also if groups live inside others, there is no model or no labelled image, or the loss is not
                finite.
        """
        self.check(problem.symmetry)
        check_pair(fixed, moving, problem.symmetry)
        loss = TrainingLoss(problem, self.batch_size)
        start, complete = self._begin(fixed, moving, problem)
        trace = list[Record]()
        search = _Alternation(self, fixed, moving, problem, loss, start)
        with until_interrupted() as run:
            for record in search.run(self.rounds if complete and len(start) else 0):
                trace.append(record)
                if on_step is not None:
                    on_step(record)
        return Matching(search.permutation, -search.loss, trace, complete and run.complete)

    def _begin(self, fixed: State, moving: State, problem: Problem) -> tuple[Permutation, bool]:
        """Where the search begins, and whether that was found without an interruption."""
        if self.start == "identity":
            return Permutation.identity(problem.symmetry), True
        method = ActivationMatching() if self.start == "activation_matching" else WeightMatching()
        found = method(fixed, moving, problem)
        return found.permutation, found.complete


class _Alternation:
    """The two steps, and where they have come to.

    Attributes:
        permutation: of the moving network, the best so far.
        loss: of the curve, with that permutation.
    """

    def __init__(
        self,
        settings: ProximalAlternating,
        fixed: State,
        moving: State,
        problem: Problem,
        loss: TrainingLoss,
        start: Permutation,
    ) -> None:
        assert problem.model is not None  # TrainingLoss has refused it
        self._settings, self._problem, self._training = settings, problem, loss
        self._moving = to_device(moving, problem.device)
        self._curve = _Curve(problem.model, to_device(fixed, problem.device))
        self._evaluated = loss.first(settings.images)
        self._positions = generator(problem.seed, "proximal_alternating", "positions")
        self._samples = generator(problem.seed, "proximal_alternating", "samples")
        self._start = self.permutation = start
        self.loss = self._measured(start)

    def run(self, rounds: int) -> Iterator[Record]:
        """Alternate, and yield the record of every pass and every step."""
        yield {"round": 0, "objective": -self.loss}
        for number in range(1, rounds + 1):
            for record in self._permutation_step():
                yield {"round": number, **record}
            if number < rounds:
                for record in self._curve_step():
                    yield {"round": number, **record}

    def _permutation_step(self) -> Iterator[Record]:
        settings, old = self._settings, _Stacks.of(self.permutation, self._problem.device)
        soft, pull = old, settings.learning_rate / settings.nu
        for epoch in range(settings.permutation_epochs):
            began, losses = time.perf_counter(), list[float]()
            for batch in self._epoch():
                leaves = soft.leaves()
                mapped = soft_network(self._moving, leaves.matrices(), self._problem.symmetry)
                value, gradient = self._gradient(mapped, leaves.stacks, batch)
                losses.append(value)
                soft = _Stacks(
                    soft.names,
                    [
                        towards_doubly_stochastic(
                            (now - settings.learning_rate * slope + pull * before) / (1 + pull), settings.projections
                        )
                        for now, slope, before in zip(soft.stacks, gradient, old.stacks, strict=True)
                    ],
                )
            yield {"epoch": epoch, "loss": sum(losses) / len(losses), "seconds": time.perf_counter() - began}
        yield self._round(soft.matrices())

    def _round(self, soft: Mapping[str, Tensor]) -> Record:
        """Keep the best of all candidates; return the record of the step."""
        began, old, before = time.perf_counter(), self.permutation, self.loss
        nearest = Permutation(self._problem.symmetry, {name: assign(matrix) for name, matrix in soft.items()})
        tried = {old: before}
        for candidate in (nearest, *self._drawn(soft, nearest)):
            if candidate not in tried:
                tried[candidate] = self._measured(candidate)
            if tried[candidate] < self.loss:
                self.permutation, self.loss = candidate, tried[candidate]
        return {
            "before": -before,
            "objective": -self.loss,
            "nearest": -tried[nearest],
            "candidates": len(tried),
            "changed": _changed(self.permutation, old),
            "changed_from_start": _changed(self.permutation, self._start),
            "seconds": time.perf_counter() - began,
        }

    def _drawn(self, soft: Mapping[str, Tensor], nearest: Permutation) -> list[Permutation]:
        """Permutations of all groups, drawn from what the matrices are mixed of."""
        if not self._settings.samples:
            return []
        # A matrix that is too far from a doubly stochastic one is mixed of nothing.
        mixed = {
            name: decompose(matrix, self._settings.terms) or [Term(1.0, nearest[name])] for name, matrix in soft.items()
        }
        drawn: dict[str, list[int]] = {}
        for name, terms in mixed.items():
            weights = torch.tensor([term.weight for term in terms])
            places = torch.multinomial(weights, self._settings.samples, replacement=True, generator=self._samples)
            drawn[name] = places.tolist()
        return [
            Permutation(self._problem.symmetry, {name: mixed[name][drawn[name][i]].permutation for name in mixed})
            for i in range(self._settings.samples)
        ]

    def _curve_step(self) -> Iterator[Record]:
        curve, started, before = self._curve, time.perf_counter(), self.loss
        kept = curve.offset
        moved = self.permutation.apply(self._moving)
        try:
            for epoch in range(self._settings.curve_epochs):
                began, losses = time.perf_counter(), list[float]()
                for batch in self._epoch():
                    curve.offset = {name: tensor.detach().requires_grad_() for name, tensor in curve.offset.items()}
                    value, gradient = self._gradient(moved, list(curve.offset.values()), batch)
                    losses.append(value)
                    curve.offset = {
                        name: tensor.detach() - self._settings.curve_learning_rate * slope
                        for (name, tensor), slope in zip(curve.offset.items(), gradient, strict=True)
                    }
                seconds = time.perf_counter() - began
                yield {"curve_epoch": epoch, "loss": sum(losses) / len(losses), "seconds": seconds}
        except UserError:
            raise UserError("the curve diverged: its loss is not finite; lower alignment.curve_learning_rate") from None
        reached = self._measured(self.permutation)
        better = reached <= before
        self.loss = reached if better else before
        curve.offset = curve.offset if better else kept
        seconds = time.perf_counter() - started
        yield {"before": -before, "objective": -self.loss, "kept": int(better), "seconds": seconds}

    def _epoch(self) -> Iterator[Batch]:
        """One pass, without a last batch that is not full, unless it is the only one."""
        size = self._settings.batch_size
        for place, batch in enumerate(self._problem.examples(None, size)):
            if place == 0 or len(batch[1]) == size:
                yield batch

    def _gradient(self, moved: State, leaves: list[Tensor], batch: Batch) -> tuple[float, tuple[Tensor, ...]]:
        t = torch.rand((), generator=self._positions).item()
        return self._training.gradient(self._curve.at(moved, t), leaves, batch)

    def _measured(self, permutation: Permutation) -> float:
        """The loss of the curve, with a permutation."""
        moved, points = permutation.apply(self._moving), self._settings.points
        positions = [(place + 0.5) / points for place in range(points)]
        return sum(self._training.over(self._curve.at(moved, t), self._evaluated) for t in positions) / points


class _Curve:
    """The line from the fixed network, and what is added to it.

    Attributes:
        offset: delta; a tied tensor has one under one of its names.
    """

    def __init__(self, model: nn.Module, fixed: State) -> None:
        self._fixed = fixed
        trained = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
        named = model.named_parameters(remove_duplicate=False)
        self._leaf_of = {name: trained[id(p)] for name, p in named if id(p) in trained}
        self.offset: State = {name: torch.zeros_like(fixed[name]) for name in trained.values()}

    def at(self, moved: State, t: float) -> State:
        """Return the network at `t` of the curve to `moved`, differentiable in that and in `offset`."""
        point = interpolate(self._fixed, moved, t)
        for name, leaf in self._leaf_of.items():
            point[name] = torch.add(point[name], self.offset[leaf], alpha=2 * t * (1 - t))
        return point


@dataclass(frozen=True)
class _Stacks:
    """One matrix for each group, those of equal size in one tensor, so that what is done to all is done at once.

    Attributes:
        names: the groups of each stack.
        stacks: (groups, n, n) float32.
    """

    names: list[list[str]]
    stacks: list[Tensor]

    @classmethod
    def of(cls, permutation: Permutation, device: torch.device) -> "_Stacks":
        """Return the matrices of a permutation, with ones at [i, permutation[i]]."""
        by_size: dict[int, list[str]] = {}
        for name, value in permutation.items():
            by_size.setdefault(len(value), []).append(name)
        eyes = [torch.stack([torch.eye(n)[permutation[name]] for name in names]) for n, names in by_size.items()]
        return cls(list(by_size.values()), [stack.to(device) for stack in eyes])

    def leaves(self) -> "_Stacks":
        """Return the same matrices, to be differentiated by."""
        return _Stacks(self.names, [stack.detach().requires_grad_() for stack in self.stacks])

    def matrices(self) -> State:
        """Return every group's matrix, in the order of the stacks."""
        pairs = zip(self.names, self.stacks, strict=True)
        return {name: matrix for names, stack in pairs for name, matrix in zip(names, stack, strict=True)}


def _changed(one: Permutation, other: Permutation) -> float:
    """The share of all units that have different partners."""
    units = sum(value.numel() for value in one.values())
    return sum(int((one[name] != other[name]).sum()) for name in one) / units
