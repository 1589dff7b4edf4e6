"""Normalisation layers: statistics do not depend on the order, scale and shift move along."""

from torch import fx

from lmc.symmetry import labels
from lmc.symmetry.rules.registry import Labels, Values, argument, aten, join, overloads, rule


@rule(aten.batch_norm.default, aten.instance_norm.default)
def _by_channel(values: Values, node: fx.Node) -> Labels:
    x = values[argument(node, "input")]
    for name in ("weight", "bias", "running_mean", "running_var"):
        join("nc,c->nc", x[:2], values[argument(node, name)])
    return x


@rule(aten._native_batch_norm_legit_no_training.default, aten.cudnn_batch_norm.default)
def _by_channel_with_statistics(values: Values, node: fx.Node) -> list[Labels]:
    x = _by_channel(values, node)
    assert isinstance(x, tuple)
    return [x, (), ()]


@rule(*overloads("layer_norm", "rms_norm", "_fused_rms_norm"))
def _over_last_dimensions(values: Values, node: fx.Node) -> Labels:
    """Mean and variance over the last dimensions; their scale and shift have just these."""
    x = values[argument(node, "input")]
    for name in ("weight", "bias"):
        parameter = values[argument(node, name)]
        join("...,...->...", x[len(x) - len(parameter) :], parameter)
    return x


@rule(aten.group_norm.default)
def _by_group(values: Values, node: fx.Node) -> Labels:
    """Groups of channels are normalised together: they move as blocks, and the channels inside them."""
    x, groups = values[argument(node, "input")], int(argument(node, "num_groups"))
    labels.split(x[1], [groups, labels.size(x[1]) // groups])
    for name in ("weight", "bias"):
        join("nc,c->nc", x[:2], values[argument(node, name)])
    return x
