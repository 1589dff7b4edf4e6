"""Operators that contract dimensions: linear layers, convolutions, matrix products, attention."""

from collections.abc import Iterator
from typing import Any

from torch import fx

from lmc.symmetry import labels
from lmc.symmetry.rules.registry import (
    KERNEL,
    Labels,
    Unproved,
    Values,
    argument,
    aten,
    join,
    keep,
    rule,
    shape_of,
    still,
)

_CONVOLUTIONS = [getattr(getattr(aten, f"conv{d}d"), way) for d in "123" for way in ("default", "padding")]
_TRANSPOSED_CONVOLUTIONS = [aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input]

CONTRACTIONS = frozenset(
    {
        *(aten.linear.default, aten.addmm.default, aten.matmul.default, aten.mm.default, aten.einsum.default),
        *_CONVOLUTIONS,
        *_TRANSPOSED_CONVOLUTIONS,
        *(aten.bmm.default, aten.bilinear.default, aten.scaled_dot_product_attention.default, aten.embedding.default),
    }
)
"""Operators at whose output units can be observed that pass through no nonlinearity."""


def summed_over(node: fx.Node) -> Iterator[tuple[fx.Node, int]]:
    """Yield the operands of a contraction, and their dimensions that are absent from the output."""
    if node.target not in _SUBSCRIPTS:
        return
    subscripts = _SUBSCRIPTS[node.target] or str(node.args[0]).replace(" ", "")
    operands = node.args[1] if node.target is aten.einsum.default else node.args
    terms, _, output = subscripts.partition("->")
    for term, operand in zip(terms.split(","), operands, strict=False):  # type: ignore[arg-type]
        if isinstance(operand, fx.Node) and (rank := len(shape_of(operand))):
            letters = term.replace("...", "." * (rank - len(term.replace("...", ""))))
            yield from ((operand, dim) for dim, c in enumerate(letters[:rank]) if c != "." and c not in output)


_SUBSCRIPTS: dict[Any, str] = {
    aten.linear.default: "...i,oi,o->...o",
    aten.bilinear.default: "...i,...j,oij,o->...o",
    aten.matmul.default: "...ij,...jk->...ik",
    aten.mm.default: "ij,jk->ik",
    aten.bmm.default: "bij,bjk->bik",
    aten.addmm.default: "...ik,ij,jk->...ik",
    aten.baddbmm.default: "...ik,bij,bjk->...ik",
    aten.einsum.default: "",  # its own
    **{
        getattr(getattr(aten, f"conv{d}d"), way): "nc...,oc...,o->no..."
        for d in "123"
        for way in ("default", "padding")
    },
    **dict.fromkeys(
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
        "nc...,co...,o->no...",
    ),
}
"""How the operands of contractions meet; of a convolution, what "..." stands for is space."""


@rule(aten.linear.default)
def _linear(values: Values, node: fx.Node) -> Labels:
    x, weight, bias = (values[argument(node, name)] for name in ("input", "weight", "bias"))
    return join("...i,oi,o->...o", x, weight, bias)


@rule(aten.bilinear.default)
def _bilinear(values: Values, node: fx.Node) -> Labels:
    one, two, weight, bias = (values[argument(node, name)] for name in ("input1", "input2", "weight", "bias"))
    return join("...i,...j,oij,o->...o", one, two, weight, bias)


@rule(aten.outer.default)
def _outer_product(values: Values, node: fx.Node) -> Labels:
    return join("i,j->ij", values[node.args[0]], values[node.args[1]])


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def _matrix_product(values: Values, node: fx.Node) -> Labels:
    one, two = values[node.args[0]], values[node.args[1]]
    if len(two) == 1:
        return join("...j,j->...", one, two)
    return join("j,...jk->...k" if len(one) == 1 else "...ij,...jk->...ik", one, two)


@rule(aten.addmm.default, aten.baddbmm.default)
def _matrix_product_and_sum(values: Values, node: fx.Node) -> Labels:
    added, one, two = (values[node.args[place]] for place in range(3))
    return join("...,...->...", added, join("...ij,...jk->...ik", one, two))


