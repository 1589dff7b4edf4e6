"""What `repair`, `rescale` and `reshift` share: pre-activations of a merged network brought back to those of its ends.

For every hidden layer y = W x + b, REPAIR (Jordan et al. 2023) asks that each channel of y have the mean
sum_i w_i mu_i and the standard deviation sum_i w_i sd_i, where (mu_i, sd_i) are those of end i and w its weights in
the merger. All options correct y to gain * y + offset, channel by channel, and differ in the rule that gives gain
and offset. Each correction is folded into W and b with the moments pooled over all batches, which is exact:
gain (W x + b) + offset = (gain W) x + gain b + offset.

What a layer is given while its moments are taken:
- by default, all layers are measured in one pass, in which the layers before it are corrected with the moments of the
  batch, as in the original (it inserts BatchNorm layers and runs them in training mode). With several batches the
  folded layers before it then differ a little from those it was measured behind;
- with `sequential`, the layers before it are folded already, and every BatchNorm before it has its new statistics (Qu
  and Horvath 2024): in the corrected network every layer has the moments of its goal, over all batches together.

Layers without a bias that are followed by a BatchNorm are covered by resetting it, in the same pass: BatchNorm's
output has by construction the mean `bias` and the deviation |`weight`|, in the ends and in the merged network, where
both are the interpolated ones. That is the goal of REPAIR, for what comes out of the normalisation.
"""

import itertools
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lmc.dataset.images import Dataset
from lmc.state import State, to_device
from lmc.statistics.base import Correction
from lmc.statistics.forward import end_after, run, tie
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


