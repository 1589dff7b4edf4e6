"""The ATen graph of a network, traced by torch.export: what discovery reads and what activations are observed in."""

import io
import logging
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from lmc.errors import UserError
from lmc.modes import in_mode
from lmc.symmetry.example import Example, arguments, described, mapped, tensors

log = logging.getLogger(__name__)

_TORCH = str(Path(torch.__file__).parent)
_RANDOM = frozenset({"rand", "randn", "randint", "rand_like", "randn_like", "bernoulli", "normal", "multinomial"})


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

    def run(self, states: Sequence[Mapping[str, Tensor]], inputs: Example) -> Iterator[tuple[fx.Node, list[Any]]]:
        """Run several networks of this architecture side by side on the same inputs.

        Yields every node of the graph with its value in each network, in the order of execution; a value is forgotten
        after its last use, so at no time are more values alive than in a forward pass of the networks.
        """
        given = dict(zip(self.inputs, tensors(inputs), strict=True))
        device = next(iter(given.values())).device
        runners = [fx.Interpreter(self.module) for _ in states]
        last_used = _last_used(self.module.graph)
        for node in self.module.graph.nodes:
            for runner, state in zip(runners, states, strict=True):
                if node.op != "placeholder":
                    runner.env[node] = runner.run_node(node)
                elif node.name in self.tensors:
                    runner.env[node] = state[self.tensors[node.name]]
                elif node.name in self.constants:
                    runner.env[node] = self.constants[node.name].to(device)
                else:
                    runner.env[node] = given[node.name]
            yield node, [runner.env[node] for runner in runners]
            for done in last_used.get(node, ()):
                for runner in runners:
                    del runner.env[done]


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


def trace(model: nn.Module, example: Example) -> Trace:
    """Return the graph of `model` in evaluation mode on inputs like `example`; the model is left as it is.

    Nothing is computed: a model on the meta device, without weights, can be traced too.

    Raises:
        UserError: the model does not accept the example, cannot be traced by torch.export, is random, or has tensors
            for which a symmetry has no meaning (complex, quantised, uninitialised, overlapping in memory).
    """
    name = type(model).__name__
    _check_tensors(model, name)
    example = _placed(model, example, name)
    _announce_evaluation(model, name)
    args, kwargs = arguments(example)
    with in_mode(model), _quiet(), torch.no_grad():
        try:
            program = torch.export.export(model, args, kwargs, strict=False)
        except Exception as error:
            raise _refusal(model, name, example, error) from error
    found, constants, inputs = {}, {}, []
    for spec in program.graph_signature.input_specs:
        placeholder, target = spec.arg.name, spec.target
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(placeholder)
        elif spec.kind == InputKind.PARAMETER or (spec.kind == InputKind.BUFFER and spec.persistent):
            found[placeholder] = str(target)
        elif isinstance(constant := program.constants.get(str(target)), Tensor):
            constants[placeholder] = constant
        else:
            raise UserError(
                f"{name} takes an input that is no tensor ({placeholder}); wrap it in a module that does not"
            )
    _check_certain(program.graph_module, name)
    return Trace(program.graph_module, found, constants, tuple(inputs))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what torch.export says about itself: nothing that a user could act on, and errors are raised too."""
    levels = {
        name: logging.getLogger(name).level for name in ("torch._subclasses.fake_tensor", "torch.fx", "torch.export")
    }
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):  # it prints the graph that it fails on
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def origin(node: fx.Node) -> str:
    """Return where in the model an operator comes from: the module's path and the line of its code."""
    frames = [part.strip() for part in str(node.meta.get("stack_trace") or "").split("File ") if part.strip()]
    own = [frame for frame in frames if _TORCH not in frame] or frames
    modules = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    line = "File " + ": ".join(part.strip() for part in own[-1].splitlines()[:2]) if own else f"node {node.name}"
    return f"{modules[-1]}: {line}" if modules else line


