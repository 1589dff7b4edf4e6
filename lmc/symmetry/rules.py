"""One small rule per ATen operator: which dimensions of its inputs and of its output move together.

A rule is handed the graph's node and a `Values` that knows the labels of the node's inputs. It ties what must move
together, fixes what may not move, and returns the labels of the output, one per dimension. A rule may be too strict;
it must never be too lenient: for every assignment of permutations to blocks that respects its ties, permuting the
inputs must permute the output accordingly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from lmc.symmetry import labels
from lmc.symmetry.labels import Label

Labels = tuple[Label, ...]
Rule = Callable[["Values", fx.Node], Labels]

RULES: dict[Any, Rule] = {}
aten = torch.ops.aten


class Unproved(Exception):
    """A rule knows the operator, but not this use of it; it is treated as an operator without a rule."""


class Values:
    """The labels of every value of a graph that has been seen so far."""

    def __init__(self) -> None:
        self._labels: dict[fx.Node, Labels] = {}

    def __setitem__(self, node: fx.Node, value: Labels) -> None:
        shape = shape_of(node)
        if [labels.size(label) for label in value] != list(shape):
            raise ValueError(f"the rule of {node.target} returned labels that do not have the shape {tuple(shape)}")
        self._labels[node] = value

    def __getitem__(self, node: fx.Node) -> Labels:
        return self._labels[node]

    def __contains__(self, node: object) -> bool:
        return node in self._labels


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register a function as the rule of `operators`."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"{operator} has a rule already")
            RULES[operator] = function
        return function

    return register


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of the tensor that `node` computes; () for several tensors or none."""
    value = node.meta.get("val")
    return tuple(int(n) for n in value.shape) if isinstance(value, torch.Tensor) else ()


def argument(node: fx.Node, name: str, default: Any = None) -> Any:
    """Return an argument of `node` by its name in the operator's schema, or the schema's default, or `default`."""
    for position, entry in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]  # an OpOverload
        if entry.name == name:
            if position < len(node.args):
                return node.args[position]
            return node.kwargs.get(name, entry.default_value if entry.has_default_value() else default)
    return default


def dimensions(node: fx.Node, name: str, rank: int) -> list[int]:
    """Return the argument `name` as a list of non-negative dimensions; None and [] mean all."""
    chosen = argument(node, name)
    if chosen is None or chosen == []:
        return list(range(rank))
    return [int(d) % rank for d in (chosen if isinstance(chosen, Sequence) else [chosen])]


def unknown(values: Values, node: fx.Node) -> None:
    """Fix everything an operator touches: what nothing is known about cannot be proved movable."""
    for used in node.all_input_nodes:
        for label in values[used]:
            labels.fix(label)
    values[node] = tuple(labels.fixed(n) for n in shape_of(node))


# Pointwise operators -------------------------------------------------------------------------------------------------

NONLINEARITIES = (
    aten.relu,
    aten.relu6,
    aten.gelu,
    aten.silu,
    aten.mish,
    aten.tanh,
    aten.sigmoid,
    aten.leaky_relu,
    aten.elu,
    aten.selu,
    aten.celu,
    aten.softplus,
    aten.hardtanh,
    aten.hardswish,
    aten.hardsigmoid,
)

_UNCHANGED = (
    *(aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default, aten.dropout.default),
    *(aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten._to_copy.default, aten.feature_dropout.default),
    *(aten.neg.default, aten.exp.default, aten.log.default, aten.abs.default, aten.sqrt.default, aten.rsqrt.default),
    *(aten.square.default, aten.reciprocal.default, aten.sin.default, aten.cos.default, aten.erf.default),
    *(aten.clamp.default, aten.clamp_min.default, aten.pow.Tensor_Scalar),
    *(aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default),
)


def overloads(packet: Any) -> list[Any]:
    """Return every overload of an operator and of its in-place twin, where there is one."""
    twin = getattr(aten, f"{packet.__name__}_", None)
    return [
        getattr(op, name) for op in (packet, twin) if op is not None for name in op.overloads() if "out" not in name
    ]


@rule(*_UNCHANGED, *(op for packet in NONLINEARITIES for op in overloads(packet)))
def _unchanged(values: Values, node: fx.Node) -> Labels:
    """Acts on every position alike (or normalises along a dimension, which commutes with permuting it)."""
    return values[node.args[0]]  # type: ignore[index]


@rule(*(op for packet in (aten.add, aten.sub, aten.mul, aten.div) for op in overloads(packet)))
def _broadcast(values: Values, node: fx.Node) -> Labels:
    """Combine two tensors position by position: dimensions are aligned from the right and tied."""
    shape = shape_of(node)
    out: list[Label | None] = [None] * len(shape)
    for operand in node.args[:2]:
        if not isinstance(operand, fx.Node):
            continue
        offset = len(shape) - len(values[operand])
        for dim, label in enumerate(values[operand], offset):
            if labels.size(label) != shape[dim]:
                continue  # a dimension of size one, repeated
            before = out[dim]
            if before is None:
                out[dim] = label
            else:
                labels.tie(before, label)
    return tuple(label if label is not None else labels.fixed(n) for label, n in zip(out, shape, strict=True))


# Layers --------------------------------------------------------------------------------------------------------------


