"""Recurrent layers: all gates of a unit, and its state, move together."""

from collections.abc import Sequence
from typing import Any

from torch import fx

from lmc.symmetry import labels
from lmc.symmetry.labels import Label
from lmc.symmetry.rules.registry import Labels, Unproved, Values, argument, aten, join, keep, rule

_GATES: dict[Any, int] = {aten.lstm.input: 4, aten.gru.input: 3, aten.rnn_tanh.input: 1, aten.rnn_relu.input: 1}


@rule(*_GATES)
def _recurrent(values: Values, node: fx.Node) -> list[Labels]:
    """Weights (gates x H, inputs) and (gates x H, H) for every layer and direction; states (layers x directions, N, H).

    The outputs of the two directions are concatenated.
    """
    x = values[node.args[0]]
    hidden = argument(node, "hx")
    states = [values[each] for each in (hidden if isinstance(hidden, (list, tuple)) else [hidden])]
    tensors = [values[each] for each in argument(node, "params")]
    each = 4 if argument(node, "has_biases") else 2
    directions = 2 if argument(node, "bidirectional") else 1
    layers = int(argument(node, "num_layers"))
    if len(tensors) != each * directions * layers:
        raise Unproved("a recurrent layer with a projection")
    keep(node, *x[:-1])
    below, units = x[-1], list[Label]()
    for layer in range(layers):
        found: list[Label] = []
        for direction in range(directions):
            place = layer * directions + direction
            found.append(_layer(below, tensors[each * place : each * (place + 1)], _GATES[node.target]))
            for state in states:
                _, where = labels.take(state[0], place, place + 1)
                labels.tie(labels.at(state[-1], where), found[-1])
        units += found
        below = tuple(segment for label in found for segment in label)
    if any(user.args[1] != 0 and user.users for user in node.users):  # the last states, one behind the other
        for label in units[1:]:
            labels.tie(units[0], label)
    last = (labels.fixed(len(units), "order of the layers"), x[0], units[0])
    return [(*x[:-1], below), *(last for _ in states)]


def _layer(below: Label, tensors: Sequence[Labels], gates: int) -> Label:
    """One layer in one direction; return the label of its units."""
    from_input, from_state, *biases = tensors
    units = labels.free(labels.size(from_input[0]) // gates)
    whole = labels.product([labels.fixed(gates, "order of the gates of a recurrent layer"), units])
    for tensor in (from_input, from_state, *biases):
        labels.tie(tensor[0], whole)
    join("i,i->i", (below,), from_input[1:])
    join("i,i->i", (units,), from_state[1:])
    return units
