"""What an alignment method is given, and what it gives back."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from lmc.errors import UserError
from lmc.state import State, check_fits
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry
from lmc.symmetry.transform import LinearMap, refuse_blocks

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
    """

    model: nn.Module | None
    symmetry: Symmetry
    seed: int
    device: torch.device
    batches: Callable[[int], Iterable[Tensor]] | None

    def images(self, count: int | None, batch_size: int) -> Iterator[Tensor]:
        """Yield the first training images, at most `count` (None: all), on `device` in batches of `batch_size`.

        Raises:
            UserError: there are no data.
        """
        if self.batches is None:
            raise UserError("this alignment looks at activations, but no images were given; hand it batches of images")
        left = count
        for batch in self.batches(batch_size):
            if left == 0:
                return
            chosen = batch if left is None else batch[:left]
            if len(chosen):
                yield chosen.to(self.device)
            left = None if left is None else left - len(chosen)


@dataclass(frozen=True)
class Matching:
    """What a method found.

    Attributes:
        transform: to be applied to the moving network: a permutation, or a linear map where the method gives one.
        objective: what the method maximised (or minimised), at `transform`; its docstring says what that is.
        trace: one record of numbers for each step, in the order in which they were taken.
        complete: False if the method was interrupted (Ctrl-C) and this is the best it had until then.
        fixed_transform: to be applied to the fixed network; None, but for methods that also merge units of one network.
    """

    transform: Permutation | LinearMap
    objective: float
    trace: list[dict[str, float]]
    complete: bool = True
    fixed_transform: Permutation | LinearMap | None = None

    @property
    def permutation(self) -> Permutation:
        """The transform of a method that gives a permutation.

        Raises:
            UserError: it gives a linear map.
        """
        if not isinstance(self.transform, Permutation):
            raise UserError("this method maps units to mixtures of units; there is no permutation to return")
        return self.transform


class Alignment(Protocol):
    """A method: finds what brings `moving` closest to `fixed`, by its own measure of close."""

    needs_data: ClassVar[bool]
    """Whether `Problem.batches` and `Problem.model` are needed; if so, the data set is part of the key."""

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


class AnySymmetry:
    """For methods that handle groups of every kind."""

    def check(self, symmetry: Symmetry) -> None:
        """Accept every symmetry."""


class PlainGroupsOnly:
    """For methods that return a matrix for each group, which is not defined for units inside blocks."""

    def check(self, symmetry: Symmetry) -> None:
        """Raise a `UserError` if some groups live inside others."""
        refuse_blocks(symmetry, type(self).__name__)


def check_pair(fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], symmetry: Symmetry) -> None:
    """Raise a `UserError` unless both networks have the tensors of `symmetry` and their parameters are finite."""
    expected = {name: torch.empty(shape, device="meta") for name, shape in symmetry.shapes.items()}
    for role, state in (("fixed", fixed), ("moving", moving)):
        origin = f"the {role} network"
        check_fits(state, expected, origin)
        for name in sorted(symmetry.parameters):
            if not _is_finite(state[name]):
                raise UserError(f"{origin} cannot be aligned: tensor {name!r} holds NaN or infinity; train it again")


def _is_finite(tensor: Tensor) -> bool:
    # Both extremes are NaN if any element is; 30 times as fast on a CPU as torch.isfinite(tensor).all().
    return not tensor.numel() or all(extreme.isfinite().item() for extreme in torch.aminmax(tensor))