def _check_tensors(model: nn.Module, name: str) -> None:
    found = [*model.named_parameters(), *model.named_buffers()]
    spans: dict[int, list[tuple[int, int, str]]] = {}
    for tensor_name, tensor in found:
        if is_lazy(tensor):
            raise UserError(f"{name}: {tensor_name} has no shape yet; run the model once before its symmetry is sought")
        if tensor.is_complex() or tensor.is_quantized:
            kind = "complex" if tensor.is_complex() else "quantised"
            raise UserError(f"{name}: {tensor_name} is {kind}; only real floating-point networks have a symmetry here")
        if tensor.numel() and tensor.device.type != "meta" and tensor.layout == torch.strided:
            start = tensor.data_ptr()
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            span = (start, start + (reach + 1) * tensor.element_size(), tensor_name)
            spans.setdefault(tensor.untyped_storage().data_ptr(), []).append(span)
    for group in spans.values():
        for (_, stop, one), (start, _, two) in zip(sorted(group), sorted(group)[1:], strict=False):
            if start < stop:
                raise UserError(
                    f"{name}: {one} and {two} share memory but are not one tensor, so that permuting one would spoil "
                    "the other; clone one of them, or assign the same Parameter to both"
                )
    for path, module in model.named_modules():
        if ".quantized" in type(module).__module__:
            raise UserError(f"{name}: module {path!r} is quantised; hand over the floating-point network")


def _placed(model: nn.Module, example: Example, name: str) -> Example:
    """The example, on the meta device if the model is; it must otherwise be where the model is."""
    if any(value.is_complex() or value.is_quantized for value in tensors(example)):
        raise UserError(f"{name}: the example is complex or quantised; only real inputs are supported")
    devices = {tensor.device for tensor in [*model.parameters(), *model.buffers()]}
    if devices == {torch.device("meta")}:
        return mapped(lambda value: value.to("meta"), example)
    for value in tensors(example):
        if devices and value.device not in devices:
            ours = ", ".join(sorted(map(str, devices)))
            raise UserError(f"{name} is on {ours}, the example on {value.device}; move one: example.to({ours!r})")
    return example


def _announce_evaluation(model: nn.Module, name: str) -> None:
    active = [path for path, m in model.named_modules() if m.training and isinstance(m, _DropoutNd) and m.p > 0]
    if active:
        log.warning(
            "%s is in training mode with dropout (%s); its symmetry is that in evaluation mode", name, active[0]
        )


def _refusal(model: nn.Module, name: str, example: Example, error: Exception) -> UserError:
    """The one line for a model that torch.export does not take."""
    args, kwargs = arguments(example)
    try:
        model(*args, **kwargs)
    except Exception as refused:
        return UserError(f"{name} does not accept {described(example)}: {_first_line(refused)}{_line_of(refused)}")
    return UserError(
        f"{name} cannot be traced by torch.export: {_first_line(error)}{_line_of(error)}; "
        "remove control flow that depends on the values of tensors"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _line_of(error: BaseException | None) -> str:
    """The innermost line of the user's own code in the history of an error, in brackets; nothing if there is none."""
    ours = str(Path(__file__).parent)
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if not frame.filename.startswith((_TORCH, ours, "<"))]
        own = [frame for frame in own if f"{Path('torch')}/" not in frame.filename]
        if own:
            return f" (File {own[-1].filename}, line {own[-1].lineno}, in {own[-1].name}: {own[-1].line})"
        error = error.__cause__ or error.__context__
    return ""


def _check_certain(module: fx.GraphModule, name: str) -> None:
    """Refuse a network that draws random numbers even in evaluation mode."""
    for node in module.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            continue
        operator = schema.name.rpartition("::")[2].rstrip("_")
        train = [place for place, entry in enumerate(schema.arguments) if entry.name == "train"]
        drops = operator.endswith("dropout") and train and len(node.args) > train[0] and node.args[train[0]]
        if (drops and node.args[1] != 0) or operator in _RANDOM:
            raise UserError(
                f"{name} is random in evaluation mode too: {operator} ({origin(node)}); "
                "let it depend on self.training, or set its probability to 0"
            )
