"""The permutation symmetry of a network, found by tracing it: no specification is written by hand."""

import logging
from collections.abc import Collection, Iterator, Mapping

import torch
from torch import fx, nn

from lmc.symmetry import labels
from lmc.symmetry.example import Example
from lmc.symmetry.labels import Block
from lmc.symmetry.layout import Inexpressible, axis, expressible, groups_on, movable
from lmc.symmetry.residual import find_streams
from lmc.symmetry.rules import RULES, Labels, Unproved, Values, overloads, shape_of, unknown
from lmc.symmetry.rules.contraction import CONTRACTIONS, summed_over
from lmc.symmetry.rules.pointwise import NONLINEARITIES
from lmc.symmetry.rules.registry import KERNEL
from lmc.symmetry.rules.shape import moved_from
from lmc.symmetry.rules.uniform import is_written, uniform_dims
from lmc.symmetry.structure import Axis, Group, Site, Symmetry
from lmc.symmetry.trace import Trace, origin, trace

log = logging.getLogger(__name__)

_NONLINEAR = frozenset(overloads(*NONLINEARITIES))
INPUT, OUTPUT = "the network's input", "the network's output"


def discover(model: nn.Module, example: Example) -> Symmetry:
    """Return every group of hidden units of `model` that can be permuted without changing what it computes.

    The dimensions of all tensors start apart; every operator of the traced graph ties those that must move together;
    the network's input and output stay fixed. The graph is read until nothing new is tied, so that in the end every
    rule holds for the whole symmetry at once. An operator without a rule fixes what it touches and is named in a
    warning: less symmetry may be found than there is, never more. `lmc.symmetry.verify` proves the result by running.

    Args:
        model: any `nn.Module`; it is left as it is. On the meta device it is traced without weights.
        example: an input of the model, batch dimension included; a tuple of several, or a mapping for keyword
            arguments. Its values do not matter.

    Raises:
        UserError: the model does not accept the example or cannot be traced.
    """
    traced = trace(model, example)
    parameters = _parameters(traced)
    buffers = {name for name, _ in model.named_buffers()}
    before: list[object] | None = None
    values, unruled = Values(), dict[str, str]()
    while before != (before := _signature(parameters)) or _fix_given(traced, values, parameters, buffers):
        values = _label_values(traced, parameters, unruled)
        _make_expressible(parameters)
    for what, where in unruled.items():
        log.warning("no symmetry rule for %s (%s): what it touches stays fixed", what, where)
    return _symmetry(model, traced, values, parameters)


def _parameters(traced: Trace) -> dict[str, Labels]:
    """The labels of the network's tensors: each dimension may move on its own for each unit of those before it."""
    found: dict[str, Labels] = {}
    for node in traced.module.graph.nodes:
        if node.op == "placeholder" and node.name in traced.tensors and node.users:
            blocks: list[Block] = []
            for n in shape_of(node):
                blocks.append(Block(n, [block for block in blocks if block.size > 1]))
            found[traced.tensors[node.name]] = tuple(((block,),) for block in blocks)
    return found


def _signature(parameters: Mapping[str, Labels]) -> list[object]:
    """What is known about the parameters, in a form that can be compared: blocks are numbered as they occur."""
    numbers: dict[Block, int] = {}

    def number(block: Block) -> int:
        return numbers.setdefault(block, len(numbers))

    return [
        [(number(block), block.size, block.is_fixed, [number(outer) for outer in block.over]) for block in segment]
        for dims in parameters.values()
        for label in dims
        for segment in labels.resolve(label)
    ]


def _label_values(traced: Trace, parameters: Mapping[str, Labels], unruled: dict[str, str]) -> Values:
    """Run the rules over the graph, which ties the labels of the parameters; return those of all values."""
    values = Values()
    for node in traced.module.graph.nodes:
        if node.op == "placeholder":
            known = parameters.get(traced.tensors.get(node.name, ""))
            values[node] = known or _of_constant(node, traced)
            if known is None and node.name in traced.constants and not is_written(node):
                free = (dim for dim, label in enumerate(values[node]) if not labels.is_fixed(label))
                values.set_uniform(node, frozenset(free))
    _label_graph(traced.module, values, unruled)
    for result in traced.module.graph.output_node().all_input_nodes:
        for label in values.all_of(result):
            labels.fix(label, OUTPUT)
    return values


