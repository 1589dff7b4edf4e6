"""The order in which a network uses its tensors."""

from torch import nn

from lmc.symmetry.example import Example
from lmc.symmetry.trace import trace


def order_of_use(model: nn.Module, example: Example) -> list[str]:
    """Return the names of the tensors that the network uses, in the order of their first use; it is traced again.

    Raises:
        UserError: the network cannot be traced.
    """
    traced = trace(model, example)
    found: dict[str, None] = {}
    for node in traced.module.graph.nodes:
        for used in node.all_input_nodes:
            if used.name in traced.tensors:
                found.setdefault(traced.tensors[used.name])
    return list(found)
