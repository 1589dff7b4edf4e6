"""What rules are made of: the labels of a graph's values, the registry, and the one way to combine labels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from lmc.symmetry import labels
from lmc.symmetry.labels import Block, Label

Labels = tuple[Label, ...]
"""The label of every dimension of a value."""

Rule = Callable[["Values", fx.Node], "Labels | list[Labels]"]

RULES: dict[Any, Rule] = {}
aten = torch.ops.aten

KERNEL = "positions inside a kernel"


class Unproved(Exception):
    """A rule knows the operator, but not this use of it; it is treated as an operator without a rule."""


class Values:
    """The labels of every value of a graph that has been seen so far."""

    def __init__(self) -> None:
        self._labels: dict[fx.Node, Labels | list[Labels]] = {}
        self._uniform: dict[fx.Node, frozenset[int]] = {}

    def __setitem__(self, node: fx.Node, value: Labels | list[Labels]) -> None:
        if isinstance(value, list):
            for each in value:
                restrict(each)
        else:
            shape = shape_of(node)
            if [labels.size(label) for label in value] != list(shape):
                raise ValueError(f"the rule of {node.target} returned labels that do not have the shape {shape}")
            restrict(value)
        self._labels[node] = value

    def __getitem__(self, node: Any) -> Labels:
        """The labels of a tensor; none for an argument that is absent or no tensor.

        Dimensions along which it is uniform get new ones every time.
        """
        value = self._labels[node] if isinstance(node, fx.Node) else ()
        if isinstance(value, list):
            raise Unproved(f"{node} as a whole, which is several tensors")
        uniform = self.uniform(node)
        return _renewed(value, uniform) if uniform else value

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self._labels)

    def alias(self, node: fx.Node, other: fx.Node) -> None:
        """Let `node` have the labels of `other`."""
        self._labels[node] = self._labels[other]
        self._uniform[node] = self.uniform(other)

    def uniform(self, node: fx.Node) -> frozenset[int]:
        """The dimensions along which a value is known to be the same."""
        return self._uniform.get(node, frozenset())

    def set_uniform(self, node: fx.Node, dims: frozenset[int]) -> None:
        """Let it be known that a value is the same along some dimensions."""
        self._uniform[node] = dims

    def output(self, node: fx.Node, number: int) -> Labels:
        """The labels of one of several outputs."""
        value = self._labels[node]
        return value[number] if isinstance(value, list) else value

    def all_of(self, node: fx.Node) -> list[Label]:
        """Every label of every tensor that `node` computes."""
        value = self._labels.get(node, ())
        return [label for each in value for label in each] if isinstance(value, list) else list(value)


def _renewed(value: Labels, dims: frozenset[int]) -> Labels:
    found: list[Label] = []
    for dim, label in enumerate(value):
        around = [block for before in found for block in labels.blocks_of(before)]
        found.append(labels.free(labels.size(label), around) if dim in dims else label)
    return tuple(found)


def rule(*operators: Any) -> Callable[[Rule], Rule]:
    """Register a function as the rule of `operators`."""

    def register(function: Rule) -> Rule:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"{operator} has a rule already")
            RULES[operator] = function
        return function

    return register


def overloads(*names: str) -> list[Any]:
    """Return every overload of ATen operators and of their in-place twins; names that this torch lacks are skipped."""
    packets = [getattr(aten, name, None) for name in (*names, *(f"{name}_" for name in names))]
    return [
        getattr(packet, overload)
        for packet in packets
        if packet is not None
        for overload in packet.overloads()
        if overload != "out" and not overload.endswith("_out")
    ]


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


def operator_name(node: fx.Node) -> str:
    """Return the short name of a node's operator, for people."""
    schema = getattr(node.target, "_schema", None)
    return str(schema.name).rpartition("::")[2].rstrip("_") if schema else getattr(node.target, "__name__", "operator")


def keep(node: fx.Node, *chosen: Label) -> None:
    """Fix labels whose order the operator of `node` depends on."""
    for label in chosen:
        labels.fix(label, f"order that {operator_name(node)} depends on")


def still(node: fx.Node, sizes: Sequence[int]) -> Labels:
    """Return labels of dimensions along which the operator of `node` made something that may not move."""
    return tuple(labels.fixed(int(n), f"order that {operator_name(node)} depends on") for n in sizes)