def _of_constant(node: fx.Node, traced: Trace) -> Labels:
    """What is handed to the network stays; so does a constant, but along dimensions in which it is the same."""
    value = traced.constants.get(node.name)
    reason = INPUT if node.name in traced.inputs else "a constant of the network"
    if value is None or value.is_meta or not value.numel():
        return tuple(labels.fixed(n, reason) for n in shape_of(node))
    same = [torch.equal(value, value.narrow(dim, 0, 1).expand_as(value)) for dim in range(value.ndim)]
    return tuple(
        labels.free(n) if uniform else labels.fixed(n, reason) for n, uniform in zip(value.shape, same, strict=True)
    )


def _label_graph(module: fx.GraphModule, values: Values, unruled: dict[str, str]) -> None:
    """Run the rules over the nodes of one graph, whose placeholders have labels."""
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        inner = [getattr(module, str(used.target)) for used in node.all_input_nodes if used.op == "get_attr"]
        if inner and isinstance(inner[0], fx.GraphModule):
            _label_region(node, inner[0], values, unruled)
            continue
        try:
            values[node] = RULES.get(node.target, _no_rule)(values, node)
            values.set_uniform(node, uniform_dims(values, node))
        except Unproved as gap:
            if not all(labels.is_fixed(label) for used in node.all_input_nodes for label in values.all_of(used)):
                unruled.setdefault(str(gap), origin(node))
            unknown(values, node)


def _label_region(node: fx.Node, region: fx.GraphModule, values: Values, unruled: dict[str, str]) -> None:
    """A part of the network that runs without gradients or in another precision is a graph of its own."""
    placeholders = [inside for inside in region.graph.nodes if inside.op == "placeholder"]
    operands = [used for used in node.args if isinstance(used, fx.Node) and used.op != "get_attr"]
    if len(operands) != len(placeholders) or not str(node.target).startswith("wrap_with"):
        unruled.setdefault(str(node.target), origin(node))
        unknown(values, node)
        return
    for inside, operand in zip(placeholders, operands, strict=True):
        values.alias(inside, operand)
    _label_graph(region, values, unruled)
    results = region.graph.output_node().args[0]
    if isinstance(results, fx.Node):
        values.alias(node, results)
    else:
        values[node] = [values[result] for result in results]  # type: ignore[union-attr]


def _no_rule(values: Values, node: fx.Node) -> Labels:
    raise Unproved(str(node.target))


def _fix_given(traced: Trace, values: Values, parameters: Mapping[str, Labels], buffers: Collection[str]) -> bool:
    """Fix what the network is given, not made of; return whether there was any.

    That is what moves no trainable tensor, and what moves in a buffer but is in nothing that the network computes: a
    table of coordinates that the network comes with, for example, is no unit of it. Networks that differ in such a
    constant have no point in common that both were trained to.
    """
    given, made, trained = set[Block](), set[Block](), set[Block]()
    for tensor, dims in parameters.items():
        blocks = {block for label in dims for block in movable(label)}
        if tensor in buffers:
            given |= blocks
        else:
            trained |= blocks
    sources: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in values:
        ancestors = frozenset[fx.Node]().union(*(sources.get(used, ()) for used in node.all_input_nodes))
        sources[node] = frozenset({node}) if node.op == "placeholder" else ancestors
        if node.op != "placeholder" and (len(ancestors) > 1 or node.graph is not traced.module.graph):
            made |= {leaf for label in values.all_of(node) for leaf in labels.leaves_of(label)}
    found = given - (made & trained)
    for block in found:
        block.fix("order of a constant of the network")
    return bool(found)


def _make_expressible(parameters: Mapping[str, Labels]) -> None:
    """Bring what depends on blocks that stay into a form in which every permutation is given by groups alone."""
    for dims in parameters.values():
        for label in dims:
            expressible(label)


