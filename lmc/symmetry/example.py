"""What a network is traced on: one input, several, or keyword arguments."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lmc.errors import UserError

Example = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
"""One input of a network, a tuple of its positional inputs, or a mapping of its keyword arguments."""


def arguments(example: Example) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Return positional and keyword arguments.

    Raises:
        UserError: something in the example is no tensor.
    """
    args: tuple[Tensor, ...] = ()
    kwargs: dict[str, Tensor] = {}
    if isinstance(example, Mapping):
        kwargs = dict(example)
    else:
        args = (example,) if isinstance(example, Tensor) else tuple(example)
    for value in (*args, *kwargs.values()):
        if not isinstance(value, Tensor):
            raise UserError(
                f"the example holds a {type(value).__name__} where a tensor is expected; "
                "hand over tensors and set everything else in the model"
            )
    return args, kwargs


def tensors(example: Example) -> tuple[Tensor, ...]:
    """Return the tensors of an example, positional ones first."""
    args, kwargs = arguments(example)
    return (*args, *kwargs.values())


def mapped(function: Callable[[Tensor], Tensor], example: Example) -> Example:
    """Return an example of the same form with `function` of every tensor."""
    args, kwargs = arguments(example)
    if isinstance(example, Mapping):
        return {name: function(value) for name, value in kwargs.items()}
    return function(args[0]) if isinstance(example, Tensor) else tuple(function(value) for value in args)


def described(example: Example) -> str:
    """Return the shapes in words, for messages."""
    args, kwargs = arguments(example)
    shapes: list[Any] = [str(tuple(value.shape)) for value in args]
    shapes += [f"{name}={tuple(value.shape)}" for name, value in kwargs.items()]
    return "an input of shape " + shapes[0] if len(shapes) == 1 else "inputs of shapes " + ", ".join(shapes)


def random_like(example: Example, generator: torch.Generator) -> Example:
    """Return random inputs: normal float64 for floating ones; others are the example's own (token ids, masks)."""

    def draw(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.device)

    return mapped(draw, example)
