"""The proof by running: a network moved by random elements of its symmetry must compute the same."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from lmc import seeding
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry, permute

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
    model: nn.Module, symmetry: Symmetry, example: Tensor, *, seed: int = 0, draws: int = 2, controls: int = 16
) -> Verification:
    """Check that random permutations of every group leave the outputs of `model` unchanged, and half a one does not.

    Weights are perturbed at random first, so that fresh networks (zero biases, unit scales) cannot hide a mistake.

    Args:
        model: the network; left as it is.
        symmetry: what `discover` found for it.
        example: an input of the model; only its shape and device are used.
        seed: of weights, inputs and permutations.
        draws: how many random elements are tried.
        controls: at most this many groups are tried with one axis alone.

    Raises:
        SymmetryError: the outputs change by more than `TOLERANCE`, or a control does not change them.
    """
    generator = seeding.generator(seed, "verify")
    trial = _Trial.draw(model, symmetry, example, generator)
    elements = [Permutation.random(symmetry, generator) for _ in range(draws)]
    error = max((trial.change(element.apply(trial.state)) for element in elements), default=0.0)
    if not error < TOLERANCE:
        worst, by = _worst_group(trial, symmetry, generator)
        raise SymmetryError(
            f"{type(model).__name__}: permuting the group {worst!r} alone changes the outputs by {by:.1e}, all groups "
            f"together by {error:.1e} (allowed: {TOLERANCE:.0e}); this is a defect of a symmetry rule, please report it"
        )
    waiting = [name for name, group in symmetry.groups.items() if len(group.axes) > 1][:controls]
    control = float("inf")
    for _ in range(_CONTROL_DRAWS):
        effects = {name: trial.change(_half_applied(symmetry, trial.state, name)) for name in waiting}
        control = min([control, *(effect for effect in effects.values() if effect > 10 * TOLERANCE)])
        waiting = [name for name, effect in effects.items() if not effect > 10 * TOLERANCE]
        if not waiting:
            return Verification(error, control)
        trial = _Trial.draw(model, symmetry, example, generator)
    raise SymmetryError(
        f"{type(model).__name__}: permuting one tensor of group {waiting[0]!r} without the others leaves the outputs "
        "unchanged, so the check of that group proves nothing; do the outputs depend on its units?"
    )


@dataclass(frozen=True)
class _Trial:
    """A perturbed network, random inputs, and its outputs on them, in float64."""

    model: nn.Module
    state: State
    inputs: Tensor
    outputs: Tensor

    @classmethod
    def draw(cls, model: nn.Module, symmetry: Symmetry, example: Tensor, generator: torch.Generator) -> "_Trial":
        state = _perturbed(model, symmetry, generator)
        inputs = torch.randn(example.shape, generator=generator, dtype=torch.float64).to(example.device)
        return cls(model, state, inputs, _outputs(model, state, inputs))

    def change(self, moved: State) -> float:
        """The largest change of the outputs, relative to the largest output."""
        difference = (_outputs(self.model, moved, self.inputs) - self.outputs).abs().max()
        return float(difference / self.outputs.abs().max())


def _perturbed(model: nn.Module, symmetry: Symmetry, generator: torch.Generator) -> State:
    """Return the network in float64 with noise; buffers are only scaled, so that variances stay positive."""
    found: State = {}
    done: dict[int, Tensor] = {}  # tied tensors get the same noise
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in done:
            done[id(tensor)] = _noisy(tensor.detach(), name in symmetry.parameters, generator)
        found[name] = done[id(tensor)]
    return found


def _noisy(tensor: Tensor, is_parameter: bool, generator: torch.Generator) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.clone()
    value = tensor.to("cpu", torch.float64)
    value = value * (0.75 + 0.5 * torch.rand(value.shape, generator=generator, dtype=value.dtype))
    if is_parameter:
        scale = value.square().mean().sqrt() + 0.1 / max(1, value[:1].numel()) ** 0.5
        value = value + 0.1 * scale * torch.randn(value.shape, generator=generator, dtype=value.dtype)
    return value.to(tensor.device)


def _outputs(model: nn.Module, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """All outputs of the network in evaluation mode, flattened into one vector."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            results = functional_call(model, dict(state), (inputs,), tie_weights=False)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat([leaf.flatten().double() for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor)])


def _half_applied(symmetry: Symmetry, state: State, group: str) -> State:
    """Return `state` with the units of `group` shifted by one in the largest of its tensors alone."""
    axis = max(symmetry.groups[group].axes, key=lambda a: state[a.tensor].numel())
    shift = torch.arange(symmetry.groups[group].size).roll(1).to(state[axis.tensor].device)
    return {**state, axis.tensor: permute(state[axis.tensor], (axis,), {group: shift})}


def _worst_group(trial: _Trial, symmetry: Symmetry, generator: torch.Generator) -> tuple[str, float]:
    """The group that alone changes the outputs most, and by how much."""
    drawn, still = Permutation.random(symmetry, generator), Permutation.identity(symmetry)
    singles = {name: Permutation(symmetry, {**still, name: drawn[name]}) for name in symmetry.groups}
    effects = {name: trial.change(single.apply(trial.state)) for name, single in singles.items()}
    worst = max(effects, key=lambda name: effects[name])
    return worst, effects[worst]
