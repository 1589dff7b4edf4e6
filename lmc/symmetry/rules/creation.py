"""Operators that make tensors: what is filled with one number has no order; everything else stays."""

from torch import fx

from lmc.symmetry import labels
from lmc.symmetry.rules.registry import Labels, Values, keep, overloads, rule, shape_of, still


@rule(
    *overloads("zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"),
    *overloads("scalar_tensor"),
)
def filled(values: Values, node: fx.Node) -> Labels:
    """All positions are the same: they can take each other's places, whatever the other dimensions do."""
    found: list[labels.Label] = []
    for n in shape_of(node):
        found.append(labels.free(n, [block for label in found for block in labels.blocks_of(label)]))
    return tuple(found)


@rule(*overloads("arange", "linspace", "empty", "empty_like", "eye", "tril_indices", "triu_indices"))
def _counted(values: Values, node: fx.Node) -> Labels:
    return still(node, shape_of(node))


@rule(*overloads("_assert_tensor_metadata", "_assert_async", "sym_size", "sym_numel", "sym_constrain_range"))
def _nothing(values: Values, node: fx.Node) -> Labels:
    return ()


@rule(*overloads("meshgrid"))
def _meshgrid(values: Values, node: fx.Node) -> list[Labels]:
    inputs = [values[used] for used in node.args[0]]  # type: ignore[union-attr]
    for value in inputs:
        keep(node, *value)
    return [still(node, result.shape) for result in node.meta["val"]]
