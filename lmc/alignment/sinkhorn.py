"""Sinkhorn re-basin: soft permutations, trained by gradient descent through the Sinkhorn operator."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.autograd.function import once_differentiable

from lmc.alignment.assignment import assign
from lmc.alignment.problem import Matching, OneCheckpoint, OnStep, Problem, check_pair, until_interrupted
from lmc.alignment.straight_through import Batch, TrainingLoss
from lmc.alignment.weight_matching import WeightMatching
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, interpolate, to_device
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import mix

Positive = Annotated[float, Field(gt=0)]

_POINTS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where the loss along the line is measured: the midpoints of five equal parts."""

_RIDGE = 1e-12
"""Added to a matrix whose eigenvalues are at most 1; all but the one along the constants vanish at a permutation."""


@dataclass(frozen=True, kw_only=True)
class Sinkhorn(OneCheckpoint):
    """Minimises a distance or a loss over soft permutations (Peña et al. 2023, Re-basin via implicit differentiation).

    Each group of n units has scores X, (n, n), and the soft permutation P = S_tau(X): of all doubly stochastic
    matrices the one that maximises <P, X> + tau H(P), with the entropy H. A network is mapped by P as it is by a
    permutation, W' = P W Q^T, which makes every objective a smooth function of all X; Adam descends it. The objectives,
    all minimised over the moving network B' = P(B) and compared with the fixed network A:

    - "l2": ||A - B'||^2 over all trainable tensors on which some group acts. At permutations it ranks as weight
      matching does. It needs no data, and none are read.
    - "midpoint": the loss of (A + B') / 2 on training images.
    - "random_point": the loss of (1 - t) A + t B', with t uniform on (0, 1), drawn anew for every step.

    S_tau is computed in the logarithmic domain, from where the step before ended, until every row sums to 1 within
    `tolerance` (columns do exactly). Its gradient is found by implicit differentiation: one linear system for each
    group, whatever the number of iterations (see `balance`).

    Every `evaluate_every` steps all P are rounded to a permutation by a linear assignment, and the best permutation by
    the objective itself is kept, that of the start (at the centre the identity) included: with "midpoint" the loss on
    the first `images` training images, with "random_point" its mean over t = 0.1, 0.3, 0.5, 0.7, 0.9. BatchNorm
    normalises by the statistics of each batch, in the search and in what is measured. Batches come in the same order
    in every pass, without augmentation.

    The objective of `Matching` is minus the squared distance, or minus the loss in nats. Trace: {"step", "cost" (of
    the soft permutations, before the step; for "l2" the squared distance as a share of ||A||^2 + ||B||^2),
    "violation" (largest distance of a row sum from 1), "seconds"} for each step, with "objective" and "best" (so far)
    where it was evaluated, "objective" that of the rounded permutation.

    Units inside blocks (heads, grouped convolutions) are refused.

    Memory: 28 n^2 bytes for each group of n units (X, Adam's state, P and the gradients), all groups at once, and on
    the way back 24 n^2 for one group at a time; copies of both networks, of the mapped one and of the gradient; with a
    loss the evaluated images.

    Args:
        objective: "l2", "midpoint" or "random_point".
        start: where X begins: at the "centre" (X = 0, all permutations mixed equally), or with half of the weight on
            the "identity" or on what "weight_matching" finds.
        temperature: tau; as Adam's steps are learning_rate whatever the gradient, only their ratio matters.
        learning_rate: of Adam, in units of X.
        steps: of Adam.
        iterations: at most, of the Sinkhorn operator, for each group and step.
        tolerance: distance of a row sum from 1 at which they end.
        evaluate_every: steps between roundings.
        batch_size: images in a batch; not read with "l2".
        images: at most so many training images, the first ones, are evaluated; None for all; not read with "l2".
    """

    needs_data: ClassVar[bool] = True
    is_soft = False

    objective: Literal["l2", "midpoint", "random_point"] = "midpoint"
    start: Literal["centre", "identity", "weight_matching"] = "centre"
    temperature: Positive = 1.0
    learning_rate: Positive = 0.1
    steps: PositiveInt = 300
    iterations: PositiveInt = 200
    tolerance: Positive = 1e-4
    evaluate_every: PositiveInt = 10
    batch_size: PositiveInt = 1000
    images: PositiveInt | None = 10_000

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` if some groups live inside others."""
        inside = next(iter(symmetry.outer), None)
        if inside is not None:
            raise UserError(
                f"alignment=sinkhorn has a soft permutation for each group on its own, and units of this network are "
                f"inside blocks ({inside!r}: dimensions of attention heads, channels of a grouped convolution); use "
                "alignment=straight_through, weight_matching or frank_wolfe"
            )

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the best matching met; see `lmc.alignment.problem.Alignment`.

        Raises:
            UserError: also if groups live inside others, the search diverges, or, but for "l2", there is no model or no
                labelled image.
        """
        self.check(problem.symmetry)
        check_pair(fixed, moving, problem.symmetry)
        ends = to_device(fixed, problem.device), to_device(moving, problem.device)
        cost = _Distance(*ends, problem) if self.objective == "l2" else _Loss(*ends, problem, self)
        best, complete = self._begin(fixed, moving, problem)
        soft = _SoftPermutation(self, problem, best, cost.dtype)
        optimiser = torch.optim.Adam(soft.scores.values(), lr=self.learning_rate) if soft.scores else None
        objective = now = -cost.at(best.apply(ends[1]))
        last, trace = best, list[dict[str, float]]()
        with until_interrupted() as run:
            for step in range(self.steps + 1 if complete else 0):
                began = time.perf_counter()
                maps = soft.balanced()
                ends_here = step == self.steps
                record: dict[str, float] = {"step": step, "violation": soft.violation}
                if ends_here or step % self.evaluate_every == 0:
                    rounded = Permutation(problem.symmetry, {name: assign(map_) for name, map_ in maps.items()})
                    if rounded != last:
                        last, now = rounded, -cost.at(rounded.apply(ends[1]))
                        if now > objective:
                            best, objective = rounded, now
                    record |= {"objective": now, "best": objective}
                if not ends_here and optimiser is not None:
                    mapped = soft_network(ends[1], maps, problem.symmetry)
                    record["cost"], gradient = cost.gradient(mapped, list(soft.scores.values()))
                    if not math.isfinite(record["cost"]):
                        raise UserError(
                            f"the alignment diverged: its cost became {record['cost']}; lower alignment.learning_rate"
                        )
                    for leaf, slope in zip(soft.scores.values(), gradient, strict=True):
                        leaf.grad = slope
                    optimiser.step()
                trace.append(record | {"seconds": time.perf_counter() - began})
                if on_step is not None:
                    on_step(trace[-1])
        return Matching(best, objective, trace, complete and run.complete)

    def _begin(self, fixed: State, moving: State, problem: Problem) -> tuple[Permutation, bool]:
        """Where the search begins, and whether that was found without an interruption."""
        if self.start == "weight_matching":
            found = WeightMatching()(fixed, moving, problem)
            return found.permutation, found.complete
        return Permutation.identity(problem.symmetry), True


def balance(
    scores: Tensor, temperature: float, columns: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor, float]:
    """Return P = S_tau(X) = diag(exp f) exp(X / tau) diag(exp g), differentiable in X, with g and the violation.

    The gradient is that of the limit of the iterations. With M = P o G for the gradient G by P, and r and c the sums of
    the rows and columns of P (1 at the limit), dP = P o (dX / tau + a 1^T + 1 b^T) must leave r and c as they are. So
    (a, b) solves [diag(r), P; P^T, diag(c)] (a, b) = -(row sums, column sums of P o dX) / tau, a symmetric system of
    size 2n and rank 2n - 1, and its adjoint gives

        gradient by X = P o (G - l 1^T - 1 m^T) / tau,  [diag(r), P; P^T, diag(c)] (l, m) = (row, column sums of M).

    Eliminating l leaves (diag(c) - P^T diag(1/r) P) m = column sums of M - P^T diag(1/r) row sums of M, of size n:
    positive semidefinite, its null space the constants, which change nothing, as l takes up what m leaves. It is solved
    in float64 by a Cholesky decomposition.

    Args:
        scores: X, (n, n).
        temperature: tau.
        columns: g to begin with, (n,).
        iterations: at most so many.
        tolerance: of the row sums of P.
    """
    plan, columns, violation = _Balance.apply(scores, temperature, columns, iterations, tolerance)
    return plan, columns, violation.item()


class _Balance(torch.autograd.Function):
    """See `balance`."""

    @staticmethod
    def forward(
        ctx: Any, scores: Tensor, temperature: float, columns: Tensor, iterations: int, tolerance: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = scores / temperature
        rows, violation = torch.zeros_like(columns), columns.new_tensor(math.inf)
        for _ in range(iterations):
            rows = -torch.logsumexp(logits + columns, 1)
            columns = -torch.logsumexp(logits + rows[:, None], 0)
            # What rows would have to be multiplied by in the next iteration says how far they are from 1.
            violation = (torch.logsumexp(logits + columns, 1) + rows).expm1().abs().amax()
            if violation <= tolerance:
                break
        plan = (logits + rows[:, None] + columns).exp()
        ctx.save_for_backward(plan)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(columns, violation)
        return plan, columns, violation

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        plan, slope = ctx.saved_tensors[0].double(), gradients[0].double()
        rows, columns = plan.sum(1), plan.sum(0)
        weighted = plan * slope
        by_row, by_column = weighted.sum(1), weighted.sum(0)
        shares = plan / rows[:, None]
        system = torch.diag(columns) - plan.T @ shares
        # Along the constants, where the right side is zero, the system is made 1 instead of 0.
        system += 1 / len(plan)
        system.diagonal().add_(_RIDGE)
        right = by_column - shares.T @ by_row
        m = torch.cholesky_solve(right[:, None], torch.linalg.cholesky(system)).squeeze(1)
        l = (by_row - plan @ m) / rows  # noqa: E741 (as in the formula)
        gradient = (weighted - plan * (l[:, None] + m)) / ctx.temperature
        return gradient.to(gradients[0].dtype), None, None, None, None


def soft_network(state: Mapping[str, Tensor], maps: Mapping[str, Tensor], symmetry: Symmetry) -> State:
    """Return the network with a soft permutation of every group, differentiable in `maps`: P W Q^T.

    Buffers stay as they are: nothing reads the running statistics of a mapped network.

    Args:
        state: the network.
        maps: group to (n, n).
        symmetry: without groups inside others.
    """
    mapped = dict(state)
    for name in symmetry.parameters & symmetry.axes_of.keys():
        for axis in symmetry.axes_of[name]:
            mapped[name] = mix(mapped[name], axis, maps)
    return mapped


class _SoftPermutation:
    """The scores of all groups.

    Args:
        settings: of the Sinkhorn operator.
        problem: the symmetry and the device.
        start: the permutation on which half of the weight lies, but for `start="centre"`.
        dtype: of the scores.
    """

    def __init__(self, settings: Sinkhorn, problem: Problem, start: Permutation, dtype: torch.dtype) -> None:
        self._settings = settings
        self.scores: State = {}
        self.violation = 0.0
        for name, target in start.items():
            n = len(target)
            scores = torch.zeros(n, n, dtype=dtype)
            if settings.start != "centre":
                scores[torch.arange(n), target] = settings.temperature * math.log(max(1, n - 1))
            self.scores[name] = scores.to(problem.device).requires_grad_()
        self._columns = {name: torch.zeros_like(scores[0]) for name, scores in self.scores.items()}

    def balanced(self) -> State:
        """Return the soft permutation of every group."""
        settings, maps, violations = self._settings, State(), [0.0]
        for name, scores in self.scores.items():
            maps[name], self._columns[name], violation = balance(
                scores, settings.temperature, self._columns[name].detach(), settings.iterations, settings.tolerance
            )
            violations.append(violation)
        self.violation = max(violations)
        return maps


class _Distance:
    """The squared distance of the networks."""

    def __init__(self, fixed: State, moving: State, problem: Problem) -> None:
        self._names = sorted(problem.symmetry.parameters & problem.symmetry.axes_of.keys())
        self._fixed = fixed
        self._whole = sum(end[name].double().square().sum().item() for name in self._names for end in (fixed, moving))
        wide = any(end[name].dtype == torch.float64 for name in self._names for end in (fixed, moving))
        self.dtype = torch.float64 if wide else torch.float32

    def at(self, moved: State) -> float:
        return sum((self._fixed[name].double() - moved[name].double()).square().sum().item() for name in self._names)

    def gradient(self, mapped: State, leaves: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        parts = [(self._fixed[name] - mapped[name]).square().sum() for name in self._names]
        cost = torch.stack(parts).sum() / (self._whole or 1.0)
        return cost.item(), torch.autograd.grad(cost, leaves)


class _Loss:
    """The loss on the line between the networks: at the midpoint, or at a random point."""

    dtype = torch.float32

    def __init__(self, fixed: State, moving: State, problem: Problem, settings: Sinkhorn) -> None:
        self._loss = TrainingLoss(problem, settings.batch_size)
        self._fixed = fixed
        self._evaluated = self._loss.first(settings.images)
        self._minibatches: Iterator[Batch] = self._loss.minibatches()
        self._random = settings.objective == "random_point"
        self._draw = generator(problem.seed, "sinkhorn")

    def at(self, moved: State) -> float:
        points = _POINTS if self._random else (0.5,)
        losses = [self._loss.over(interpolate(self._fixed, moved, t), self._evaluated) for t in points]
        return sum(losses) / len(losses)

    def gradient(self, mapped: State, leaves: Sequence[Tensor]) -> tuple[float, tuple[Tensor, ...]]:
        t = torch.rand((), generator=self._draw).item() if self._random else 0.5
        return self._loss.gradient(interpolate(self._fixed, mapped, t), leaves, next(self._minibatches))
