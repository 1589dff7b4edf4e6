"""Finds the residual streams of a network: groups that are normalised by vectors and, but for this, used linearly.

The graph is read once for each group. A value is *linear* in the stream if an orthogonal map of the stream maps it
alike: sums of what layers write, their selections and means over tokens, and what a norm without scale makes of them.
What a norm scales and shifts is linear once the scale and the shift have been moved into the layers that read it; it
may be read by layers alone. Whatever else is done to a stream is an obstacle, and the operator is named.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import fx

from lmc.symmetry.labels import Block
from lmc.symmetry.layout import Inexpressible, axis
from lmc.symmetry.rules import Unproved, Values, shape_of
from lmc.symmetry.rules.contraction import CONTRACTIONS, summed_over
from lmc.symmetry.rules.registry import argument, operator_name
from lmc.symmetry.rules.shape import moved_from
from lmc.symmetry.stream import Norm, Reader, Stream
from lmc.symmetry.structure import Axis, Group
from lmc.symmetry.trace import Trace, origin

_NORMS = frozenset({"layer_norm", "rms_norm", "_fused_rms_norm"})
_SQUARES = frozenset({"pow", "square"})
_MOVES = frozenset(
    {
        *("view", "view_as", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("permute", "transpose", "t", "movedim", "swapaxes", "roll", "flip"),
        *("select", "slice", "narrow", "index", "index_select", "chunk", "split", "split_with_sizes", "unbind"),
        *("getitem", "expand", "expand_as", "repeat"),
        *("clone", "contiguous", "alias", "detach", "to", "_to_copy", "type_as", "dropout"),
    }
)
"""Operators that place or choose vectors of the stream without changing them."""
_OF_SHAPE = frozenset({"_assert_tensor_metadata", "zeros_like", "new_zeros", "new_ones", "ones_like", "sym_size"})


class _Affine(NamedTuple):
    """What a norm scales and shifts by; part of a value that has not been read yet."""

    scale: str | None
    shift: str | None
    centres: bool


@dataclass(frozen=True)
class _Value:
    """What is known about a value along the stream.

    Attributes:
        dim: its dimension along the stream; None of several outputs together.
        affine: the norm that has been applied; None of the stream itself.
        squared: whether the units have been squared.
        tensor: the tensor of the network that it is, moved at most; None of what has been computed.
        gate: the tensor by which units have been scaled without having been normalised before.
    """

    dim: int | None
    affine: _Affine | None = None
    squared: bool = False
    tensor: str | None = None
    gate: str | None = None

    @property
    def is_shifted(self) -> bool:
        return self.affine is not None and self.affine.shift is not None


class _Obstacle(Exception):
    """Why a stream cannot be folded and mapped."""


def find_streams(
    traced: Trace,
    values: Values,
    names: Mapping[Block, str],
    groups: Mapping[str, Group],
    aliases: Mapping[str, list[str]],
) -> dict[str, Stream]:
    """Return every group that is normalised by vectors; one that cannot be folded has an obstacle.

    Args:
        traced: the graph.
        values: the labels of its values.
        names: of the blocks of labels.
        groups: those of the symmetry.
        aliases: each tensor to all of its names.
    """
    nodes = [node for node in traced.module.graph.nodes if node.op == "call_function"]
    if not any(operator_name(node) in {*_NORMS, "rsqrt", "linalg_vector_norm"} for node in nodes):
        return {}
    axes: dict[fx.Node, list[Axis]] = {}
    found = {}
    for name, group in groups.items():
        if not group.outer and group.size > 1 and any(len(axis.groups) == 1 for axis in group.axes):
            stream = _Reading(traced, values, names, group, axes).stream(aliases)
            if stream is not None:
                found[name] = stream
    return found


class _Reading:
    """One pass over the graph for one group."""

    def __init__(
        self,
        traced: Trace,
        values: Values,
        names: Mapping[Block, str],
        group: Group,
        axes: dict[fx.Node, list[Axis]],
    ) -> None:
        self._traced, self._values, self._names, self._group, self._axes = traced, values, names, group, axes
        self._seen: dict[fx.Node, _Value] = {}
        self._parameters: dict[fx.Node, str] = {}
        self._norms: dict[_Affine, list[Reader]] = {}
        self._uses: dict[tuple[str, int], set[Any]] = {}
        self._is_residual = self._bare = False

    def stream(self, aliases: Mapping[str, list[str]]) -> Stream | None:
        """Return what the graph says; None if the group is not normalised by vectors."""
        obstacle = None
        for node in self._traced.module.graph.nodes:
            try:
                self._read(node)
            except _Obstacle as reason:
                # The first obstacle is told; reading goes on, to see whether the group is normalised at all.
                obstacle = obstacle or str(reason)
                self._go_on(node)
        if not self._norms:
            return None
        try:
            self._check_uses()
        except _Obstacle as reason:
            obstacle = obstacle or str(reason)
        norms = tuple(Norm(*kind[:2], tuple(dict.fromkeys(readers)), kind[2]) for kind, readers in self._norms.items())
        canonical = {name for norm in norms for name in (norm.scale, norm.shift) if name is not None}
        canonical |= {name for norm in norms for r in norm.readers for name in (r.weight, r.bias) if name is not None}
        copies = {other: name for name in sorted(canonical) for other in aliases.get(name, ()) if other != name}
        return Stream(norms, self._is_residual, self._bare, copies, obstacle)

    def _go_on(self, node: fx.Node) -> None:
        """Take what an obstacle makes for a value of the stream."""
        with suppress(_Obstacle):
            dims = self._dims(node)
            if len(dims) == 1:
                self._seen[node] = _Value(dims[0])

    def _check_uses(self) -> None:
        """A tensor of a norm, or one that reads it, must be used in one way, or it cannot be changed for it alone."""
        for (tensor, _), ways in self._uses.items():
            # Tied embeddings that no norm comes between are mapped alike on both sides.
            if len(ways) > 1 and not ways <= {"writer", "bare"}:
                raise _Obstacle(f"{tensor!r} is used in several ways (tied weights), of which only one reads a norm")
        affine = [name for kind in self._norms for name in {kind.scale, kind.shift} if name is not None]
        twice = [name for name in affine if affine.count(name) > 1]
        if twice:
            raise _Obstacle(f"{twice[0]!r} belongs to several norms")
        owners: dict[str, set[tuple[str, _Affine]]] = {}
        for kind, readers in self._norms.items():
            for reader in readers:
                if reader.bias is not None:
                    owners.setdefault(reader.bias, set()).add((reader.weight, kind))
        shared = [bias for bias, layers in owners.items() if len(layers) > 1]
        if shared:
            raise _Obstacle(f"bias {shared[0]!r} belongs to several layers")

    def _dims(self, node: fx.Node) -> list[int]:
        """The dimensions of a value that are the stream's; in any other place its units are not to be found."""
        if node not in self._axes:
            try:
                found = [axis(node.name, dim, label, self._names) for dim, label in enumerate(self._values[node])]
            except (Inexpressible, Unproved, KeyError):
                found = []
            self._axes[node] = [each for each in found if each.groups]
        here = [each for each in self._axes[node] if self._group.name in each.groups]
        if any(len(each.segments) > 1 or len(each.segments[0]) > 1 or each.order is not None for each in here):
            raise _Obstacle(f"its units are joined or flattened with others ({origin(node)})")
        return [each.dim for each in here]

    def _read(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self._read_tensor(node)
        elif node.op == "call_function":
            used = [operand for operand in node.all_input_nodes if operand in self._seen or operand in self._parameters]
            if used and operator_name(node) not in _OF_SHAPE:
                found = self._result(node, used)
                if found is not None:
                    self._seen[node] = found

    def _read_tensor(self, node: fx.Node) -> None:
        name = self._traced.tensors.get(node.name)
        if name is None or not any(here.tensor == name for here in self._group.axes):
            return
        self._parameters[node] = name
        dims = self._dims(node)
        if len(dims) == 1:
            self._seen[node] = _Value(dims[0], tensor=name)

    def _result(self, node: fx.Node, used: list[fx.Node]) -> _Value | None:
        name = operator_name(node)
        if name not in {*_MOVES, "add", "sub"} and _is_in_place(node):
            raise self._refusal(node)  # whoever reads the operand later reads the result
        if node.target in CONTRACTIONS:
            return self._contracted(node)
        if any(operand not in self._seen for operand in used):
            if name in _MOVES:  # a matrix from the stream to the stream, transposed before it is multiplied
                self._parameters[node] = self._parameters[used[0]]
                return None
            raise self._refusal(node)
        known = [self._seen[operand] for operand in used]
        if name in _NORMS:
            return self._normalised(node, known)
        if name in _SQUARES or (name == "mul" and len(used) == 1 and list(node.args[:2]) == used * 2):
            if name == "pow" and node.args[1] != 2:
                raise self._refusal(node)
            self._write(*known)
            self._refuse_affine(node, known[0])
            return replace(self._placed(node, known[0]), squared=True, tensor=None)
        if name in ("mean", "sum"):
            return self._reduced(node, known[0])
        if name == "linalg_vector_norm" and argument(node, "ord") == 2:
            self._refuse_affine(node, known[0])
            if self._dims(node):
                raise self._refusal(node)
            return None
        if name in ("mul", "div"):
            return self._scaled(node, used, known)
        if name in ("add", "sub"):
            return self._added(node, used, known)
        if name in ("cat", "stack"):
            if len(set(node.args[0])) != len(used) or len({(v.affine, v.gate, v.squared) for v in known}) > 1:  # type: ignore[arg-type]
                raise self._refusal(node)
            self._write(*known)
            return replace(self._placed(node, known[0]), tensor=None)
        if name in _MOVES or name == "neg":
            if name == "neg" and known[0].is_shifted:
                raise self._refusal(node)
            if name == "neg":
                self._write(*known)
            return self._placed(node, known[0])
        raise self._refusal(node)

    def _placed(self, node: fx.Node, value: _Value) -> _Value:
        """The same along the one dimension of `node` that is the stream's."""
        if isinstance(node.meta.get("val"), (list, tuple)):
            return replace(value, dim=None)
        dims = self._dims(node)
        if len(dims) != 1:
            raise self._refusal(node)
        return replace(value, dim=dims[0])

    def _normalised(self, node: fx.Node, known: list[_Value]) -> _Value:
        x, weight, bias = (argument(node, name) for name in ("input", "weight", "bias"))
        if x not in self._seen:
            raise self._refusal(node)
        value = self._seen[x]
        self._refuse_affine(node, value)
        rank = len(shape_of(node))
        if len(argument(node, "normalized_shape")) != 1 or value.dim != rank - 1:
            raise self._refusal(node)
        if value.tensor is not None:
            self._write(value)
        names = [self._seen[each].tensor if each in self._seen else None for each in (weight, bias)]
        if any(name is None for name, each in zip(names, (weight, bias), strict=True) if each is not None):
            raise _Obstacle(f"the scale of a norm is computed ({origin(node)})")
        kind = _Affine(names[0], names[1], operator_name(node) == "layer_norm")
        self._norm(kind)
        return replace(self._placed(node, value), affine=kind, tensor=None)

    def _norm(self, kind: _Affine) -> None:
        self._norms.setdefault(kind, [])
        for way, name in (("scale", kind.scale), ("shift", kind.shift)):
            if name is not None:
                self._uses.setdefault((name, 0), set()).add(way)

    def _reduced(self, node: fx.Node, value: _Value) -> _Value | None:
        self._write(value)
        if self._dims(node):
            if value.is_shifted and operator_name(node) == "sum":
                raise self._refusal(node)
            return replace(self._placed(node, value), tensor=None)
        if not value.squared:
            raise self._refusal(node)
        return None  # a sum of squares over the whole stream, which an orthogonal map keeps

    def _scaled(self, node: fx.Node, used: list[fx.Node], known: list[_Value]) -> _Value:
        if len(known) == 1:  # by something that is the same for all units
            value = known[0]
            if value.is_shifted or value.squared or (operator_name(node) == "div" and node.args[1] is used[0]):
                raise self._refusal(node)
            self._write(value)
            return replace(self._placed(node, value), tensor=None)
        scales = [value for value, operand in zip(known, used, strict=True) if self._is_vector(operand, value)]
        if len(used) != 2 or len(scales) != 1 or operator_name(node) == "div":
            raise self._refusal(node)
        value = next(value for value in known if value is not scales[0])
        self._refuse_affine(node, value)
        self._write(value)
        placed = replace(self._placed(node, value), tensor=None)
        x = next(operand for operand in used if self._seen[operand] is value)
        if not self._is_normalised(x):
            return replace(placed, gate=scales[0].tensor)
        kind = _Affine(scales[0].tensor, None, False)
        self._norm(kind)
        return replace(placed, affine=kind)

    def _is_vector(self, node: fx.Node, value: _Value) -> bool:
        return value.tensor is not None and len(shape_of(node)) == 1

    def _is_normalised(self, node: fx.Node) -> bool:
        """Whether a value is a product with a number that is computed from its own squares: a norm by hand."""
        while operator_name(node) in _MOVES and node.op == "call_function":
            node = node.all_input_nodes[0]
        if node.op != "call_function" or operator_name(node) not in ("mul", "div"):
            return False
        factors = [operand for operand in node.all_input_nodes if operand not in self._seen]
        while factors:
            factor = factors.pop()
            if factor in self._seen and self._seen[factor].squared:
                return True
            if factor.op == "call_function" and operator_name(factor) == "linalg_vector_norm":
                return True
            if factor.op == "call_function" and not self._dims(factor):
                factors += factor.all_input_nodes
        return False

    def _added(self, node: fx.Node, used: list[fx.Node], known: list[_Value]) -> _Value:
        if len(known) != 2 or any(value.squared for value in known):
            raise self._refusal(node)
        self._is_residual |= all(value.tensor is None for value in known)
        for value in known:
            if value.affine is not None and value.affine != (None, None, value.affine.centres):
                raise _Obstacle(
                    f"what a norm scales is added to it ({origin(node)}): a post-norm network, or a norm of what a "
                    "layer writes"
                )
            if value.gate is not None:
                raise _Obstacle(f"{value.gate!r} scales what is added to it (LayerScale)")
        self._write(*known)
        return replace(self._placed(node, known[0]), tensor=None, affine=None)

    def _contracted(self, node: fx.Node) -> _Value | None:
        summed = set(summed_over(node))
        operands = node.all_input_nodes
        sides = [(x, dim) for x in operands if x in self._seen or x in self._parameters for dim in self._dims(x)]
        read = [(x, dim) for x, dim in sides if (x, dim) in summed]
        if read:
            self._read_by(node, read)
        kept = [(x, dim) for x, dim in sides if (x, dim) not in summed]
        if not kept:
            return None
        for x, dim in kept:
            tensor = self._origin(x, dim)
            if tensor is not None:
                self._uses.setdefault(tensor, set()).add("writer")
                continue
            value = self._seen.get(x)
            is_value = operator_name(node) != "scaled_dot_product_attention" or x is argument(node, "value")
            if value is None or value.is_shifted or value.squared or not is_value or argument(node, "bias") is not None:
                raise self._refusal(node)
            if len(kept) > 1:
                raise self._refusal(node)
            return replace(self._placed(node, value), tensor=None)
        return self._placed(node, _Value(None))

    def _read_by(self, node: fx.Node, read: list[tuple[fx.Node, int]]) -> None:
        """Note a layer that sums over the stream."""
        place = {"linear": 1, "addmm": 2}.get(operator_name(node))
        weights = [(x, dim) for x, dim in read if self._origin(x, dim) is not None]
        if place is not None:
            weights = [(x, dim) for x, dim in weights if x is node.args[place]]
        data = [(x, dim) for x, dim in read if (x, dim) not in weights]
        if len(weights) != 1 or len(data) != 1 or data[0][0] not in self._seen:
            raise self._refusal(node)
        value = self._seen[data[0][0]]
        tensor = self._origin(*weights[0])
        assert tensor is not None
        if value.squared or value.gate is not None:
            raise self._refusal(node)
        self._write(value)
        kind = value.affine
        self._uses.setdefault(tensor, set()).add(kind or "bare")
        if kind is None:
            self._bare = True
            return
        self._bare |= not kind.centres
        bias = {"linear": "bias", "addmm": "self"}.get(operator_name(node))
        added = argument(node, bias) if bias else None
        name = self._traced.tensors.get(added.name) if isinstance(added, fx.Node) else None
        if kind.shift is not None and (place is None or (added is not None and name is None)):
            raise _Obstacle(
                f"a norm with a shift is read by {operator_name(node)} ({origin(node)}), not a linear layer"
            )
        self._norms[kind].append(Reader(*tensor, name))

    def _origin(self, node: fx.Node, dim: int) -> tuple[str, int] | None:
        """The dimension of a tensor of the network that a dimension of a value is, moved at most."""
        while node.op == "call_function" and (before := moved_from(node, dim)) is not None:
            node, dim = before
        return (self._traced.tensors[node.name], dim) if node.name in self._traced.tensors else None

    def _write(self, *values: _Value) -> None:
        """Note that tensors are used as vectors of the stream."""
        for value in values:
            if value.tensor is not None:
                self._uses.setdefault((value.tensor, value.dim or 0), set()).add("writer")

    def _refuse_affine(self, node: fx.Node, value: _Value) -> None:
        if value.affine is not None or value.squared or value.gate is not None:
            raise _Obstacle(f"it is normalised or scaled twice ({origin(node)})")

    def _refusal(self, node: fx.Node) -> _Obstacle:
        return _Obstacle(f"{operator_name(node)} acts on its units one by one ({origin(node)})")


def _is_in_place(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and str(schema.name).endswith("_")
