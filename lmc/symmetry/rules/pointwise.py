"""Operators that act on every position alike: their operands move together."""

from torch import fx

from lmc.symmetry import labels
from lmc.symmetry.rules.registry import (
    Labels,
    Unproved,
    Values,
    argument,
    aten,
    dimensions,
    join,
    keep,
    overloads,
    rule,
    shape_of,
    still,
)

NONLINEARITIES = (
    *("relu", "relu6", "gelu", "silu", "mish", "tanh", "sigmoid", "leaky_relu", "elu", "selu", "celu", "softplus"),
    *("hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "log_sigmoid", "threshold", "rrelu", "prelu"),
)
"""Operators whose inputs and outputs activation matching looks at."""

_OF_ONE = (
    *("clone", "contiguous", "detach", "alias", "lift_fresh_copy", "to", "_to_copy", "type_as", "positive"),
    *("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    *("neg", "exp", "expm1", "exp2", "log", "log2", "log10", "log1p", "abs", "sign", "sqrt", "rsqrt", "square"),
    *("reciprocal", "sin", "cos", "tan", "sinh", "cosh", "erf", "erfc", "erfinv", "floor", "ceil", "round", "trunc"),
    *("frac", "logical_not", "bitwise_not", "isnan", "isinf", "isfinite", "nan_to_num", "sinc", "logit", "fill"),
    *("softmax", "_softmax", "log_softmax", "_log_softmax", "zero"),
)

_OF_SEVERAL = (
    *("add", "sub", "rsub", "mul", "div", "true_divide", "floor_divide", "remainder", "fmod", "pow", "atan2", "copy"),
    *("maximum", "minimum", "fmax", "fmin", "eq", "ne", "lt", "le", "gt", "ge", "where", "masked_fill", "lerp"),
    *("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "addcmul", "addcdiv"),
    *("clamp", "clamp_min", "clamp_max", "__and__", "__or__", "xlogy"),
)


_OWN_RULE = frozenset(overloads("prelu"))


@rule(*(op for op in overloads(*_OF_ONE, *NONLINEARITIES) if op not in _OWN_RULE))
def one_operand(values: Values, node: fx.Node) -> Labels:
    """Act on every position alike (or normalise along a dimension, which commutes with permuting it)."""
    return values[node.args[0]]


@rule(*overloads(*_OF_SEVERAL), aten.max.other, aten.min.other)
def several_operands(values: Values, node: fx.Node) -> Labels:
    """Combine tensors position by position: dimensions are aligned from the right, and tied."""
    if str(node.target) == "aten.where.default":
        raise Unproved("where with one argument")
    operands = [values[used] for used in node.all_input_nodes]
    found = join(",".join(["..."] * len(operands)) + "->...", *operands)
    # An operand may be repeated (size one) in all of them, or have no dimensions at all.
    return (*still(node, shape_of(node)[: len(shape_of(node)) - len(found)]), *found)


@rule(aten._weight_norm.default)
def _weight_norm(values: Values, node: fx.Node) -> Labels:
    """A direction, and a length for each position of one dimension; the norm over the others knows no order."""
    return join("...,...->...", values[argument(node, "v")], values[argument(node, "g")])


@rule(*overloads("prelu"))
def _prelu(values: Values, node: fx.Node) -> Labels:
    x, slope = values[argument(node, "self")], values[argument(node, "weight")]
    if labels.size(slope[0]) > 1:
        join("nc,c->nc", x[:2], slope)
    return x


@rule(aten.glu.default)
def _glu(values: Values, node: fx.Node) -> Labels:
    """The first half of a dimension, gated by the second."""
    x = values[node.args[0]]
    dim = int(argument(node, "dim")) % len(x)
    half = labels.size(x[dim]) // 2
    (value, _), (gate, _) = labels.take(x[dim], 0, half), labels.take(x[dim], half, 2 * half)
    labels.tie(value, gate)
    return (*x[:dim], value, *x[dim + 1 :])


@rule(
    *overloads("cumsum", "cumprod", "flip", "sort", "argsort", "topk", "roll", "tril", "triu", "logcumsumexp", "diff")
)
def _in_order(values: Values, node: fx.Node) -> Labels | list[Labels]:
    """Act along dimensions whose order matters."""
    x = values[node.args[0]]
    name = "dims" if "flip" in str(node.target) or "roll" in str(node.target) else "dim"
    chosen = [len(x) - 2, len(x) - 1] if "tri" in str(node.target) else dimensions(node, name, len(x))
    keep(node, *(x[dim] for dim in chosen))
    results = node.meta["val"] if isinstance(node.meta["val"], (tuple, list)) else [node.meta["val"]]
    found = [
        tuple(still(node, [result.shape[d]])[0] if d in chosen else x[d] for d in range(len(x))) for result in results
    ]
    return found if isinstance(node.meta["val"], (tuple, list)) else found[0]
