"""The ATen graph of a network, traced by torch.export: what discovery reads and what activations are observed in."""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from lmc.errors import UserError


@dataclass(frozen=True)
class Trace:
    """A network as a graph of ATen operators, in evaluation mode, for inputs of one shape.

    Attributes:
        module: the graph; its placeholders are the network's tensors, constants and inputs, in order.
        tensors: placeholder to the name of its tensor in the state dict.
        constants: placeholder to the value of a tensor that is neither parameter nor persistent buffer.
        inputs: placeholders of the network's inputs.
    """

    module: fx.GraphModule
    tensors: Mapping[str, str]
    constants: Mapping[str, Tensor]
    inputs: tuple[str, ...]

    def run(self, states: Sequence[Mapping[str, Tensor]], inputs: Tensor) -> Iterator[tuple[fx.Node, list[Any]]]:
        """Run several networks of this architecture side by side on the same inputs.

        Yields every node of the graph with its value in each network, in the order of execution; a value is forgotten
        after its last use, so at no time are more values alive than in a forward pass of the networks.
        """
        runners = [fx.Interpreter(self.module) for _ in states]
        last_used = _last_used(self.module.graph)
        for node in self.module.graph.nodes:
            for runner, state in zip(runners, states, strict=True):
                if node.op == "placeholder":
                    runner.env[node] = self._argument(node.name, state, inputs)
                else:
                    runner.env[node] = runner.run_node(node)
            yield node, [runner.env[node] for runner in runners]
            for done in last_used.get(node, ()):
                for runner in runners:
                    del runner.env[done]

    def _argument(self, name: str, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        if name in self.tensors:
            return state[self.tensors[name]]
        if name in self.constants:
            return self.constants[name].to(inputs.device)
        return inputs


def _last_used(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        last[node] = node
        for used in node.all_input_nodes:
            last[used] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for used, user in last.items():
        found.setdefault(user, []).append(used)
    return found


def trace(model: nn.Module, example: Tensor) -> Trace:
    """Return the graph of `model` on inputs of the shape, type and device of `example`; the model is left as it is.

    Raises:
        UserError: the model does not accept the example, or torch.export cannot trace it.
    """
    copied = copy.deepcopy(model).eval().to(example.device)
    name = type(model).__name__
    try:
        with torch.no_grad():
            copied(example)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name} does not accept an input of shape {tuple(example.shape)}: {reason}") from error
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of torch.export about itself; nothing that a user could act on
            program = torch.export.export(copied, (example,), strict=False)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name} cannot be traced by torch.export: {reason}; remove control flow on tensors") from error
    tensors, constants, inputs = {}, {}, []
    for spec in program.graph_signature.input_specs:
        placeholder, target = spec.arg.name, spec.target
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(placeholder)
        elif spec.kind == InputKind.PARAMETER or (spec.kind == InputKind.BUFFER and spec.persistent):
            tensors[placeholder] = str(target)
        elif isinstance(constant := program.constants.get(str(target)), Tensor):
            constants[placeholder] = constant
        else:
            raise UserError(
                f"{name} takes an input that is no tensor ({placeholder}); wrap it in a module that does not"
            )
    return Trace(program.graph_module, tensors, constants, tuple(inputs))


def origin(node: fx.Node) -> str:
    """Return the line of the model that an operator comes from."""
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    place = [line for line in lines if line.startswith("File ")]
    return f"{place[-1]}: {lines[-1]}" if place else f"node {node.name}"
