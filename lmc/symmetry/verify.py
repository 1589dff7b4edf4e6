"""The proof by running: a network moved by random elements of its symmetry must compute the same."""

from dataclasses import dataclass

import torch
from torch import nn

from lmc import seeding
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.example import Example, random_like
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry, permute
from lmc.symmetry.trial import Trial

TOLERANCE = 1e-9
"""Largest relative change of the outputs, in float64, that counts as none."""


_CONTROL_DRAWS = 5
"""Networks and inputs on which a control is tried: in a narrow one all units of a group may happen to be silent."""


class SymmetryError(UserError):
    """A claimed symmetry changes what the network computes."""


@dataclass(frozen=True)
class Verification:
    """What running showed; changes are relative to the largest output, in float64.

    Attributes:
        error: the largest change under random elements of the whole symmetry; must be below `TOLERANCE`.
        control: the smallest change, over the groups, when one axis of a group is permuted without the others; a
            control near zero would mean that the check could not have failed.
    """

    error: float
    control: float


def verify(
    model: nn.Module, symmetry: Symmetry, example: Example, *, seed: int = 0, draws: int = 2, controls: int = 8
) -> Verification:
    """Check that random permutations of every group leave the outputs of `model` unchanged, and half a one does not.

    The network is one with random weights (`lmc.symmetry.trial`). All is computed in float64, also what the model
    itself casts to less.

    Args:
        model: the network; left as it is.
        symmetry: what `discover` found for it.
        example: an input of the model, as for `discover`; of floating-point tensors only shape and device are used.
        seed: of weights, inputs and permutations.
        draws: how many random elements are tried.
        controls: at most this many groups, spread over the network, are tried with one axis alone.

    Raises:
        SymmetryError: the outputs change by more than `TOLERANCE`, or a control does not change them.
        UserError: the model has no weights, or its outputs are not finite.
    """
    generator = seeding.generator(seed, "verify")
    trial = Trial.draw(model, symmetry, random_like(example, generator), generator)
    elements = (Permutation.random(symmetry, generator) for _ in range(draws))
    error = max((trial.change(element.apply(trial.state)) for element in elements), default=0.0)
    if not error < TOLERANCE:
        worst, by = _worst_group(trial, symmetry, generator)
        raise SymmetryError(
            f"{type(model).__name__}: permuting the group {worst!r} alone changes the outputs by {by:.1e}, all groups "
            f"together by {error:.1e} (allowed: {TOLERANCE:.0e}); this is a defect of a symmetry rule, please report it"
        )
    several = [name for name, group in symmetry.groups.items() if len(group.axes) > 1]
    count = min(controls, len(several))
    waiting = [several[place * len(several) // count] for place in range(count)]
    control = float("inf")
    for _ in range(_CONTROL_DRAWS):
        effects = {name: trial.change(_half_applied(symmetry, trial.state, name)) for name in waiting}
        control = min([control, *(effect for effect in effects.values() if effect > 10 * TOLERANCE)])
        waiting = [name for name, effect in effects.items() if not effect > 10 * TOLERANCE]
        if not waiting:
            return Verification(error, control)
        trial = Trial.draw(model, symmetry, random_like(example, generator), generator)
    raise SymmetryError(
        f"{type(model).__name__}: permuting one tensor of group {waiting[0]!r} without the others leaves the outputs "
        "unchanged, so the check of that group proves nothing; do the outputs depend on its units?"
    )


def _half_applied(symmetry: Symmetry, state: State, group: str) -> State:
    """Return `state` with the units of `group` shifted by one in the largest of its tensors alone."""
    tensor = max((axis.tensor for axis in symmetry.groups[group].axes), key=lambda name: state[name].numel())
    shift = torch.arange(symmetry.groups[group].size).roll(1).expand(symmetry.lattice(group)).to(state[tensor].device)
    axes = symmetry.axes_of[tensor]
    return {**state, tensor: permute(state[tensor], axes, {group: shift}, symmetry.outer)}


def _worst_group(trial: Trial, symmetry: Symmetry, generator: torch.Generator) -> tuple[str, float]:
    """The group that alone changes the outputs most, and by how much."""
    drawn, still = Permutation.random(symmetry, generator), Permutation.identity(symmetry)
    singles = {name: Permutation(symmetry, {**still, name: drawn[name]}) for name in symmetry.groups}
    effects = {name: trial.change(single.apply(trial.state)) for name, single in singles.items()}
    worst = max(effects, key=lambda name: effects[name])
    return worst, effects[worst]
