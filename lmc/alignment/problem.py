"""What an alignment method is given, and what it gives back."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from lmc.errors import UserError
from lmc.state import State, check_fits
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import AnyTransform, refuse_blocks

log = logging.getLogger(__name__)

OnStep = Callable[[Mapping[str, float]], None]
"""Called with the numbers of every step of a method, for progress and for the tracker."""


@dataclass(frozen=True)
class Problem:
    """Everything about a pair of networks that is not in their weights.

    Attributes:
        model: the architecture of both networks; None where only weights are compared.
        symmetry: the groups that may be permuted.
        seed: from which a method derives its random numbers.
        device: where the numbers are computed; networks may lie elsewhere.
        batches: batch size -> the normalised float32 training images (B, C, H, W) without augmentation, in a fixed
            order; None where there are no data.
        labelled: batch size -> the same images in the same order, each batch with its labels (B,) int64; None where
            there are no data or no labels.
        earlier: further checkpoints of both networks, (fixed, moving), from earlier moments of training, oldest first;
            for methods that look for one permutation of all of them.
    """

    model: nn.Module | None
    symmetry: Symmetry
    seed: int
    device: torch.device
    batches: Callable[[int], Iterable[Tensor]] | None
    labelled: Callable[[int], Iterable[tuple[Tensor, Tensor]]] | None = None
    earlier: Sequence[tuple[State, State]] = ()

    def images(self, count: int | None, batch_size: int) -> Iterator[Tensor]:
        """Yield the first training images, at most `count` (None: all), on `device` in batches of `batch_size`.

        Raises:
            UserError: there are no data.
        """
        if self.batches is None:
            raise UserError("this alignment looks at activations, but no images were given; hand it batches of images")
        yield from (batch for (batch,) in self._first(((batch,) for batch in self.batches(batch_size)), count))

    def examples(self, count: int | None, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the first training images with their labels, as `images` does.

        Raises:
            UserError: there are no data, or no labels.
        """
        if self.labelled is None:
            raise UserError("this alignment looks at the loss, but no labels were given; hand it batches with labels")
        yield from ((images, labels) for images, labels in self._first(self.labelled(batch_size), count))

    def _first(self, batches: Iterable[tuple[Tensor, ...]], count: int | None) -> Iterator[tuple[Tensor, ...]]:
        """The first `count` rows of what comes in batches (None: all), on `device`."""
        left = count
        for batch in batches:
            if left == 0:
                return
            chosen = tuple(tensor[:left] for tensor in batch)
            if len(chosen[0]):
                yield tuple(tensor.to(self.device) for tensor in chosen)
            left = None if left is None else left - len(chosen[0])


@dataclass(frozen=True)
class Matching:
    """What a method found.

    Attributes:
        transform: to be applied to the moving network: a permutation, or a linear map where the method gives one.
        objective: what the method maximised (or minimised), at `transform`; its docstring says what that is.
        trace: one record of numbers for each step, in the order in which they were taken.
        complete: False if the method was interrupted (Ctrl-C) and this is the best it had until then.
        fixed_transform: to be applied to the fixed network; None, but for methods that change both networks: that merge
            units of one network, or fold its norms.
    """

    transform: AnyTransform
    objective: float
    trace: list[dict[str, float]]
    complete: bool = True
    fixed_transform: AnyTransform | None = None

    @property
    def permutation(self) -> Permutation:
        """The transform of a method that gives a permutation.

        Raises:
            UserError: it gives something else.
        """
        if not isinstance(self.transform, Permutation):
            raise UserError("this method gives something else than a permutation; take its transform")
        return self.transform


