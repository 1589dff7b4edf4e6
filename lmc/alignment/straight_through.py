"""Straight-through estimation: a network is trained whose nearest permuted copies make a good mean network."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import cross_entropy

from lmc.alignment.problem import AnySymmetry, Matching, OnStep, Problem, check_pair, until_interrupted
from lmc.alignment.similarity.weights import WeightSimilarity
from lmc.alignment.weight_matching import Descent, WeightMatching
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, mean, to_device
from lmc.statistics.forward import evaluating
from lmc.statistics.reset import batch_norms
from lmc.symmetry.permutation import Permutation

Batch = tuple[Tensor, Tensor]
"""Normalised images (B, ...) and their labels (B,) int64."""


class TrainingLoss:
    """The mean cross-entropy of networks of one architecture on labelled training images, and its gradient.

    In float32 and in evaluation mode, but for BatchNorm, which normalises by the statistics of the batch: the running
    ones of a merged network are those of none of its parts. Nothing is ever written to running statistics.

    Args:
        problem: the architecture and the images.
        batch_size: images in a batch.

    Raises:
        UserError: there is no model, or there are no labelled images.
    """

    def __init__(self, problem: Problem, batch_size: int) -> None:
        if problem.model is None:
            raise UserError("this alignment runs the networks, but no model was given; hand it the nn.Module")
        self._model, self._problem, self._batch_size = problem.model, problem, batch_size
        self._norms = list(batch_norms(problem.model).values())
        if next(problem.examples(1, 1), None) is None:
            raise UserError("this alignment was given no images; hand it some batches with labels")

    def minibatches(self) -> Iterator[Batch]:
        """Yield batches for ever, in the same order in every pass.

        A last batch that is not full is left out, unless it is the only one.
        """
        while True:
            for place, batch in enumerate(self._problem.examples(None, self._batch_size)):
                if place == 0 or len(batch[1]) == self._batch_size:
                    yield batch

    def first(self, count: int | None) -> list[Batch]:
        """Return the first `count` images (None: all) in batches, without a last batch of one image among several."""
        batches = list(self._problem.examples(count, self._batch_size))
        return batches if len(batches) == 1 or len(batches[-1][1]) > 1 else batches[:-1]

    def gradient(self, state: State, leaves: Sequence[Tensor], batch: Batch) -> tuple[float, tuple[Tensor, ...]]:
        """Return the loss of the network `state` on a batch and its gradient with respect to `leaves`.

        Raises:
            UserError: the loss is not finite.
        """
        with evaluating(self._model, state, self._norms) as network, torch.enable_grad():
            loss = cross_entropy(network(batch[0]), batch[1])
            if not math.isfinite(value := loss.item()):
                raise UserError(f"the alignment diverged: the loss became {value}; lower alignment.learning_rate")
            # What the network does not use in evaluation mode (auxiliary classifiers) has no gradient.
            return value, torch.autograd.grad(loss, leaves, materialize_grads=True)

    def over(self, state: State, batches: Sequence[Batch]) -> float:
        """Return the mean loss of the network `state` over all images of `batches`."""
        with evaluating(self._model, state, self._norms) as network:
            total = sum(cross_entropy(network(i), y, reduction="sum").item() for i, y in batches)
        return total / sum(len(labels) for _, labels in batches)


@dataclass(frozen=True)
class Found:
    """What a search ends with: permutations of all networks but the first, at which the objective is `objective`."""

    permutations: tuple[Permutation, ...]
    objective: float
    trace: list[dict[str, float]]
    complete: bool


@dataclass(frozen=True, kw_only=True)
class StraightThroughSearch:
    """Settings and search of straight-through estimation, for two networks and for more.

    Network 1 stays. B~_i stands for network i, and proj(B~_i) is the permuted copy of network i nearest to B~_i, found
    by weight matching from the last projection on. A step takes the gradient of the loss of the mean of network 1 and
    of all proj(B~_i), and lets it through the projection to B~_i as it is. As the mean weighs all networks alike, the
    B~_i all get the same gradient: what is learned is one displacement from where each of them began.

    Args:
        optimiser: "sgd" or "adam", of the displacement.
        learning_rate: of that.
        momentum: of SGD; of Adam the decay of the mean gradient.
        batch_size: images in a batch; BatchNorm normalises by its statistics.
        steps: of the optimiser.
        project_every: steps between projections.
        evaluate_every: steps between evaluations, at which the best permutations are kept.
        images: at most so many training images, the first ones, are evaluated; None for all.
        max_sweeps: of the weight matching in a projection.
        tolerance: smallest gain for which a group is moved in it; see `WeightMatching`.
    """

    needs_data: ClassVar[bool] = True

    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch_size: PositiveInt = 1000
    steps: PositiveInt = 1000
    project_every: PositiveInt = 1
    evaluate_every: PositiveInt = 20
    images: PositiveInt | None = 10_000
    max_sweeps: PositiveInt = 100
    tolerance: Annotated[float, Field(ge=0)] = 1e-9

    def search(
        self,
        states: Sequence[State],
        start: Sequence[Permutation],
        problem: Problem,
        label: str,
        on_step: OnStep | None,
        *,
        at_first: bool,
        complete: bool,
    ) -> Found:
        """Return the best permutations met.

        Args:
            states: the networks; none is changed.
            start: permutations of all but the first, with which the search begins.
            problem: everything that is not in the weights.
            label: of the random numbers.
            on_step: called with the record of every step.
            at_first: whether all B~ begin at the first network; else at the permuted networks themselves.
            complete: whether the start is; of one that was interrupted nothing but the loss is found.

        Raises:
            UserError: no model or no labelled images, or the loss is not finite.
        """
        loss = TrainingLoss(problem, self.batch_size)
        evaluated = loss.first(self.images)
        merge = _Merge(self, [to_device(state, problem.device) for state in states], start, problem, label, at_first)
        optimiser = self._optimiser(merge.displacement)
        objective = now = -loss.over(merge.mean, evaluated)
        best = last = merge.permutations
        trace = list[dict[str, float]]()
        with until_interrupted() as run:
            _record(trace, on_step, {"step": 0, "objective": objective, "best": objective})
            merge.project()
            for step, batch in zip(range(1, self.steps + 1 if complete else 1), loss.minibatches(), strict=False):
                began = time.perf_counter()
                value, gradient = merge.gradient(loss, batch)
                for leaf, slope in zip(merge.displacement.values(), gradient, strict=True):
                    leaf.grad = slope
                optimiser.step()
                ends = step == self.steps
                moved = merge.project() if ends or step % self.project_every == 0 else 0
                record = {"step": step, "loss": value, "moved": moved}
                if ends or step % self.evaluate_every == 0:
                    if merge.permutations != last:
                        last, now = merge.permutations, -loss.over(merge.mean, evaluated)
                        if now > objective:
                            best, objective = last, now
                    record |= {"objective": now, "best": objective}
                _record(trace, on_step, record | {"seconds": time.perf_counter() - began})
        return Found(best, objective, trace, complete and run.complete)

    def _optimiser(self, displacement: Mapping[str, Tensor]) -> torch.optim.Optimizer:
        leaves = list(displacement.values())
        if self.optimiser == "sgd":
            return torch.optim.SGD(leaves, lr=self.learning_rate, momentum=self.momentum)
        return torch.optim.Adam(leaves, lr=self.learning_rate, betas=(self.momentum, 0.999))


@dataclass(frozen=True, kw_only=True)
class StraightThrough(StraightThroughSearch, AnySymmetry):
    """Minimises the loss of the midpoint by a straight-through estimator (Ainsworth et al. 2023, Git Re-Basin, Alg. 2).

    min over B~ of L((A + proj(B~)) / 2), where A is the fixed network and proj(B~) the permuted copy of the moving one
    that weight matching brings nearest to B~, with B~ as its target. B~ gets the gradient of L as if it were
    proj(B~) itself. B~ begins at A, where the projection is weight matching, and every later projection at the one
    before it. With `start="weight_matching"` B~ begins at the matched network itself.

    The permutation with the lowest loss of the midpoint on the first `images` training images is kept, weight
    matching's own included, so that the result is never worse than weight matching by that measure. BatchNorm
    normalises by the statistics of each batch, in the search and in what is measured (there is nothing else that a
    network which does not exist yet could use); so does what `statistics=reset` makes of the midpoint.

    Batches come in the same order in every pass, without augmentation. Git Re-Basin trains for 250 passes with SGD.

    The objective of `Matching` is minus that loss, in nats. Trace: {"step", "loss" (of the midpoint on the minibatch,
    before the step), "moved" (units whose partner the projection after the step has changed), "seconds"} for each
    step, with "objective" and "best" (so far) where it was evaluated; step 0 is the start, evaluated.

    Memory: on the device copies of both networks, of B~'s displacement (3 with Adam's state, 2 with SGD's), of the
    gradient, what weight matching holds, and the evaluated images.

    Args:
        start: where B~ begins: at the "fixed" network (Git Re-Basin), or at what "weight_matching" makes of the moving.
        restarts: descents of the weight matching that the search begins with; see `WeightMatching`.
        optimiser, learning_rate, momentum: of B~; see `StraightThroughSearch`.
        batch_size, steps, project_every, evaluate_every, images, max_sweeps, tolerance: likewise.
    """

    start: Literal["fixed", "weight_matching"] = "fixed"
    restarts: PositiveInt = 5

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the best matching met; see `lmc.alignment.problem.Alignment`.

        Raises:
            UserError: also if there is no model or no labelled image, or the loss is not finite.
        """
        check_pair(fixed, moving, problem.symmetry)
        matching = WeightMatching(restarts=self.restarts, max_sweeps=self.max_sweeps, tolerance=self.tolerance)
        start = matching(fixed, moving, problem)
        found = self.search(
            [fixed, moving],
            [start.permutation],
            problem,
            "straight_through",
            on_step,
            at_first=self.start == "fixed",
            complete=start.complete,
        )
        return Matching(found.permutations[0], found.objective, found.trace, found.complete)


