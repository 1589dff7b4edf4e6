"""Values that are the same all along a dimension, whatever the weights: any order of it is the same order.

Such a value (a tensor of zeros that several layers add) ties nothing together: wherever it is used, the dimension gets
a label of its own.
"""

from torch import fx

from lmc.symmetry.rules.creation import filled
from lmc.symmetry.rules.pointwise import one_operand, several_operands
from lmc.symmetry.rules.registry import RULES, Values, shape_of
from lmc.symmetry.rules.shape import expand, reshape


def uniform_dims(values: Values, node: fx.Node) -> frozenset[int]:
    """Return the dimensions along which all positions of what `node` computes are equal."""
    rule, shape = RULES.get(node.target), shape_of(node)
    operands = [used for used in node.all_input_nodes if shape_of(used)]
    if rule not in (filled, one_operand, several_operands, expand, reshape) or is_written(node):
        return frozenset()
    if rule is reshape:
        return _reshaped(values, operands[0], shape)
    if rule is filled:
        return frozenset(range(len(shape)))
    if rule is expand:
        operands = operands[:1]  # the other of expand_as gives nothing but its shape
    return frozenset(
        dim
        for dim in range(len(shape))
        if all(_is_uniform(values, used, dim - len(shape) + len(shape_of(used))) for used in operands)
    )


def _reshaped(values: Values, source: fx.Node, shape: tuple[int, ...]) -> frozenset[int]:
    """Dimensions of size one come and go; any other reshape keeps only what is the same everywhere."""
    old, new = ([dim for dim, n in enumerate(sizes) if n > 1] for sizes in (shape_of(source), shape))
    if [shape_of(source)[dim] for dim in old] == [shape[dim] for dim in new]:
        return frozenset(after for before, after in zip(old, new, strict=True) if before in values.uniform(source))
    return frozenset(new) if values.uniform(source).issuperset(old) else frozenset()


def _is_uniform(values: Values, node: fx.Node, dim: int) -> bool:
    return dim < 0 or shape_of(node)[dim] == 1 or dim in values.uniform(node)


def is_written(node: fx.Node) -> bool:
    """Whether some operator may write into the value of `node`, or into a view of it: what is in it then is unknown."""
    return any(_writes(user, node) for user in node.users if user.op != "output")


def _writes(user: fx.Node, node: fx.Node) -> bool:
    schema = getattr(user.target, "_schema", None)
    if schema is None:
        return True  # a branch or loop, which may do anything
    for number, argument in enumerate(schema.arguments):
        given = user.args[number] if number < len(user.args) else user.kwargs.get(argument.name)
        if given is node and argument.alias_info and (argument.alias_info.is_write or is_written(user)):
            return True
    return False