def normalised_layers(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    norms: Mapping[str, nn.Module],
    state: Mapping[str, Tensor],
    batches: Iterable[Tensor],
) -> set[str]:
    """Return those of `layers` whose output is, as it is, what one of `norms` is given; seen on two images."""
    outputs: dict[str, Tensor] = {}
    found: set[str] = set()

    def leaves(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        outputs[name] = output

    def enters(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        found.update(name for name, output in outputs.items() if output is inputs[0])

    handles = [layer.register_forward_hook(partial(leaves, name)) for name, layer in layers.items()]
    handles += [norm.register_forward_pre_hook(enters) for norm in norms.values()]
    run(model, state, (inputs[:2] for inputs in itertools.islice(batches, 1)), handles)
    return found


@dataclass(frozen=True, kw_only=True)
class Renormalisation(Calibrated, ABC):
    """A correction of every hidden layer by gain and offset; the options are its subclasses.

    Args:
        sequential: measure every layer, and every BatchNorm, behind the corrected ones before it, each in a pass of its
            own that ends at the layer. A correction then takes as many passes as there are such layers, of half a
            forward pass on average, instead of one whole pass; memory is the same.
    """

    sequential: bool = False

    needs_bias: ClassVar[bool]
    """Whether layers without a bias are left out, because the rule has an offset."""

    @staticmethod
    @abstractmethod
    def rule(measured: Moments, goal: Goal) -> tuple[Tensor, Tensor | None]:
        """Return (gain, offset) of a layer, each (C,) float64; an offset of None is 0."""

    def bind(self, model: nn.Module, symmetry: Symmetry, ends: Sequence[State], dataset: Dataset) -> Correction:
        """Return the correction, after one pass over the images for every end; it makes one whenever it is called."""
        layers = hidden_layers(model, symmetry, with_bias=self.needs_bias)
        return bind(model, layers, ends, self.calibration(dataset), self.rule, self.sequential)


def bind(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    ends: Sequence[State],
    batches: Calibration,
    rule: Rule,
    sequential: bool = False,
) -> Correction:
    """Measure the pre-activations of `layers` in `ends`, one pass each, and return the correction of their mergers.

    Args:
        model: the architecture; put back as it was, also by the correction.
        layers: the layers to correct, by name.
        ends: the networks that are merged, as they are merged (aligned). They run in evaluation mode.
        batches: read once for every end and once for every correction; if `sequential`, once for every layer and
            BatchNorm of a correction.
        rule: gives each layer's gain and offset.
        sequential: whether each layer is measured behind the corrected ones.
    """
    measured = [preactivations(model, layers, end, batches) for end in ends] if layers else []
    seen = {name: layer for name, layer in layers.items() if all(name in pool for pool in measured)}
    norms = batch_norms(model)
    say_what_stays(layers, seen, norms)

    def correct(merged: State, weights: Sequence[float]) -> State:
        check_weights(weights, ends)
        if not seen and not norms:
            return dict(merged)
        goals = {name: goal_of([pool[name] for pool in measured], weights) for name in seen}
        corrected = _corrected_in_turn if sequential else _corrected_at_once
        return tie(model, corrected(model, seen, norms, to_device(merged, batches.device), batches, goals, rule))

    return correct


def say_what_stays(
    layers: Mapping[str, nn.Module], seen: Mapping[str, nn.Module], norms: Mapping[str, nn.Module]
) -> None:
    """Warn of `layers` that are not called, hence not `seen`, and of a network in which nothing can be corrected."""
    if len(seen) < len(layers):
        log.warning("not corrected, as the network does not call them: %s", ", ".join(sorted(set(layers) - set(seen))))
    if not seen and not norms:
        log.warning("nothing to correct: no hidden layer that qualifies and no BatchNorm; the network stays as merged")


def check_weights(weights: Sequence[float], ends: Sequence[State]) -> None:
    """Raise a `ValueError` unless there is one weight for each of `ends`."""
    if len(weights) != len(ends):
        raise ValueError(f"{len(weights)} weights for the {len(ends)} networks that the correction is bound to")


def goal_of(ends: Sequence[Moments], weights: Sequence[float]) -> Goal:
    """Return the mean and the deviation that the merger of networks with the moments `ends` is to have."""
    means, deviations = torch.stack([end.mean for end in ends]), torch.stack([end.deviation for end in ends])
    share = torch.tensor(weights, dtype=means.dtype, device=means.device)
    return Goal(share @ means, share @ deviations)


def preactivations(
    model: nn.Module, layers: Mapping[str, nn.Module], state: State, batches: Calibration
) -> Pool[Moments]:
    """Return the moments of what leaves each of `layers` in the network `state`: one pass in evaluation mode."""
    leaving = Pool[Moments]()
    run(model, to_device(state, batches.device), batches, _watch_outputs(layers, leaving))
    return leaving


def _watch_outputs(layers: Mapping[str, nn.Module], leaving: Pool[Moments]) -> list[RemovableHandle]:
    return [layer.register_forward_hook(partial(_watch, leaving, name)) for name, layer in layers.items()]


def _watch(leaving: Pool[Moments], name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    leaving.add(name, Moments.of(output, channels(layer)))


def _corrected_in_turn(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    norms: Mapping[str, nn.Module],
    merged: State,
    batches: Calibration,
    goals: Mapping[str, Goal],
    rule: Rule,
) -> State:
    """Measure and fold one layer after the other, in the order in which the network calls them.

    A layer that is called several times is measured over all its calls at once, before it is corrected itself.
    """
    steps, state = {**layers, **norms}, dict(merged)
    for name, calls in _calls(model, steps, state, batches).items():
        pooled, chosen = Pool[Moments](), {name: steps[name]}
        handles = watch(chosen, pooled) if name in norms else _watch_outputs(chosen, pooled)
        run(model, state, batches, [*handles, end_after(steps[name], calls)])
        if name in norms:
            state |= running_statistics(pooled, state)
        else:
            state |= _fold(name, state, *rule(pooled[name], goals[name]))
    return state


def _calls(model: nn.Module, modules: Mapping[str, nn.Module], state: State, batches: Calibration) -> Mapping[str, int]:
    """How often the network calls each of `modules` in a forward pass, in the order of the first calls."""
    called: Counter[str] = Counter()

    def note(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        called[name] += 1

    handles = [module.register_forward_pre_hook(partial(note, name)) for name, module in modules.items()]
    run(model, state, itertools.islice(batches, 1), handles)
    return called


def _corrected_at_once(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    norms: Mapping[str, nn.Module],
    merged: State,
    batches: Calibration,
    goals: Mapping[str, Goal],
    rule: Rule,
) -> State:
    """Measure all layers in one pass, in which each is corrected by the moments of the batch; then fold."""
    leaving, entering = Pool[Moments](), Pool[Moments]()
    hooks = {name: partial(_watch_and_correct, leaving, name, goals[name], rule) for name in layers}
    handles = [layer.register_forward_hook(hooks[name]) for name, layer in layers.items()]
    run(model, merged, batches, [*handles, *watch(norms, entering)], training=norms.values())
    return folded(merged, leaving, entering, goals, rule)


def folded(
    merged: State,
    leaving: Mapping[str, Moments],
    entering: Mapping[str, Moments],
    goals: Mapping[str, Goal],
    rule: Rule,
) -> State:
    """Return `merged` with the corrections of its layers inside their tensors, and new BatchNorm statistics.

    Args:
        merged: the network.
        leaving: layer to the moments of its output in `merged`.
        entering: BatchNorm to the moments of its input behind the corrected layers.
        goals: layer to what its output is to look like.
        rule: gives gain and offset.
    """
    found = {**merged, **running_statistics(entering, merged)}
    for name, moments in leaving.items():
        found |= _fold(name, merged, *rule(moments, goals[name]))
    return found


def _watch_and_correct(
    leaving: Pool[Moments],
    name: str,
    goal: Goal,
    rule: Rule,
    layer: nn.Module,
    inputs: tuple[Any, ...],
    output: Tensor,
) -> Tensor:
    moments = Moments.of(output, channels(layer))
    leaving.add(name, moments)
    factor, offset = rule(moments, goal)
    shape = [1] * output.ndim
    shape[channels(layer)] = -1
    corrected = output * factor.to(output).view(shape)
    return corrected if offset is None else corrected + offset.to(output).view(shape)


def channels(layer: nn.Module) -> int:
    """Return the dimension of the layer's output that numbers its units."""
    return -1 if isinstance(layer, nn.Linear) else 1


def _fold(name: str, state: State, factor: Tensor, offset: Tensor | None) -> State:
    """The weight and bias of layer `name` with its correction inside; computed in float64, kept in their own type."""
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    found = {f"{name}.weight": (weight.to(factor) * factor.view(-1, *[1] * (weight.ndim - 1))).to(weight)}
    if bias is not None:
        moved = bias.to(factor) * factor
        found[f"{name}.bias"] = (moved if offset is None else moved + offset).to(bias)
    return found