@rule(aten.linear.default)
def _linear(values: Values, node: fx.Node) -> Labels:
    x, weight, bias = (_labels(values, argument(node, name)) for name in ("input", "weight", "bias"))
    labels.tie(x[-1], weight[-1])
    if bias:
        labels.tie(bias[0], weight[0])
    return (*x[:-1], *weight[:-1])


@rule(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def _convolution(values: Values, node: fx.Node) -> Labels:
    """Input (N, C, *space), weight (O, C / groups, *space): channels move, positions stay.

    A depthwise convolution works on each channel apart, so its output channels move with its input channels.
    """
    x, weight, bias = (_labels(values, argument(node, name)) for name in ("input", "weight", "bias"))
    groups = int(argument(node, "groups"))
    if groups != 1 and not groups == labels.size(x[1]) == labels.size(weight[0]):
        raise Unproved("a convolution in groups of several channels")
    for label in (*x[2:], *weight[2:]):
        labels.fix(label)
    labels.tie(x[1], weight[1] if groups == 1 else weight[0])
    if bias:
        labels.tie(bias[0], weight[0])
    return (x[0], weight[0], *(labels.fixed(n) for n in shape_of(node)[2:]))


@rule(aten.batch_norm.default)
def _batch_norm(values: Values, node: fx.Node) -> Labels:
    x = _labels(values, argument(node, "input"))
    for name in ("weight", "bias", "running_mean", "running_var"):
        for label in _labels(values, argument(node, name)):
            labels.tie(x[1], label)
    return x


@rule(aten.layer_norm.default)
def _layer_norm(values: Values, node: fx.Node) -> Labels:
    """Mean and variance over the last dimensions do not depend on the order in them; scale and shift move along."""
    x = _labels(values, argument(node, "input"))
    for name in ("weight", "bias"):
        parameter = _labels(values, argument(node, name))
        for mine, theirs in zip(x[len(x) - len(parameter) :], parameter, strict=True):
            labels.tie(mine, theirs)
    return x


# Pooling and reductions ----------------------------------------------------------------------------------------------


@rule(
    *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default),
    *(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default),
    *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default),
)
def _pool(values: Values, node: fx.Node) -> Labels:
    """Pool over the positions of (*, C, *space); only the pooled dimensions must stay."""
    x, shape = _labels(values, node.args[0]), shape_of(node)
    rank = int(node.target._schema.name[-2])  # type: ignore[union-attr]  # the d in max_pool2d
    for label in x[-rank:]:
        labels.fix(label)
    return (*x[:-rank], *(labels.fixed(n) for n in shape[-rank:]))


@rule(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default)
def _reduce(values: Values, node: fx.Node) -> Labels:
    """Sum, mean and extrema over a dimension do not depend on the order in it."""
    x = _labels(values, node.args[0])
    gone = dimensions(node, "dim", len(x))
    if argument(node, "keepdim"):
        return tuple(labels.fixed(1) if dim in gone else label for dim, label in enumerate(x))
    return tuple(label for dim, label in enumerate(x) if dim not in gone)


# Shapes --------------------------------------------------------------------------------------------------------------


@rule(
    *(aten.flatten.using_ints, aten.view.default, aten.reshape.default, aten._unsafe_view.default),
    *(aten.unflatten.int, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default),
)
def _reshape(values: Values, node: fx.Node) -> Labels:
    """Match runs of old and new dimensions with equal products; flatten each run, then cut it as the new shape asks."""
    old = [label for label in _labels(values, node.args[0]) if labels.size(label) > 1]
    new = [n for n in shape_of(node) if n > 1]
    found: list[Label] = []
    while old or new:
        run, sizes = [old.pop(0)], [new.pop(0)]
        have, want = labels.size(run[0]), sizes[0]
        while have != want:
            if have < want:
                run.append(old.pop(0))
                have *= labels.size(run[-1])
            else:
                sizes.append(new.pop(0))
                want *= sizes[-1]
        whole = run[0] if len(run) == 1 else labels.product(run)
        found += [whole] if len(sizes) == 1 else labels.split(whole, sizes)
    remaining = iter(found)
    return tuple(labels.fixed(1) if n == 1 else next(remaining) for n in shape_of(node))


@rule(aten.permute.default)
def _permute(values: Values, node: fx.Node) -> Labels:
    x = _labels(values, node.args[0])
    return tuple(x[dim] for dim in dimensions(node, "dims", len(x)))


@rule(aten.transpose.int)
def _transpose(values: Values, node: fx.Node) -> Labels:
    x = list(_labels(values, node.args[0]))
    one, two = (int(argument(node, name)) % len(x) for name in ("dim0", "dim1"))
    x[one], x[two] = x[two], x[one]
    return tuple(x)


@rule(aten.cat.default)
def _cat(values: Values, node: fx.Node) -> Labels:
    parts = [values[part] for part in node.args[0]]  # type: ignore[union-attr, index]
    along = int(argument(node, "dim")) % len(parts[0])
    for part in parts[1:]:
        for dim, label in enumerate(part):
            if dim != along:
                labels.tie(parts[0][dim], label)
    joined = tuple(segment for part in parts for segment in part[along])
    return tuple(joined if dim == along else label for dim, label in enumerate(parts[0]))


def _labels(values: Values, node: Any) -> Labels:
    """The labels of an optional tensor argument; none for an absent one."""
    return values[node] if isinstance(node, fx.Node) else ()