class Alignment(Protocol):
    """A method: finds what brings `moving` closest to `fixed`, by its own measure of close."""

    needs_data: ClassVar[bool]
    """Whether `Problem.batches` and `Problem.model` are needed; if so, the data set is part of the key."""

    @property
    def is_soft(self) -> bool:
        """Whether something else than a permutation of the moving network is returned."""
        ...

    @property
    def stacked(self) -> int:
        """How many checkpoints in `Problem.earlier` are needed."""
        ...

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` if the method cannot handle some group of `symmetry`; called before any training."""
        ...

    def __call__(self, fixed: State, moving: State, problem: Problem, on_step: OnStep | None = None) -> Matching:
        """Return the matching; neither network is changed.

        Raises:
            UserError: a network does not fit `problem.symmetry`, or holds a number that is not finite.
        """


class Interruption:
    """Whether a search has run to its end."""

    complete = True


@contextmanager
def until_interrupted() -> Iterator[Interruption]:
    """Let Ctrl-C end the block instead of the program, so that a long search can return the best it has found.

    Whoever uses it must have something to return before the block begins.
    """
    found = Interruption()
    try:
        yield found
    except KeyboardInterrupt:
        found.complete = False
        log.warning("interrupted; the best matching so far is kept")


class OneCheckpoint:
    """For methods that look at the networks as they are, and at no earlier checkpoint."""

    @property
    def stacked(self) -> int:
        """None."""
        return 0


class AnySymmetry(OneCheckpoint):
    """For methods that handle groups of every kind, and give a permutation."""

    @property
    def is_soft(self) -> bool:
        """It gives a permutation."""
        return False

    def check(self, symmetry: Symmetry) -> None:
        """Accept every symmetry."""


class PlainGroupsOnly(OneCheckpoint):
    """For methods that return a matrix for each group, which is not defined for units inside blocks."""

    @property
    def is_soft(self) -> bool:
        """It gives a matrix for each group."""
        return True

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` if some groups live inside others."""
        refuse_blocks(symmetry, type(self).__name__)


def refuse_no_patterns(patterns: Sequence[str] | None) -> None:
    """Raise a `UserError` if the list of patterns is empty."""
    if patterns is not None and not patterns:
        raise UserError("alignment.groups=[] would match nothing; name some groups, or leave it null for all")


def chosen_groups(symmetry: Symmetry, patterns: Sequence[str] | None) -> list[str]:
    """Return the groups of `symmetry` whose names fit one of the shell-style patterns, in its order; None for all.

    A name fits itself, whatever brackets it has.

    Raises:
        UserError: a pattern fits none.
    """
    if patterns is None:
        return list(symmetry.groups)

    def fits(name: str, pattern: str) -> bool:
        return name == pattern or fnmatchcase(name, pattern)

    for pattern in patterns:
        if not any(fits(name, pattern) for name in symmetry.groups):
            raise UserError(f"alignment.groups: no group fits {pattern!r}; there are {', '.join(symmetry.groups)}")
    return [name for name in symmetry.groups if any(fits(name, pattern) for pattern in patterns)]


def check_pair(fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], symmetry: Symmetry) -> None:
    """Raise a `UserError` unless both networks have the tensors of `symmetry` and their parameters are finite."""
    check_networks({"the fixed network": fixed, "the moving network": moving}, symmetry)


def check_networks(networks: Mapping[str, Mapping[str, Tensor]], symmetry: Symmetry) -> None:
    """Raise a `UserError`, as `check_pair`, that names the network by its key."""
    expected = {name: torch.empty(shape, device="meta") for name, shape in symmetry.shapes.items()}
    for origin, state in networks.items():
        check_fits(state, expected, origin)
        for name in sorted(symmetry.parameters):
            if not _is_finite(state[name]):
                raise UserError(f"{origin} cannot be aligned: tensor {name!r} holds NaN or infinity; train it again")


def _is_finite(tensor: Tensor) -> bool:
    # Both extremes are NaN if any element is; 30 times as fast on a CPU as torch.isfinite(tensor).all().
    return not tensor.numel() or all(extreme.isfinite().item() for extreme in torch.aminmax(tensor))