def unknown(values: Values, node: fx.Node) -> None:
    """Fix everything an operator touches: what nothing is known about cannot be proved movable."""
    reason = f"no rule for {operator_name(node)}"
    for used in node.all_input_nodes:
        for label in values.all_of(used):
            labels.fix(label, reason)
    result = node.meta.get("val")
    if isinstance(result, (list, tuple)):
        values[node] = [
            tuple(labels.fixed(int(n), reason) for n in each.shape) if isinstance(each, torch.Tensor) else ()
            for each in result
        ]
    else:
        values[node] = tuple(labels.fixed(n, reason) for n in shape_of(node))


def join(subscripts: str, *operands: Labels) -> Labels:
    """Tie the dimensions of several tensors by the letters of an einsum-like expression; return the output's labels.

    Every operator that combines tensors position by position, by contraction or by broadcasting is such an
    expression: a linear layer "...i,oi,o->...o", a matrix product "...ij,...jk->...ik". Letters that are absent on the
    right are summed over (or averaged, or maximised: anything that does not depend on the order). "..." stands for
    leading dimensions, aligned from the right; a dimension of size one is repeated as needed. Operands without
    dimensions are skipped.
    """
    inputs, _, output = subscripts.partition("->")
    terms = [(_keys(term, value), value) for term, value in zip(inputs.split(","), operands, strict=True) if value]
    found: dict[str, Label] = {}
    ties: list[tuple[Label, Label]] = []
    for keys, value in terms:
        for key, label in zip(keys, value, strict=True):
            before = found.get(key)
            if before is None or labels.size(before) == 1:
                found[key] = label
            elif labels.size(label) > 1:
                ties.append((before, label))
    for one, two in labels.outer_first(ties):
        labels.tie(one, two)
    _agree(terms)
    leading = sorted((key for key in found if key.startswith("...")), key=lambda key: int(key[3:]))
    wanted = [*leading, *output[3:]] if output.startswith("...") else list(output)
    return tuple(found[key] for key in wanted)


def _keys(term: str, value: Labels) -> list[str]:
    """A name for every dimension: its letter, or its place among the leading dimensions, counted from their end."""
    if not term.startswith("..."):
        if len(term) != len(value):
            raise Unproved(f"{len(value)} dimensions where {len(term)} were expected")
        return list(term)
    count = len(value) - (len(term) - 3)
    return [*(f"...{place - count}" for place in range(count)), *term[3:]]


def restrict(value: Labels) -> None:
    """Let every block of a tensor depend only on blocks whose place in the tensor is plain.

    An outer block must stand in the same segment, once, or in every segment of exactly one other dimension; whatever
    it was in that has been summed over, or stands twice, the inner block can no longer follow.
    """
    while any(block.depth for label in value for block in labels.blocks_of(label)):
        places = _places(value)
        wrong = {block: outer for (block, outer, _), place in places.items() if place is None}
        if not wrong:
            return
        for block, outer in wrong.items():
            block.narrow(frozenset(block.over) - {outer})


def _agree(terms: Sequence[tuple[Sequence[str], Labels]]) -> None:
    """Let blocks that meet in one operator depend only on outer blocks that have the same place in all operands."""
    seen: dict[tuple[Block, Block, str], str | None] = {}
    for keys, value in terms:
        if not any(block.depth for label in value for block in labels.blocks_of(label)):
            continue
        for (block, outer, dim), place in _places(value).items():
            here = None if place is None else "self" if place == dim else keys[place]
            if seen.setdefault((block, outer, keys[dim]), here) != here or here is None:
                block.narrow(frozenset(block.over) - {outer})


def _places(value: Labels) -> dict[tuple[Block, Block, int], int | None]:
    """For every block, each of its outer blocks and each dimension it stands in: the dimension of the outer block."""
    segments = [
        [(labels.blocks_of((segment,)), frozenset(where)) for segment, where in labels.expand(label)] for label in value
    ]
    repeated = {
        block for label in value for segment in labels.resolve(label) for block in segment if segment.count(block) > 1
    }
    found: dict[tuple[Block, Block, int], int | None] = {}
    for dim, here in enumerate(segments):
        for inside, _ in here:
            for block in inside:
                for outer in block.over:
                    away = [d for d, other in enumerate(segments) if d != dim and any(outer in i | w for i, w in other)]
                    place: int | None = None
                    if outer in repeated:
                        pass
                    elif outer in inside:
                        place = dim
                    elif len(away) == 1 and all(outer in i | w for i, w in segments[away[0]]):
                        place = away[0]
                    if found.setdefault((block, outer, dim), place) != place:  # another one in another segment
                        found[block, outer, dim] = None
    return found
