"""What `repair` and `rescale` share: pre-activations of a merged network brought back to those of its ends.

For every hidden layer y = W x + b, REPAIR (Jordan et al. 2023) asks that each channel of y have the mean
sum_i w_i mu_i and the standard deviation sum_i w_i sd_i, where (mu_i, sd_i) are those of end i and w its weights in
the merger. Both options correct y to gain * y + offset, channel by channel, and differ in the rule that gives gain
and offset. While the moments of a layer are taken, the layers before it are corrected with those of the batch, as the
original does (it inserts BatchNorm layers and runs them in training mode). At the end each correction is folded into W
and b with the moments pooled over all batches, which is exact: gain (W x + b) + offset = (gain W) x + gain b + offset.

Layers without a bias that are followed by a BatchNorm are covered by resetting it, in the same pass: BatchNorm's
output has by construction the mean `bias` and the deviation |`weight`|, in the ends and in the merged network, where
both are the interpolated ones. That is the goal of REPAIR, for what comes out of the normalisation.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmc.dataset.images import Dataset
from lmc.state import State, to_device
from lmc.statistics.base import Correction
from lmc.statistics.forward import run, tie
from lmc.statistics.moments import Calibrated, Calibration, Moments, Pool
from lmc.statistics.reset import batch_norms, running_statistics, watch
from lmc.symmetry.structure import Symmetry

log = logging.getLogger(__name__)

AFFINE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
CONSTANT = 1e-6
"""A channel whose deviation is below this part of its mean is constant but for the rounding of float32."""


@dataclass(frozen=True)
class Goal:
    """What the pre-activations of one layer are to look like: mean and standard deviation, each (C,) float64."""

    mean: Tensor
    deviation: Tensor


Rule = Callable[[Moments, Goal], tuple[Tensor, Tensor | None]]
"""(measured moments, goal) -> (gain, offset), each (C,) float64; an offset of None is 0 and needs no bias."""


def gain(measured: Moments, goal: Goal) -> Tensor:
    """Return (C,) goal deviation / measured deviation; 1 for a constant channel, which no factor can spread.

    The original adds BatchNorm's 1e-5 to the measured variance instead. Without it the correction of an end is the
    identity, however small its pre-activations are.
    """
    constant = measured.deviation <= CONSTANT * measured.mean.abs()
    return torch.where(constant, 1.0, goal.deviation / torch.where(constant, 1.0, measured.deviation))


def hidden_layers(model: nn.Module, symmetry: Symmetry, *, with_bias: bool) -> dict[str, nn.Module]:
    """Return the linear and convolutional layers whose outputs are hidden units, by name; `with_bias`: no others."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, AFFINE)
        and symmetry.is_hidden(f"{name}.weight", 0)
        and (layer.bias is not None or not with_bias)
    }


@dataclass(frozen=True, kw_only=True)
class Renormalisation(Calibrated, ABC):
    """A correction of every hidden layer by gain and offset; the options are its subclasses."""

    needs_bias: ClassVar[bool]
    """Whether layers without a bias are left out, because the rule has an offset."""

    @staticmethod
    @abstractmethod
    def rule(measured: Moments, goal: Goal) -> tuple[Tensor, Tensor | None]:
        """Return (gain, offset) of a layer, each (C,) float64; an offset of None is 0."""

    def bind(self, model: nn.Module, symmetry: Symmetry, ends: Sequence[State], dataset: Dataset) -> Correction:
        """Return the correction, after one pass over the images for every end; it makes one whenever it is called."""
        layers = hidden_layers(model, symmetry, with_bias=self.needs_bias)
        return bind(model, layers, ends, self.calibration(dataset), self.rule)


def bind(
    model: nn.Module, layers: Mapping[str, nn.Module], ends: Sequence[State], batches: Calibration, rule: Rule
) -> Correction:
    """Measure the pre-activations of `layers` in `ends`, one pass each, and return the correction of their mergers.

    Args:
        model: the architecture; put back as it was, also by the correction.
        layers: the layers to correct, by name.
        ends: the networks that are merged, as they are merged (aligned). They run in evaluation mode.
        batches: read once for every end and once for every correction.
        rule: gives each layer's gain and offset.
    """
    measured = [_preactivations(model, layers, end, batches) for end in ends] if layers else []
    seen = {name: layer for name, layer in layers.items() if all(name in pool for pool in measured)}
    if len(seen) < len(layers):
        log.warning("not corrected, as the network does not call them: %s", ", ".join(sorted(set(layers) - set(seen))))
    norms = batch_norms(model)
    if not seen and not norms:
        log.warning("nothing to correct: no hidden layer that qualifies and no BatchNorm; the network stays as merged")

    def correct(merged: State, weights: Sequence[float]) -> State:
        if len(weights) != len(ends):
            raise ValueError(f"{len(weights)} weights for the {len(ends)} networks that the correction is bound to")
        if not seen and not norms:
            return dict(merged)
        goals = {name: _goal([pool[name] for pool in measured], weights) for name in seen}
        return _corrected(model, seen, norms, to_device(merged, batches.device), batches, goals, rule)

    return correct


def _goal(ends: Sequence[Moments], weights: Sequence[float]) -> Goal:
    means, deviations = torch.stack([end.mean for end in ends]), torch.stack([end.deviation for end in ends])
    share = torch.tensor(weights, dtype=means.dtype, device=means.device)
    return Goal(share @ means, share @ deviations)


def _preactivations(model: nn.Module, layers: Mapping[str, nn.Module], end: State, batches: Calibration) -> Pool:
    leaving = Pool()
    handles = [layer.register_forward_hook(partial(_watch, leaving, name)) for name, layer in layers.items()]
    run(model, to_device(end, batches.device), batches, handles)
    return leaving


def _watch(leaving: Pool, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    leaving.add(name, Moments.of(output, _channels(layer)))


def _corrected(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    norms: Mapping[str, nn.Module],
    merged: State,
    batches: Calibration,
    goals: Mapping[str, Goal],
    rule: Rule,
) -> State:
    leaving, entering = Pool(), Pool()
    hooks = {name: partial(_watch_and_correct, leaving, name, goals[name], rule) for name in layers}
    handles = [layer.register_forward_hook(hooks[name]) for name, layer in layers.items()]
    run(model, merged, batches, [*handles, *watch(norms, entering)], training=norms.values())
    folded = {**merged, **running_statistics(entering, merged)}
    for name, moments in leaving.items():
        folded |= _fold(name, merged, *rule(moments, goals[name]))
    return tie(model, folded)


def _watch_and_correct(
    leaving: Pool,
    name: str,
    goal: Goal,
    rule: Rule,
    layer: nn.Module,
    inputs: tuple[Any, ...],
    output: Tensor,
) -> Tensor:
    moments = Moments.of(output, _channels(layer))
    leaving.add(name, moments)
    factor, offset = rule(moments, goal)
    shape = [1] * output.ndim
    shape[_channels(layer)] = -1
    corrected = output * factor.to(output).view(shape)
    return corrected if offset is None else corrected + offset.to(output).view(shape)


def _channels(layer: nn.Module) -> int:
    """The dimension of the layer's output that numbers its units."""
    return -1 if isinstance(layer, nn.Linear) else 1


def _fold(name: str, state: State, factor: Tensor, offset: Tensor | None) -> State:
    """The weight and bias of layer `name` with its correction inside; computed in float64, kept in their own type."""
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    folded = {f"{name}.weight": (weight.to(factor) * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight)}
    if bias is not None:
        moved = bias.to(factor) * factor
        folded[f"{name}.bias"] = (moved if offset is None else moved + offset).to(bias)
    return folded
