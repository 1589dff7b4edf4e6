"""BatchNorm statistics of the merged network, recomputed from the data."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from lmc.dataset.images import Dataset
from lmc.state import State, to_device
from lmc.statistics.base import Correction
from lmc.statistics.forward import run, tie
from lmc.statistics.moments import Calibrated, Moments, Pool
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True, kw_only=True)
class Reset(Calibrated):
    """Recompute the running statistics of every BatchNorm of the merged network over the training images.

    The average of two networks' running statistics is not that of the averaged network (Jordan et al. 2023). A network
    without BatchNorm stays as it is.
    """

    def bind(self, model: nn.Module, symmetry: Symmetry, ends: Sequence[State], dataset: Dataset) -> Correction:
        """Return the correction; it makes one pass over the images whenever it is called."""
        batches = self.calibration(dataset)
        return lambda merged, weights: recompute(model, to_device(merged, batches.device), batches)


def recompute(model: nn.Module, state: Mapping[str, Tensor], batches: Iterable[Tensor]) -> State:
    """Return `state` with the running statistics that its BatchNorm layers have over all of `batches` together.

    The mean and the variance are pooled over every example and position. The variance is the unbiased one (divided
    by count - 1), which is what BatchNorm stores; for one batch the result is that of a BatchNorm in training mode
    with `momentum=None`.

    Args:
        model: the architecture; put back as it was.
        state: its tensors.
        batches: (B, ...) float32 inputs on the device of `state`; not read if there is no BatchNorm.
    """
    norms = batch_norms(model)
    if not norms:
        return dict(state)
    entering = Pool[Moments]()
    run(model, state, batches, watch(norms, entering), training=norms.values())
    return tie(model, {**state, **running_statistics(entering, state)})


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers of `model` that keep running statistics, by name."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}
    return {name: layer for name, layer in layers.items() if layer.running_mean is not None}


def watch(norms: Mapping[str, nn.Module], entering: Pool[Moments]) -> list[RemovableHandle]:
    """Pool in `entering`, at every forward pass, the moments of what enters each of `norms` (channels: dimension 1)."""
    return [layer.register_forward_pre_hook(partial(_watch, entering, name)) for name, layer in norms.items()]


def _watch(entering: Pool[Moments], name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
    entering.add(name, Moments.of(inputs[0], 1))


def running_statistics(pooled: Mapping[str, Moments], state: Mapping[str, Tensor]) -> State:
    """Return the BatchNorm buffers that hold `pooled`, in the types and on the devices of those in `state`."""
    found: State = {}
    for name, moments in pooled.items():
        mean, variance = f"{name}.running_mean", f"{name}.running_var"
        found[mean] = torch.empty_like(state[mean]).copy_(moments.mean)
        found[variance] = torch.empty_like(state[variance]).copy_(moments.squares / (moments.count - 1))
    return found
