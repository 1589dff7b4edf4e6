"""The permutation symmetry of a network, found by tracing it: no specification is written by hand."""

import logging
import operator
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from lmc.symmetry import labels
from lmc.symmetry.labels import Block, Label
from lmc.symmetry.rules import NONLINEARITIES, RULES, Labels, Unproved, Values, overloads, shape_of, unknown
from lmc.symmetry.structure import Axis, Factor, Group, Segment, Site, Symmetry
from lmc.symmetry.trace import Trace, trace

log = logging.getLogger(__name__)

_NONLINEAR = frozenset(op for packet in NONLINEARITIES for op in overloads(packet))
_CONTRACTIONS = frozenset(
    {torch.ops.aten.linear.default, *(getattr(torch.ops.aten, f"conv{d}d").default for d in "123")}
)


def discover(model: nn.Module, example: Tensor) -> Symmetry:
    """Return every group of hidden units of `model` that can be permuted without changing what it computes.

    The dimensions of all tensors start apart; every operator of the traced graph ties those that must move together;
    the network's input and output stay fixed. An operator without a rule fixes what it touches and is named in a
    warning: less symmetry may be found than there is, never more. `lmc.symmetry.verify` proves the result by running.

    Args:
        model: any `nn.Module` with one tensor as its input; it is left as it is.
        example: an input of the model, batch dimension included; its values do not matter.

    Raises:
        UserError: the model does not accept the example or cannot be traced.
    """
    traced = trace(model, example)
    values, parameters = _label_values(traced)
    names = _name_groups(parameters)
    aliases = _aliases(model)
    axes: dict[str, list[Axis]] = {name: [] for name in names.values()}
    for tensor, dims in parameters.items():
        for dim, label in enumerate(dims):
            segments = _segments(label, names)
            for name in dict.fromkeys(f.group for segment in segments for f in segment if f.group):
                axes[name] += [Axis(alias, dim, segments) for alias in aliases.get(tensor, [tensor])]
    sites = _sites(traced, values, names)
    sizes = {name: block.size for block, name in names.items()}
    return Symmetry(
        groups={n: Group(n, sizes[n], tuple(axes[n]), tuple(sites.get(n, ()))) for n in axes},
        shapes={name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        parameters=frozenset(name for name, _ in model.named_parameters(remove_duplicate=False)),
    )


def _label_values(traced: Trace) -> tuple[Values, dict[str, Labels]]:
    """Run the rules over the graph; return the labels of its values and of the network's tensors."""
    values, parameters, unruled = Values(), {}, dict[str, str]()
    for node in traced.module.graph.nodes:
        if node.op == "placeholder":
            used_tensor = node.name in traced.tensors and node.users
            values[node] = tuple((labels.free if used_tensor else labels.fixed)(n) for n in shape_of(node))
            if used_tensor:
                parameters[traced.tensors[node.name]] = values[node]
        elif node.op == "output":
            for result in node.all_input_nodes:
                for label in values[result]:
                    labels.fix(label)
        else:
            try:
                values[node] = RULES.get(node.target, _no_rule)(values, node)
            except Unproved as gap:
                if node.target is not operator.getitem:  # it only takes apart what was named already
                    unruled.setdefault(str(gap), _origin(node))
                unknown(values, node)
    for what, origin in unruled.items():
        log.warning("no symmetry rule for %s (%s): what it touches stays fixed", what, origin)
    return values, parameters


def _no_rule(values: Values, node: fx.Node) -> Labels:
    raise Unproved(str(node.target))


def _origin(node: fx.Node) -> str:
    """The line of the model that an operator comes from."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    place = [line for line in lines if line.startswith("File ")]
    return f"{place[-1]}: {lines[-1]}" if place else f"node {node.name}"


def _name_groups(parameters: dict[str, Labels]) -> dict[Block, str]:
    """Name every movable block after the first module that has it as an output dimension, else as any dimension."""
    names: dict[Block, str] = {}
    first_dims = [(tensor, dims[:1]) for tensor, dims in parameters.items()]
    other_dims = [(tensor, dims[1:]) for tensor, dims in parameters.items()]
    taken: dict[str, int] = {}
    for tensor, dims in [*first_dims, *other_dims]:
        for label in dims:
            for block in _movable(label):
                if block not in names:
                    stem = tensor.rpartition(".")[0] or tensor
                    taken[stem] = taken.get(stem, 0) + 1
                    names[block] = stem if taken[stem] == 1 else f"{stem}#{taken[stem]}"
    return names


def _movable(label: Label) -> Iterator[Block]:
    for segment in labels.resolve(label):
        yield from (block for block in segment if not block.is_fixed)


def _segments(label: Label, names: dict[Block, str]) -> tuple[Segment, ...]:
    """Translate a label; neighbouring fixed factors and neighbouring fixed segments are joined."""
    found: list[Segment] = []
    for segment in labels.resolve(label):
        factors: list[Factor] = []
        for block in segment:
            factor = Factor(names.get(block), block.size)
            if factors and factor.group is None and factors[-1].group is None:
                factor = Factor(None, factors.pop().size * factor.size)
            factors.append(factor)
        still = len(factors) == 1 and factors[0].group is None
        if still and found and len(found[-1]) == 1 and found[-1][0].group is None:
            factors = [Factor(None, found.pop()[0].size + factors[0].size)]
        found.append(tuple(factors) or (Factor(None, 1),))
    return tuple(found)


def _sites(traced: Trace, values: Values, names: dict[Block, str]) -> dict[str, list[Site]]:
    """Where each group can be observed: before and after the nonlinearities, else at the layers that make its units."""
    found: dict[str, list[Site]] = {}
    seen: set[tuple[str, str]] = set()

    def add(node: fx.Node, kind: str, only: frozenset[str] | None = None) -> None:
        axes = tuple(_segments(label, names) for label in values[node])
        for group in dict.fromkeys(f.group for segments in axes for segment in segments for f in segment if f.group):
            if (node.name, f"{kind} {group}") not in seen and (only is None or group in only):
                seen.add((node.name, f"{kind} {group}"))
                found.setdefault(group, []).append(Site(node.name, kind, axes))

    nodes = [node for node in traced.module.graph.nodes if node.op == "call_function"]
    for node in nodes:
        if node.target in _NONLINEAR:
            add(node.args[0], "pre")
            add(node, "post")
    unseen = frozenset(names.values()) - found.keys()
    for node in nodes:
        if unseen and node.target in _CONTRACTIONS:
            add(node, "pre", unseen)
            add(node, "post", unseen)
    return found


def _aliases(model: nn.Module) -> dict[str, list[str]]:
    """Tensors that bear several names in the state dict (tied parameters): each name to all of them."""
    names: dict[int, list[str]] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        names.setdefault(id(tensor), []).append(name)
    return {name: group for group in names.values() for name in group}
