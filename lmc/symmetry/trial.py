"""A network with random weights on random inputs, in float64, on which something is proved by running."""

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

from lmc.errors import UserError
from lmc.modes import in_mode
from lmc.state import State
from lmc.symmetry.example import Example, arguments, mapped
from lmc.symmetry.structure import Symmetry

_DRAWS, _DAMPING = 6, 1.25
"""Networks that are tried, each with less amplification in its normalisation layers: some are silent, or chaotic."""

_STEP, _MOST_AMPLIFICATION = 1e-12, 1e2
"""A relative change of all weights, and how much larger that of the outputs may be: rounding stays rounding."""

_LEAST_VARIANCE = 1e-2
"""Of a normalised activation of the random network: a silent one is not blown up."""


@dataclass(frozen=True)
class Trial:
    """A network with random weights that is fit to prove something on, in float64.

    Attributes:
        model: the architecture.
        state: the model's state with noise, and BatchNorm's statistics taken on `inputs`.
        inputs: what it runs on.
        outputs: of the network on the inputs, flattened.
    """

    model: nn.Module
    state: State
    inputs: Example
    outputs: Tensor

    @classmethod
    def draw(cls, model: nn.Module, symmetry: Symmetry, inputs: Example, generator: torch.Generator) -> "Trial":
        """Draw noise for every tensor, so that fresh networks (zero biases, unit scales) cannot hide a mistake.

        BatchNorm's statistics are those of the inputs: the signals stay alive and different through deep networks.

        Raises:
            UserError: the model has no weights, or its outputs are zero or not finite.
        """
        if any(tensor.is_meta for tensor in model.state_dict().values()):
            name = type(model).__name__
            raise UserError(f"{name} is on the meta device and has no weights to run; give it real ones")
        inputs = mapped(lambda value: value.double() if value.is_floating_point() else value, inputs)
        for attempt in range(_DRAWS):
            state = _perturbed(model, symmetry, generator)
            with _statistics_from_inputs(model):
                _outputs(model, state, inputs)
            for name, tensor in state.items():
                kind = name.rpartition(".")[2]
                if kind in ("running_mean", "running_var"):
                    noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
                    tensor.mul_(0.75 + 0.5 * noise)
                    tensor.mul_(_DAMPING**attempt if kind == "running_var" else 1)
            trial = cls(model, state, inputs, _outputs(model, state, inputs))
            if trial.outputs.isfinite().all() and trial.outputs.any() and trial._is_steady(generator):
                return trial
        raise UserError(
            f"{type(model).__name__}: with random weights, the outputs of the network are zero, not finite or at the "
            "mercy of rounding, so that nothing can be proved on them"
        )

    def _is_steady(self, generator: torch.Generator) -> bool:
        """Whether rounding stays rounding: deep networks whose layers all normalise may amplify it beyond measure."""
        nearby = {}
        for name, tensor in self.state.items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype).to(tensor.device)
                tensor = tensor + _STEP * tensor * noise
            nearby[name] = tensor
        return self.change(nearby) < _STEP * _MOST_AMPLIFICATION

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