class _Merge:
    """The permutations of all networks but the first, the mean network that they make, and the displacement of the B~.

    Args:
        settings: of the projections.
        states: the networks, on the device.
        start: permutations of all but the first.
        problem: symmetry, model and seed.
        label: of the random numbers.
        at_first: whether the B~ begin at the first network.
    """

    def __init__(
        self,
        settings: StraightThroughSearch,
        states: Sequence[State],
        start: Sequence[Permutation],
        problem: Problem,
        label: str,
        at_first: bool,
    ) -> None:
        assert problem.model is not None  # TrainingLoss has refused it
        self._settings, self._states, self._problem = settings, states, problem
        aligned = (p.apply(s) for p, s in zip(start, states[1:], strict=True))
        self._begin = [states[0]] * len(start) if at_first else list(aligned)
        self._orders = WeightMatching(restarts=1, max_sweeps=settings.max_sweeps)
        self._draw = generator(problem.seed, label)
        trained = {id(parameter): name for name, parameter in problem.model.named_parameters()}
        tied = problem.model.named_parameters(remove_duplicate=False)
        # A tied tensor is displaced under one name, and the others share the displacement.
        self._leaf_of = {name: trained[id(p)] for name, p in tied if name in problem.symmetry.axes_of}
        leaves = dict.fromkeys(self._leaf_of.values())
        self.displacement: State = {name: torch.zeros_like(states[0][name]).requires_grad_() for name in leaves}
        self.permutations = tuple(start)
        self.mean = self._merged()

    def gradient(self, loss: TrainingLoss, batch: Batch) -> tuple[float, tuple[Tensor, ...]]:
        """Return the loss of the mean network and its gradient, by every network, for the displaced tensors."""
        leaves = {name: self.mean[name].detach().requires_grad_() for name in self.displacement}
        tied = {name: leaves[leaf] for name, leaf in self._leaf_of.items()}
        value, gradient = loss.gradient({**self.mean, **tied}, list(leaves.values()), batch)
        return value, tuple(slope / len(self._states) for slope in gradient)

    def project(self) -> int:
        """Match every network with its B~, from the present permutation on; return how many units have moved."""
        found = [self._projected(number) for number in range(len(self._states) - 1)]
        changed = [
            int((new[name] != old[name]).sum())
            for new, old in zip(found, self.permutations, strict=True)
            for name in new
        ]
        if any(changed):
            self.permutations = tuple(found)
            self.mean = self._merged()
        return sum(changed)

    def _projected(self, number: int) -> Permutation:
        symmetry, device = self._problem.symmetry, self._problem.device
        origin = self._begin[number]
        target = dict(origin)
        for name, leaf in self._leaf_of.items():
            target[name] = origin[name] + self.displacement[leaf].detach()
        weights = WeightSimilarity(target, self._states[number + 1], symmetry, device)
        now = {name: value.to(device) for name, value in self.permutations[number].items()}
        descent = Descent(weights, symmetry, self._settings.tolerance * weights.bound, now)
        for _ in descent.run(self._orders.orders(symmetry, weights, self._draw), self._settings.max_sweeps):
            pass
        return Permutation(symmetry, descent.permutation)

    def _merged(self) -> State:
        moved = [p.apply(state) for p, state in zip(self.permutations, self._states[1:], strict=True)]
        return mean([self._states[0], *moved])


def _record(trace: list[dict[str, float]], on_step: OnStep | None, record: dict[str, float]) -> None:
    trace.append(record)
    if on_step is not None:
        on_step(record)
