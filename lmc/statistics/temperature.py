"""Softmax temperature of the merged network: its logits divided by the scalar that minimises the training loss."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, of_model, to_device
from lmc.statistics.base import Correction, Statistics
from lmc.statistics.forward import evaluating, run, tie
from lmc.statistics.moments import Calibrated, wide
from lmc.statistics.renormalise import AFFINE
from lmc.symmetry.structure import Symmetry

log = logging.getLogger(__name__)

LOWEST, HIGHEST = 1e-3, 1e3
"""Where the search for a temperature ends; logits that are worse than guessing would have it grow without end."""


@dataclass(frozen=True, kw_only=True)
class Temperature(Calibrated):
    """Divide the merged network's logits by the T that minimises their mean cross-entropy (Guo et al. 2017).

    Averaged networks are less sure than their ends, so that a part of the loss barrier is one of calibration alone: Ito
    et al. (2025, arXiv 2510.08023) report wide networks to be linearly connected after it, without any permutation. No
    class that is predicted changes, hence no error. The networks at the ends are calibrated as all others, so their
    loss can fall too. The last layer, weight and bias, is multiplied by 1 / T; each T is logged.

    Cost: one pass of the merged network, and that of the correction before it. Memory: the logits of all images.

    The loss of a network that errs in no image falls without end as T does, so that no T minimises it: it is left as
    it is. Where it errs in a few, T is small and the test loss suffers; take images that it was not trained on
    (`split`) if networks fit their training images that well.

    Args:
        after: the correction that is made first: a network is calibrated as it is measured.
        split: whose images; `examples` counts those of it.
        augment: off here, unlike elsewhere: the loss that is to be least is that of a path, which has plain images.
    """

    after: Statistics
    split: Literal["train", "validation"] = "train"
    augment: bool = False

    def bind(self, model: nn.Module, symmetry: Symmetry, ends: Sequence[State], dataset: Dataset) -> Correction:
        """Return the correction.

        Raises:
            UserError: the outputs of the network are not those of a last layer that can be scaled, or the data set has
                no validation images though they are asked for.
        """
        if self.split == "validation" and not len(dataset.validation):
            raise UserError(
                f"data set {dataset.name} has no validation images to calibrate on; set statistics.split=train, or "
                "dataset.validation_size to how many training images are to be kept for it"
            )
        batches = self.calibration(dataset if self.split == "train" else replace(dataset, train=dataset.validation))
        last = last_layer(model, dataset.input_shape, batches.device)
        first = self.after.bind(model, symmetry, ends, dataset)

        def correct(merged: State, weights: Sequence[float]) -> State:
            state = to_device(first(merged, weights), batches.device)
            with evaluating(model, state) as network:
                seen = [(network(inputs), labels) for inputs, labels in batches.labelled()]
            temperature = fit_temperature(seen)
            log.info("temperature %.4g", temperature)
            scaled = {name: (wide(state[name]) / temperature).to(state[name]) for name in last}
            return tie(model, {**state, **scaled})

        return correct


def last_layer(model: nn.Module, input_shape: Sequence[int], device: torch.device) -> list[str]:
    """Return the tensors of `model` that its outputs are proportional to: weight and bias of the layer called last.

    That is proved by running: with both doubled, the outputs must double, to the bit.

    Args:
        model: the architecture; put back as it was.
        input_shape: of one input, without the batch dimension.
        device: where to run it.

    Raises:
        UserError: they do not double, as something else follows the layer or is added to it, or it is called twice; or
            another layer holds the same tensor.
    """
    draw = generator(0, "statistics", "temperature")
    inputs, state = torch.randn(2, *input_shape, generator=draw).to(device), to_device(of_model(model), device)
    for name, tensor in model.named_parameters():  # what is zero in a fresh network would add nothing
        state[name] = state[name] + 0.01 * torch.randn(tensor.shape, generator=draw).to(device)
    called: list[str] = []

    def note(name: str, layer: nn.Module, given: tuple[Any, ...]) -> None:
        called.append(name)

    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, AFFINE)}
    run(model, state, [inputs], [layer.register_forward_pre_hook(partial(note, n)) for n, layer in layers.items()])
    held = dict(layers[called[-1]].named_parameters(prefix=called[-1])) if called else {}
    tensors = [tensor for module in model.modules() for tensor in module.parameters(recurse=False)]
    tied = sum(tensor is own for tensor in tensors for own in held.values()) > len(held)
    outputs = []
    for scaled in (state, {**state, **{name: 2 * state[name] for name in held}}):
        with evaluating(model, scaled) as network:
            outputs.append(network(inputs))
    one_tensor = isinstance(outputs[0], Tensor)
    if tied or not (one_tensor and outputs[0].any() and torch.equal(outputs[1], 2 * outputs[0])):
        raise UserError(
            "statistics=temperature scales the last linear or convolutional layer, but the outputs of "
            f"{type(model).__name__} are not proportional to one that is used nowhere else"
            f"{f' ({called[-1]} is called last)' if called else ''}; choose another option of statistics"
        )
    return list(held)


def fit_temperature(seen: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the temperature, within [LOWEST, HIGHEST], that minimises the mean cross-entropy of logits.

    With b = 1 / T the loss mean_n (log sum_k exp(b z_nk) - b z_ny) is convex in b: its minimum is where the slope, the
    mean of E_p[z] - z_y, changes its sign. It is 1 for logits without an error, whose loss has no minimum, and for
    those that are not all finite, whose loss is NaN, whatever it is.

    Args:
        seen: batches of logits (B, K) and labels (B,) int64, at least one.
    """
    if not all(logits.isfinite().all() for logits, _ in seen):
        log.warning("logits are not finite, which no temperature mends; took 1")
        return 1.0
    if all((logits.amax(1) <= logits.gather(1, labels[:, None])[:, 0]).all() for logits, labels in seen):
        log.info("no image is classified wrongly, so that no temperature minimises the loss; took 1")
        return 1.0

    def slope(log_temperature: float) -> float:
        total = 0.0
        for logits, labels in seen:
            z = wide(logits)
            z = z - z.gather(1, labels.to(z.device)[:, None])
            total += float((torch.softmax(z / math.exp(log_temperature), 1) * z).sum())
        return total

    low, high = math.log(LOWEST), math.log(HIGHEST)
    if slope(low) <= 0 or slope(high) >= 0:  # the loss falls towards this end
        found = LOWEST if slope(low) <= 0 else HIGHEST
        log.warning("the loss has its minimum at no temperature between %g and %g; took %g", LOWEST, HIGHEST, found)
        return found
    return math.exp(brentq(slope, low, high, xtol=1e-12))