@rule(aten.einsum.default)
def _einsum(values: Values, node: fx.Node) -> Labels:
    equation = str(node.args[0]).replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    if any("..." in term and not term.startswith("...") for term in (*inputs.split(","), output)):
        raise Unproved(f"einsum {equation!r} with '...' behind letters")
    if any(len(set(term.replace("...", ""))) != len(term.replace("...", "")) for term in inputs.split(",")):
        raise Unproved(f"einsum {equation!r} with a letter twice in one term")
    if not arrow:
        letters = sorted(set(inputs.replace("...", "").replace(",", "")))
        output = ("..." if "..." in inputs else "") + "".join(c for c in letters if inputs.count(c) == 1)
    return join(f"{inputs}->{output}", *(values[operand] for operand in node.args[1]))  # type: ignore[union-attr]


@rule(*_CONVOLUTIONS)
def _convolution(values: Values, node: fx.Node) -> Labels:
    """Input (N, C, *space), weight (O, C / groups, *kernel): channels move, positions stay."""
    x, weight, bias = (values[argument(node, name)] for name in ("input", "weight", "bias"))
    labels_out = _channels(x, weight[0], weight[1], bias, int(argument(node, "groups")))
    return _with_space(node, x, weight, labels_out)


@rule(*_TRANSPOSED_CONVOLUTIONS)
def _transposed_convolution(values: Values, node: fx.Node) -> Labels:
    """Input (N, C, *space), weight (C, O / groups, *kernel)."""
    x, weight, bias = (values[argument(node, name)] for name in ("input", "weight", "bias"))
    groups = int(argument(node, "groups"))
    if groups == 1:
        out = join("nc,co,o->no", x[:2], weight[:2], bias)[1]
    else:
        parts = [groups, labels.size(x[1]) // groups]
        from_group = (*labels.split(weight[0], parts), weight[1])
        out = labels.product(join("gc,gco->go", tuple(labels.split(x[1], parts)), from_group))
        join("o,o->o", (out,), bias)
    return _with_space(node, x, weight, out)


def _channels(x: Labels, out: labels.Label, inside: labels.Label, bias: Labels, groups: int) -> labels.Label:
    """The output channels of a convolution; in groups, each group's channels are those of its own input channels."""
    if groups == 1:
        return join("nc,oc,o->no", x[:2], (out, inside), bias)[1]
    group, each = labels.split(x[1], [groups, labels.size(x[1]) // groups])
    to_group, to_each = labels.split(out, [groups, labels.size(out) // groups])
    join("gc,goc->go", (group, each), (to_group, to_each, inside))
    if bias:
        labels.tie(out, bias[0])
    return out


def _with_space(node: fx.Node, x: Labels, weight: Labels, out: labels.Label) -> Labels:
    if len(x) != len(weight):
        raise Unproved("a convolution without a batch dimension")
    keep(node, *x[2:])
    for label in weight[2:]:
        labels.fix(label, KERNEL)
    return (x[0], out, *still(node, shape_of(node)[2:]))


@rule(aten.scaled_dot_product_attention.default)
def _attention(values: Values, node: fx.Node) -> Labels:
    """Query (..., H, L, E), key (..., H, S, E), value (..., H, S, V), mask broadcast to (..., H, L, S).

    With grouped-query heads the query's heads are the product of the key's heads and of those that share one.
    """
    query, key, value, mask = (values[argument(node, name)] for name in ("query", "key", "value", "attn_mask"))
    if argument(node, "is_causal"):
        keep(node, query[-2], key[-2])
    if len(query) < 3 or labels.size(query[-3]) == labels.size(key[-3]) or not argument(node, "enable_gqa"):
        return join("...le,...se,...sv,...ls->...lv", query, key, value, mask)
    heads = labels.size(key[-3])
    shared, each = labels.split(query[-3], [heads, labels.size(query[-3]) // heads])
    if mask:
        labels.tie(query[-3], mask[-3]) if labels.size(mask[-3]) > 1 else None
        join("ls,ls->ls", (query[-2], key[-2]), mask[-2:])
    join("...grle,...gse,...gsv->...grlv", (*query[:-3], shared, each, *query[-2:]), key, value)
    return (*query[:-1], value[-1])
