"""How much of the ends' variance is left in each layer of a merged network, before and after its correction."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lmc.state import State, to_device
from lmc.statistics.moments import Calibration
from lmc.statistics.renormalise import (
    CONSTANT,
    check_weights,
    goal_of,
    hidden_layers,
    normalised_layers,
    preactivations,
)
from lmc.statistics.reset import batch_norms
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True)
class VarianceRatio:
    """What is left of the variance of one layer's pre-activations: 1 is all of it.

    Attributes:
        layer: name of the module whose output is measured.
        units: how many units were averaged: those that are not constant in all ends; at least one.
        before: mean over these units of variance / (sum_i w_i sd_i)^2 in the network as merged.
        after: the same in the corrected network.
    """

    layer: str
    units: int
    before: float
    after: float


def variance_ratios(
    model: nn.Module,
    symmetry: Symmetry,
    ends: Sequence[State],
    before: State,
    after: State,
    batches: Calibration,
    weights: Sequence[float] | None = None,
) -> list[VarianceRatio]:
    """Measure the collapse of the variance in a merged network, and what its correction did about it.

    For each unit k of a layer the ratio is Var(y_k) / (sum_i w_i sd_ik)^2: y is the layer's pre-activation in the
    merged network, sd_i its standard deviation in end i, both over all images and positions. The denominator is the
    goal of REPAIR (Jordan et al. 2023), so that the ratio is 1 where REPAIR or RESCALE did what they promise, and
    (1 + c) / 2 in the middle between two networks of equal deviations whose matched units have the correlation c and
    whose layer reads the network's input.

    Pre-activations are what leaves the hidden linear and convolutional layers; where that goes straight into a
    BatchNorm, what leaves the BatchNorm; and what leaves any other BatchNorm of hidden units. All networks run in
    evaluation mode: `before` with the running statistics that it has (interpolated, and stale), hence the output of
    a BatchNorm collapses in it, and `after` with those that the correction gave it.

    Cost: one pass of each network, and one of two images; nothing is kept but moments.

    Args:
        model: the architecture; put back as it was.
        symmetry: tells which layers are hidden.
        ends: the networks that were merged, as they were merged (aligned).
        before: the merger as interpolated.
        after: the same, corrected.
        batches: the images.
        weights: of the ends in the merger; None: equal ones.

    Returns:
        One entry for each such layer that the network calls, in the order of the first calls; a layer whose units are
        all constant in the ends has no ratio and is left out.
    """
    weights = [1 / len(ends)] * len(ends) if weights is None else weights
    check_weights(weights, ends)
    layers, norms = hidden_layers(model, symmetry, with_bias=False), batch_norms(model)
    hidden_norms = {name: norm for name, norm in norms.items() if symmetry.is_hidden(f"{name}.running_var")}
    inside = normalised_layers(model, layers, hidden_norms, to_device(before, batches.device), batches)
    seen_at = {**{name: layer for name, layer in layers.items() if name not in inside}, **hidden_norms}
    of_ends = [preactivations(model, seen_at, end, batches) for end in ends]
    of_before, of_after = (preactivations(model, seen_at, state, batches) for state in (before, after))
    found = []
    for name in of_before:
        goal = goal_of([pool[name] for pool in of_ends], weights)
        scale = torch.stack([pool[name].mean.abs() for pool in of_ends]).amax(0)
        varies = goal.deviation > CONSTANT * scale
        if varies.any():
            target = goal.deviation[varies].square()
            left = [float((pool[name].variance[varies] / target).mean()) for pool in (of_before, of_after)]
            found.append(VarianceRatio(name, int(varies.sum()), *left))
    return found