def _symmetry(model: nn.Module, traced: Trace, values: Values, parameters: Mapping[str, Labels]) -> Symmetry:
    names = _name_groups(parameters)
    aliases = _aliases(model)
    axes: dict[Block, list[Axis]] = {block: [] for block in names}
    for tensor, dims in parameters.items():
        for dim, label in enumerate(dims):
            here = axis(tensor, dim, label, names)
            for block in groups_on(label, names):
                axes[block] += [Axis(alias, dim, here.segments, here.order) for alias in aliases.get(tensor, [tensor])]
    sites = _sites(traced, values, names)
    outer = {block: tuple(names[parent] for parent in block.over) for block in names}
    reading, making = (
        {(alias, dim) for tensor, dim, way in _uses(traced) if way is reads for alias in aliases.get(tensor, [tensor])}
        for reads in (True, False)
    )
    groups = {
        name: Group(name, block.size, tuple(axes[block]), tuple(sites.get(name, ())), outer[block])
        for block, name in names.items()
    }
    return Symmetry(
        groups=groups,
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        parameters=frozenset(name for name, _ in model.named_parameters(remove_duplicate=False)),
        fixed=_fixed(model, parameters),
        reading=frozenset(reading),
        both_ways=frozenset(reading & making),
        streams=find_streams(traced, values, names, groups, aliases),
    )


def _name_groups(parameters: Mapping[str, Labels]) -> dict[Block, str]:
    """Name every movable block after the first module that has it as an output dimension, else as any dimension."""
    names: dict[Block, str] = {}
    first_dims = [(tensor, dims[:1]) for tensor, dims in parameters.items()]
    other_dims = [(tensor, dims[1:]) for tensor, dims in parameters.items()]
    taken: dict[str, int] = {}
    for tensor, dims in [*first_dims, *other_dims]:
        for block in (block for label in dims for block in movable(label)):
            if block in names:
                continue
            stem = tensor.rpartition(".")[0] or tensor
            stem = f"{stem}/inside" if block.over else stem
            taken[stem] = taken.get(stem, 0) + 1
            names[block] = stem if taken[stem] == 1 else f"{stem}#{taken[stem]}"
    return names


def _sites(traced: Trace, values: Values, names: Mapping[Block, str]) -> dict[str, list[Site]]:
    """Where each group can be observed: before and after the nonlinearities, else at the layers that make its units."""
    found: dict[str, list[Site]] = {}
    seen: set[tuple[str, str, str]] = set()

    def add(node: fx.Node, kind: str, only: frozenset[str]) -> None:
        try:
            axes = tuple(axis(node.name, dim, label, names) for dim, label in enumerate(values[node]))
        except (Inexpressible, Unproved):
            return
        for group in dict.fromkeys(name for here in axes for name in sorted(here.groups)):
            if group in only and (node.name, kind, group) not in seen:
                seen.add((node.name, kind, group))
                found.setdefault(group, []).append(Site(node.name, kind, axes))

    nodes = [node for node in traced.module.graph.nodes if node.op == "call_function"]
    everything = frozenset(names.values())
    for node in nodes:
        if node.target in _NONLINEAR:
            add(node.args[0], "pre", everything)
            add(node, "post", everything)
    unseen = everything - found.keys()
    for node in nodes:
        if unseen and node.target in CONTRACTIONS:
            add(node, "pre", unseen)
            add(node, "post", unseen)
    return found


def _uses(traced: Trace) -> Iterator[tuple[str, int, bool]]:
    """Every use of a dimension of the network's tensors, and whether the operator sums over it."""
    for node in traced.module.graph.nodes:
        if node.op != "call_function" or (shape_of(node) and moved_from(node, 0) is not None):
            continue  # what is only moved is used later
        summed = set(summed_over(node))
        for operand in node.all_input_nodes:
            for dim in range(len(shape_of(operand))):
                source, place = operand, dim
                while source.op == "call_function" and (before := moved_from(source, place)) is not None:
                    source, place = before
                if source.name in traced.tensors:
                    yield traced.tensors[source.name], place, (operand, dim) in summed


def _fixed(model: nn.Module, parameters: Mapping[str, Labels]) -> dict[str, int]:
    """Why positions of trainable tensors stay where they are, to how many of them."""
    blocks = {
        block
        for tensor, _ in model.named_parameters(remove_duplicate=False)
        for label in parameters.get(tensor, ())
        for block in labels.blocks_of(label)
        if block.is_fixed and block.parts is None
    }
    found: dict[str, int] = {}
    for block in sorted(blocks, key=lambda block: block.reason):
        if block.reason not in (KERNEL, labels.SINGLE):
            found[block.reason] = found.get(block.reason, 0) + block.size
    return found


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Tensors that bear several names in the state dict (tied parameters): each name to all of them."""
    names: dict[int, list[str]] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        names.setdefault(id(tensor), []).append(name)
    return {name: group for group in names.values() for name in group}
