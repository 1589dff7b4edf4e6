"""Run a network with given tensors the way every measurement needs it, and put everything back."""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cudnn
from torch.func import functional_call
from torch.utils.hooks import RemovableHandle

from lmc.modes import in_mode
from lmc.state import State


@contextmanager
def evaluating(
    model: nn.Module, state: Mapping[str, Tensor], training: Collection[nn.Module] = ()
) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield a function that maps inputs to the outputs of `model` with the tensors of `state`.

    Inside the block the network is in evaluation mode (dropout off), works in float32 (no autocast, no TF32) and
    records no gradients. Afterwards its training flags are as they were; its own tensors are never touched.

    Args:
        model: the architecture.
        state: its tensors, all on one device; floating-point ones are used as float32.
        training: modules of `model` that are to be in training mode; what they write to their buffers is thrown away.
    """
    names = {module: name for name, module in model.named_modules()}
    # functional_call does not put back a layer that is used under two names, so each layer goes by its first name.
    own = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] in set(names.values())}
    tensors = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in own.items()}
    for module in training:
        for buffer, value in module.named_buffers(prefix=names[module], recurse=False):
            tensors[buffer] = tensors.get(buffer, value).clone()
    with in_mode(model, training), torch.no_grad(), _float32(next(iter(tensors.values())).device):
        yield lambda inputs: functional_call(model, tensors, (inputs,), tie_weights=False)


def run(
    model: nn.Module,
    state: Mapping[str, Tensor],
    batches: Iterable[Tensor],
    handles: Sequence[RemovableHandle],
    training: Collection[nn.Module] = (),
) -> None:
    """Send `batches` through the network for what its hooks see; then remove them, whatever happens.

    Args:
        model, state, training: as in `evaluating`.
        batches: inputs, on the device of `state`.
        handles: the hooks that were put on modules of `model`.
    """
    try:
        with evaluating(model, state, training) as network:
            for inputs in batches:
                with suppress(_Enough):
                    network(inputs)
    finally:
        for handle in handles:
            handle.remove()


class _Enough(Exception):
    """Nothing that comes later in this forward pass is needed."""


def end_after(module: nn.Module, calls: int) -> RemovableHandle:
    """Let `run` end every forward pass when `module` has been called `calls` times; a hook for its `handles`."""
    seen = itertools.count(1)

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if next(seen) % calls == 0:
            raise _Enough

    return module.register_forward_hook(hook)


def tie(model: nn.Module, state: Mapping[str, Tensor]) -> State:
    """Return `state` with the tensors of every shared layer under its first name copied to its other names."""
    first = {layer: name for name, layer in model.named_modules()}
    tied = dict(state)
    for name, layer in model.named_modules(remove_duplicate=False):
        for tensor in (*layer._parameters, *layer._buffers):
            known, alias = f"{first[layer]}.{tensor}", f"{name}.{tensor}"
            if alias != known and alias in state:
                tied[alias] = state[known].clone()
    return tied


@contextmanager
def _float32(device: torch.device) -> Iterator[None]:
    """Let float32 be float32: a barrier of 0.01 drowns in the rounding of bfloat16 or TF32."""
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        if device.type == "cuda":
            kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
            stack.enter_context(cudnn.flags(**kept, allow_tf32=False))
        yield
