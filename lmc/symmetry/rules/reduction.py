"""Operators that reduce dimensions or positions: sums, means, extrema, pooling, interpolation."""

from torch import fx

from lmc.symmetry.rules.registry import (
    Labels,
    Values,
    argument,
    aten,
    dimensions,
    keep,
    operator_name,
    overloads,
    rule,
    shape_of,
    still,
)

_REDUCTIONS = (
    *("mean", "sum", "nansum", "amax", "amin", "prod", "logsumexp", "std", "var", "any", "all"),
    *("linalg_vector_norm", "norm", "count_nonzero", "max", "min", "var_mean", "std_mean"),
)
_POOLS = [
    *(getattr(aten, f"{kind}_pool{d}d").default for kind in ("max", "avg", "adaptive_avg") for d in "123"),
    *(getattr(aten, f"adaptive_max_pool{d}d").default for d in "123"),
    *(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default),
]


def _is_reduction(operator: object) -> bool:
    """Not the forms of max and min that compare two tensors, or that name the dimension."""
    return not str(operator).endswith((".other", ".binary", "_", ".names_dim", ".dimname"))


@rule(*(op for op in overloads(*_REDUCTIONS) if _is_reduction(op)))
def _reduce(values: Values, node: fx.Node) -> Labels | list[Labels]:
    """Sum, mean and extrema over dimensions do not depend on the order in them."""
    x = values[node.args[0]]
    named = any(entry.name == "dim" for entry in node.target._schema.arguments)  # type: ignore[union-attr]
    gone = dimensions(node, "dim", len(x)) if named else list(range(len(x)))
    if named and argument(node, "keepdim"):
        found = tuple(still(node, [1])[0] if dim in gone else label for dim, label in enumerate(x))
    else:
        found = tuple(label for dim, label in enumerate(x) if dim not in gone)
    if isinstance(node.meta["val"], (tuple, list)):
        if operator_name(node) in ("max", "min"):  # they say where the extremum lies
            keep(node, *(x[dim] for dim in gone))
        return [found] * len(node.meta["val"])
    return found


@rule(*(op for op in overloads("argmax", "argmin") if "out" not in str(op)))
def _where_extreme(values: Values, node: fx.Node) -> Labels:
    """The position of an extremum: it depends on the order."""
    x = values[node.args[0]]
    gone = dimensions(node, "dim", len(x))
    keep(node, *(x[dim] for dim in gone))
    if argument(node, "keepdim"):
        return tuple(still(node, [1])[0] if dim in gone else label for dim, label in enumerate(x))
    return tuple(label for dim, label in enumerate(x) if dim not in gone)


@rule(*_POOLS)
def _pool(values: Values, node: fx.Node) -> Labels | list[Labels]:
    """Pool over the positions of (*, C, *space); only the pooled dimensions must stay."""
    x = values[node.args[0]]
    rank = int(str(node.target).partition("pool")[2][0])  # the d in max_pool2d
    keep(node, *x[-rank:])
    if isinstance(node.meta["val"], (tuple, list)):
        return [(*x[:-rank], *still(node, result.shape[-rank:])) for result in node.meta["val"]]
    return (*x[:-rank], *still(node, shape_of(node)[-rank:]))


@rule(
    *overloads(*(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d"))),
    *overloads("upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
    *overloads("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "grid_sampler"),
)
def _interpolate(values: Values, node: fx.Node) -> Labels:
    """Resample the positions of (N, C, *space)."""
    x = values[node.args[0]]
    keep(node, *x[2:])
    for other in node.all_input_nodes[1:]:
        keep(node, *values[other])
    return (*x[:2], *still(node, shape_of(node)[2:]))
