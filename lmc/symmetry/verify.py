"""The proof by running: a network moved by random elements of its symmetry must compute the same."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lmc import seeding
from lmc.errors import UserError
from lmc.modes import in_mode
from lmc.state import State
from lmc.symmetry.example import Example, arguments, random_like
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry, permute

TOLERANCE = 1e-9
"""Largest relative change of the outputs, in float64, that counts as none."""


_CONTROL_DRAWS = 5
"""Networks and inputs on which a control is tried: in a narrow one all units of a group may happen to be silent."""

_LEAST_VARIANCE = 1e-2
"""Of a normalised activation of the random network: a silent one is not blown up."""


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

    Weights are perturbed at random first, so that fresh networks (zero biases, unit scales) cannot hide a mistake, and
    BatchNorm's statistics are taken on the random inputs, so that signals stay alive through deep networks. All is
    computed in float64, also what the model itself casts to less.

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
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise UserError(f"{type(model).__name__} is on the meta device and has no weights to run; give it real ones")
    generator = seeding.generator(seed, "verify")
    trial = _Trial.draw(model, symmetry, example, generator)
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
    inputs: Example
    outputs: Tensor

    @classmethod
    def draw(cls, model: nn.Module, symmetry: Symmetry, example: Example, generator: torch.Generator) -> "_Trial":
        state = _perturbed(model, symmetry, generator)
        inputs = random_like(example, generator)
        with _statistics_from_inputs(model):
            _outputs(model, state, inputs)
        for name, tensor in state.items():
            if name.rpartition(".")[2] in ("running_mean", "running_var"):
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
                tensor.mul_(0.75 + 0.5 * noise)
        outputs = _outputs(model, state, inputs)
        if not outputs.isfinite().all() or not outputs.any():
            raise UserError(
                f"{type(model).__name__}: the outputs of the network with random weights are zero or not finite, so "
                "that nothing can be proved on them"
            )
        return cls(model, state, inputs, outputs)

    def change(self, moved: State) -> float:
        """The largest change of the outputs, relative to the largest output."""
        difference = (_outputs(self.model, moved, self.inputs) - self.outputs).abs().max()
        return float(difference / self.outputs.abs().max())


class _Double(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Every cast to a floating-point type is one to float64: rounding inside a model must not look like a change."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        dtype = kwargs.get("dtype")
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


@contextmanager
def _statistics_from_inputs(model: nn.Module) -> Iterator[None]:
    """Let every BatchNorm layer of a network that runs in this block take its statistics from what it is given."""

    def take(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(layer.running_mean, Tensor) and isinstance(layer.running_var, Tensor):
            channels = inputs[0].transpose(0, 1).flatten(1) if inputs[0].ndim > 1 else inputs[0][:, None]
            layer.running_mean.copy_(channels.mean(1))
            layer.running_var.copy_(channels.var(1, unbiased=False).clamp_min(_LEAST_VARIANCE))

    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    handles = [layer.register_forward_pre_hook(take) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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


def _outputs(model: nn.Module, state: Mapping[str, Tensor], inputs: Example) -> Tensor:
    """All floating-point outputs of the network in evaluation mode, flattened into one vector."""
    args, kwargs = arguments(inputs)
    # functional_call does not put back a layer that is used under two names, so each layer goes by its first name.
    first = {name for name, _ in model.named_modules()}
    own = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] in first}
    with in_mode(model), torch.no_grad(), _Double():  # type: ignore[no-untyped-call]  # torch leaves it untyped
        results = functional_call(model, own, args, kwargs, tie_weights=False)
    leaves = [leaf for leaf in pytree.tree_leaves(results) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not leaves:
        raise UserError(f"{type(model).__name__} returns no floating-point tensor, so there is nothing to compare")
    return torch.cat([leaf.flatten().double() for leaf in leaves])


def _half_applied(symmetry: Symmetry, state: State, group: str) -> State:
    """Return `state` with the units of `group` shifted by one in the largest of its tensors alone."""
    tensor = max((axis.tensor for axis in symmetry.groups[group].axes), key=lambda name: state[name].numel())
    shift = torch.arange(symmetry.groups[group].size).roll(1).expand(symmetry.lattice(group)).to(state[tensor].device)
    axes = symmetry.axes_of[tensor]
    return {**state, tensor: permute(state[tensor], axes, {group: shift}, symmetry.outer)}


def _worst_group(trial: _Trial, symmetry: Symmetry, generator: torch.Generator) -> tuple[str, float]:
    """The group that alone changes the outputs most, and by how much."""
    drawn, still = Permutation.random(symmetry, generator), Permutation.identity(symmetry)
    singles = {name: Permutation(symmetry, {**still, name: drawn[name]}) for name in symmetry.groups}
    effects = {name: trial.change(single.apply(trial.state)) for name, single in singles.items()}
    worst = max(effects, key=lambda name: effects[name])
    return worst, effects[worst]
