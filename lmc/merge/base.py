"""What brings several networks into one frame is given, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lmc.alignment.problem import Alignment, OnStep, Problem, check_networks
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True)
class Frame:
    """Permutations that bring all networks together.

    Attributes:
        permutations: one for each network, in their order; the first is the identity, so that the frame is that of the
            first network. Network j goes to network i by the inverse of i's after j's: every cycle closes.
        objective: what the method maximised, at `permutations`; its docstring says what that is.
        trace: one record of numbers for each step, in the order in which they were taken.
        complete: False if the method was interrupted (Ctrl-C) and this is the best it had until then.
    """

    permutations: tuple[Permutation, ...]
    objective: float
    trace: list[dict[str, float]]
    complete: bool = True


class JointMerge(Protocol):
    """A method that brings all networks into one frame at once."""

    needs_data: ClassVar[bool]
    """Whether `Problem.batches` and `Problem.model` are needed by the method itself, whatever the alignment needs."""

    def check(self, symmetry: Symmetry, alignment: Alignment) -> None:
        """Raise a `UserError` if the method cannot handle a group of `symmetry`, or work with `alignment`.

        Called before any training.
        """
        ...

    def __call__(
        self, states: Sequence[State], alignment: Alignment, problem: Problem, on_step: OnStep | None = None
    ) -> Frame:
        """Return the frame of at least two networks; no network is changed.

        Args:
            states: the networks.
            alignment: aligns two networks by a permutation; with `NoAlignment` nothing is known to begin with.
            problem: everything that is not in the weights.
            on_step: called with the numbers of every step.

        Raises:
            UserError: a network does not fit `problem.symmetry`, or holds a number that is not finite.
        """


def check_all(states: Sequence[State], symmetry: Symmetry) -> None:
    """Raise a `UserError` that names the network which does not fit `symmetry` or whose parameters are not finite."""
    check_networks({f"network {n} of {len(states)}": state for n, state in enumerate(states, 1)}, symmetry)


def rebased(permutations: Sequence[Permutation]) -> tuple[Permutation, ...]:
    """Return the same frame seen from the first network: its permutation becomes the identity."""
    back = permutations[0].inverse()
    return tuple(back.compose(permutation) for permutation in permutations)


def refuse_soft(alignment: Alignment, merge: str) -> None:
    """Raise a `UserError` if `alignment` gives something else than a permutation, or stacks checkpoints."""
    if alignment.stacked:
        raise UserError(f"merge={merge} cannot stack checkpoints; set alignment.stacked=0, or choose merge=pairs")
    if alignment.is_soft:
        raise UserError(
            f"merge={merge} needs an alignment that gives a permutation, and {type(alignment).__name__} gives more; "
            "choose another alignment (or, of transformers, alignment.fold=false), or merge=pairs"
        )
