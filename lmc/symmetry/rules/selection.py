"""Operators that take parts: slices, chunks, elements, rows by index, embeddings."""

import operator

from torch import fx

from lmc.symmetry import labels
from lmc.symmetry.rules.registry import (
    Labels,
    Unproved,
    Values,
    argument,
    aten,
    join,
    keep,
    overloads,
    rule,
    shape_of,
    still,
)


def _part(x: Labels, dim: int, start: int, stop: int) -> Labels:
    """The positions from `start` to `stop` of dimension `dim`; what depends on them is what it is there."""
    chosen, where = labels.take(x[dim], start, stop)
    return tuple(chosen if d == dim else labels.at(label, where) for d, label in enumerate(x))


@rule(operator.getitem)
def _getitem(values: Values, node: fx.Node) -> Labels:
    return values.output(node.args[0], int(node.args[1]))  # type: ignore[arg-type]


@rule(aten.slice.Tensor)
def _slice(values: Values, node: fx.Node) -> Labels:
    x = values[node.args[0]]
    dim = int(argument(node, "dim")) % len(x)
    size, step = labels.size(x[dim]), int(argument(node, "step"))
    start, stop, _ = slice(argument(node, "start"), argument(node, "end")).indices(size)
    if step == 1:
        return _part(x, dim, start, max(start, stop)) if stop > start else _without(node, x, dim)
    keep(node, x[dim])
    return (*x[:dim], *still(node, [shape_of(node)[dim]]), *x[dim + 1 :])


def _without(node: fx.Node, x: Labels, dim: int) -> Labels:
    """A slice of no positions at all."""
    return (*x[:dim], *still(node, [0]), *x[dim + 1 :])


@rule(aten.narrow.default)
def _narrow(values: Values, node: fx.Node) -> Labels:
    x = values[node.args[0]]
    start = int(argument(node, "start"))
    return _part(x, int(argument(node, "dim")) % len(x), start, start + int(argument(node, "length")))


@rule(aten.select.int)
def _select(values: Values, node: fx.Node) -> Labels:
    x = values[node.args[0]]
    dim = int(argument(node, "dim")) % len(x)
    index = int(argument(node, "index")) % labels.size(x[dim])
    found = _part(x, dim, index, index + 1)
    return (*found[:dim], *found[dim + 1 :])


@rule(*overloads("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "unsafe_split", "unsafe_chunk"))
def _split(values: Values, node: fx.Node) -> list[Labels]:
    """Parts of a dimension, of the sizes that came out."""
    x, unbound = values[node.args[0]], "unbind" in str(node.target)
    dim = int(argument(node, "dim", 0)) % len(x)
    found, start = [], 0
    for part in node.meta["val"]:
        stop = start + (1 if unbound else int(part.shape[dim]))
        taken = _part(x, dim, start, stop)
        found.append((*taken[:dim], *taken[dim + 1 :]) if unbound else taken)
        start = stop
    return found


@rule(aten.index.Tensor)
def _index(values: Values, node: fx.Node) -> Labels:
    """Rows by index (a table of relative positions): the indexed dimensions stay, the others move on."""
    x, indices = values[node.args[0]], list(node.args[1])  # type: ignore[arg-type]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if any(getattr(i.meta["val"], "dtype", None) is not None and not _is_integer(i) for i in indices if i is not None):
        raise Unproved("an index by a mask")
    keep(node, *(x[dim] for dim in dims))
    chosen = [values[indices[dim]] for dim in dims]
    placed = join(",".join(["..."] * len(chosen)) + "->...", *chosen) if any(chosen) else ()
    rest = [label for dim, label in enumerate(x) if dim not in dims]
    together = dims == list(range(dims[0], dims[0] + len(dims)))
    first = dims[0] if together else 0
    return (*rest[:first], *placed, *rest[first:])


def _is_integer(node: fx.Node) -> bool:
    dtype = node.meta["val"].dtype
    return not dtype.is_floating_point and str(dtype) != "torch.bool"


@rule(aten.index_select.default)
def _index_select(values: Values, node: fx.Node) -> Labels:
    x, index = values[node.args[0]], values[argument(node, "index")]
    dim = int(argument(node, "dim")) % len(x)
    keep(node, x[dim])
    return (*x[:dim], *index, *x[dim + 1 :])


@rule(aten.gather.default)
def _gather(values: Values, node: fx.Node) -> Labels:
    """Positions of one dimension, chosen by those of the others."""
    x, index = values[node.args[0]], values[argument(node, "index")]
    dim = int(argument(node, "dim")) % len(x)
    keep(node, x[dim])
    for place, (one, two) in enumerate(zip(x, index, strict=True)):
        if place != dim and labels.size(one) == labels.size(two):
            labels.tie(one, two)
        elif place != dim:
            keep(node, one, two)
    return index


@rule(aten.embedding.default)
def _embedding(values: Values, node: fx.Node) -> Labels:
    """One row of the table (entries, features) for each index: the entries stay, the features move."""
    weight, index = values[argument(node, "weight")], values[argument(node, "indices")]
    keep(node, weight[0])
    return (*index, weight[1])


@rule(aten.one_hot.default)
def _one_hot(values: Values, node: fx.Node) -> Labels:
    return (*values[node.args[0]], *still(node, shape_of(node)[-1:]))
