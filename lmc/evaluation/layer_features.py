"""The features of every layer of several networks, and what their layers make of each other's features."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from lmc.errors import UserError
from lmc.symmetry.rules import overloads
from lmc.symmetry.rules.contraction import summed_over
from lmc.symmetry.rules.pointwise import NONLINEARITIES
from lmc.symmetry.trace import Trace, trace

_NONLINEAR = frozenset(overloads(*NONLINEARITIES))
PROBED = 3
"""Images with which it is found out along which dimension of a value the examples lie."""

Kind = Literal["pre", "post"]


@dataclass(frozen=True)
class Layer:
    """A linear map with a learned matrix, as an operator of the traced graph.

    Attributes:
        name: of the module that the matrix belongs to; with a number if it is used several times.
        node: the operator.
        features: what it reads.
        matrix: what it multiplies that with.
    """

    name: str
    node: fx.Node
    features: fx.Node
    matrix: fx.Node

    def apply(self, features: Tensor, matrix: Tensor, values: Mapping[fx.Node, Tensor]) -> Tensor:
        """Return what the matrix of one network makes of the features of another, without any bias."""
        chosen = {self.features: features, self.matrix: matrix}

        def value(node: fx.Node) -> Tensor:
            return chosen[node] if node in chosen else torch.zeros_like(values[node])

        made: Tensor = self.node.target(*map_arg(self.node.args, value), **map_arg(self.node.kwargs, value))  # type: ignore[operator]
        return made


@dataclass(frozen=True)
class Place:
    """A value of the network whose features are compared.

    Attributes:
        layer: the layer that it comes from: of the output of a nonlinearity, the last one in front of it.
        kind: "pre", what a layer makes, or "post", the output of a nonlinearity.
        node: the name of the value.
        dim: along which the examples lie.
        outer: how many positions of the dimension come to one example; the examples lie inside them.
    """

    layer: str
    kind: Kind
    node: str
    dim: int
    outer: int

    def rows(self, value: Tensor, examples: int) -> Tensor:
        """Return (examples, everything else)."""
        return _by_example(value, self.dim, self.outer, examples).flatten(1)


@dataclass(frozen=True)
class Features:
    """What networks have at one place.

    Attributes:
        place: where.
        values: (examples, everything else) of each network.
    """

    place: Place
    values: list[Tensor]


@dataclass(frozen=True)
class Crossing:
    """What the matrices of two networks make of the features of either.

    Attributes:
        layer: whose matrices.
        features: H_0 and H_1, what the layer reads.
        matrices: W_0 and W_1.
        products: products[i][j] is W_i H_j, without a bias.
    """

    layer: Layer
    features: list[Tensor]
    matrices: list[Tensor]
    products: list[list[Tensor]]


class Observer:
    """Finds the layers and the places of one architecture; the model itself is never run and never changed.

    Layers are the contractions of the traced graph (linear layers, convolutions, matrix products) of which one operand
    depends on the images and the other on learned tensors alone: those inside packed attention, with tied tensors, or
    with a matrix that is computed from tensors are among them; the products of attention itself are not. Places are
    what these layers make, and the outputs of all nonlinearities. Hooks on modules would miss operators that are called
    as functions, and modules whose tensors are read by others.

    Args:
        model: the architecture.
        state: float32 tensors of it, with which it is found out where the examples lie.
        images: a batch of at least three different ones, on the device of `state`.

    Raises:
        UserError: the network has no such layer, there are fewer images, or the examples cannot be told apart in a
            value.
    """

    def __init__(self, model: nn.Module, state: Mapping[str, Tensor], images: Tensor) -> None:
        self._model = model
        self._traces: dict[tuple[int, ...], Trace] = {}
        few = images[:PROBED]
        if len(few) < PROBED:
            raise UserError(
                f"features are compared on at least {PROBED} images, and there are {len(few)}; use a larger dataset"
            )
        traced = self._trace(few)
        layers = _layers(traced)
        if not layers:
            raise UserError(
                f"{type(model).__name__} has no layer with a learned matrix, so there are no features to compare; "
                "choose another architecture or leave this analysis out"
            )
        self.layers = tuple(layer.name for layer in layers.values())
        """The names of the layers, in the order of the network."""
        self.places = tuple(_placed(traced, layers, state, few))
        """Every place, in the order of the network."""

    def _trace(self, images: Tensor) -> Trace:
        shape = tuple(images.shape)
        if shape not in self._traces:
            self._traces[shape] = trace(self._model, torch.zeros(shape, dtype=images.dtype, device=images.device))
        return self._traces[shape]

    @torch.inference_mode()
    def __call__(self, states: Sequence[Mapping[str, Tensor]], images: Tensor) -> Iterator[Features | Crossing]:
        """Run networks side by side on the same images.

        Args:
            states: float32 networks of the architecture, on the device of `images`; at least two.
            images: (batch, ...) inputs; the graph is traced once for each batch shape.

        Yields:
            In the order of the network, the features of all networks at each place, and of each layer what the first
            two networks make of each other's features. To be used before the next is asked for: networks may write
            over their own values.
        """
        traced = self._trace(images)
        layers = _layers(traced)
        places = {place.node: place for place in self.places}
        last_use = {used: node for node in layers for used in node.all_input_nodes}
        held: dict[fx.Node, list[Tensor]] = {}
        for node, values in traced.run(states, images):
            if node in layers:
                yield _crossed(layers[node], held)
                for used in node.all_input_nodes:
                    if last_use[used] is node:
                        del held[used]
            if node in last_use:
                held[node] = values[:2]
            if node.name in places:
                place = places[node.name]
                yield Features(place, [place.rows(value, len(images)) for value in values])


def _crossed(layer: Layer, held: Mapping[fx.Node, list[Tensor]]) -> Crossing:
    features, matrices = held[layer.features], held[layer.matrix]
    beside = {node: values[0] for node, values in held.items()}
    products = [[layer.apply(one, matrix, beside) for one in features] for matrix in matrices]
    return Crossing(layer, features, matrices, products)


def _sources(traced: Trace) -> tuple[set[fx.Node], dict[fx.Node, str]]:
    """The values that depend on the images, and those that depend on learned tensors alone with the first of these."""
    seen, learned = set[fx.Node](), dict[fx.Node, str]()
    for node in traced.module.graph.nodes:
        if node.name in traced.inputs or seen.intersection(node.all_input_nodes):
            seen.add(node)
        elif node.name in traced.tensors:
            learned[node] = traced.tensors[node.name]
        elif sources := [learned[used] for used in node.all_input_nodes if used in learned]:
            learned[node] = sources[0]
    return seen, learned


def _layers(traced: Trace) -> dict[fx.Node, Layer]:
    """The contractions of features with what is learned, in order."""
    seen, learned = _sources(traced)
    found: dict[fx.Node, Layer] = {}
    taken: dict[str, int] = {}
    for node in traced.module.graph.nodes:
        operands = list(dict.fromkeys(operand for operand, _ in summed_over(node)))
        if len(operands) != 2 or len(seen.intersection(operands)) != 1 or len(learned.keys() & operands) != 1:
            continue
        features, matrix = sorted(operands, key=learned.__contains__)
        name = _numbered(learned[matrix].rpartition(".")[0] or learned[matrix], taken)
        found[node] = Layer(name, node, features, matrix)
    return found


def _numbered(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"


def _placed(
    traced: Trace, layers: Mapping[fx.Node, Layer], state: Mapping[str, Tensor], images: Tensor
) -> Iterator[Place]:
    """The places, with the dimension along which examples lie: the value moves along it if the images are rolled."""
    seen, _ = _sources(traced)
    layer, taken = "input", dict[str, int]()
    with torch.inference_mode():
        rolled = traced.run([state], images.roll(1, 0))
        for (node, (value,)), (_, (other,)) in zip(traced.run([state], images), rolled, strict=True):
            if node in layers:
                layer = layers[node].name
            elif node not in seen or node.target not in _NONLINEAR:
                continue
            found = _examples_lie(value, other, len(images))
            if found is None:
                raise UserError(
                    f"features behind {layer!r} ({node.name}) cannot be told apart by examples, or are not finite; "
                    "choose another architecture or leave this analysis out"
                )
            yield (
                Place(layer, "pre", node.name, *found)
                if node in layers
                else Place(_numbered(layer, taken), "post", node.name, *found)
            )


def _examples_lie(value: Tensor, rolled: Tensor, examples: int) -> tuple[int, int] | None:
    """The dimension along which a value moves with its examples, and how many positions lie around them."""
    tolerance = 1e-4 * value.abs().amax().item()
    for dim, size in enumerate(value.shape):
        for outer in (count for count in range(1, size // examples + 1) if size % (count * examples) == 0):
            one, other = (_by_example(each, dim, outer, examples) for each in (value, rolled))
            if torch.allclose(one.roll(1, 0), other, rtol=1e-4, atol=tolerance):
                return dim, outer
    return None


def _by_example(value: Tensor, dim: int, outer: int, examples: int) -> Tensor:
    """(examples, ...): the dimension is the product of what lies around the examples, them, and what lies inside."""
    return torch.unflatten(value, dim, (outer, examples, -1)).movedim(dim + 1, 0)
