"""What is asked of a source, and what it gives."""

import math
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmc import seeding
from lmc.errors import UserError
from lmc.state import check_fits
from lmc.symmetry.example import Example

_DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "int64", "int32", "bool")}


@dataclass(frozen=True)
class Input:
    """The input that a user asks for: `shape` with its batch dimension; `dtype` None for the source's own."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None

    @classmethod
    def parse(cls, text: str) -> "Input":
        """Read "1,3,224,224" or "1,16:int64".

        Raises:
            ValueError: it is neither.
        """
        found = re.fullmatch(r"(\d+(?:[,x]\d+)*)(?::(\w+))?", text.replace(" ", ""))
        if not found or (found[2] and found[2] not in _DTYPES):
            raise ValueError(f"{text!r} is no shape; write 1,3,224,224 or, for token numbers, 1,16:int64")
        shape = tuple(int(size) for size in re.split("[,x]", found[1]))
        if not math.prod(shape):
            raise ValueError(f"{text!r} has a dimension of size 0")
        return cls(shape, _DTYPES[found[2]] if found[2] else None)

    def draw(self, generator: torch.Generator, below: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return normal numbers, or whole numbers from 0 to below `below`; `dtype` where the user names none."""
        wanted = self.dtype or dtype
        if wanted.is_floating_point:
            return torch.randn(self.shape, generator=generator).to(wanted)
        return torch.randint(below, self.shape, generator=generator).to(wanted)


@dataclass(frozen=True)
class Request:
    """A network that a user names.

    Attributes:
        spec: as it is written: "torchvision:resnet50".
        settings: arguments of its builder.
        input: the shape that the user asks for; None for the source's own.
        seed: of its random weights and of the example.
        meta: shapes alone, no weights.
    """

    spec: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    input: Input | None = None
    seed: int = 0
    meta: bool = False

    @property
    def name(self) -> str:
        """The network's name without the prefix of its source."""
        return self.spec.partition(":")[2] or self.spec

    def generator(self) -> torch.Generator:
        """Return the generator of the example."""
        return seeding.generator(self.seed, "inspection", "example")

    def image(self, *shape: int) -> Tensor:
        """Return the example as the user asks for it, else normal numbers of `shape`."""
        return (self.input or Input(shape)).draw(self.generator())

    def make(self, builder: Callable[..., Any], *arguments: Any) -> nn.Module:
        """Call `builder` with `arguments` and the user's settings; the same seed gives the same weights.

        Raises:
            UserError: the builder fails, or it returns no module.
        """
        try:
            with warnings.catch_warnings(), seeding.isolated(self.seed, "inspection", "weights"):
                warnings.simplefilter("ignore")  # of the libraries about their own arguments
                model = self._called(builder, arguments)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.spec} cannot be built: {first_line(error)}") from error
        if not isinstance(model, nn.Module):
            raise UserError(f"{self.spec} gives a {type(model).__name__}, not a torch.nn.Module")
        return model

    def _called(self, builder: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self.meta:
            with suppress(NotImplementedError), torch.device("meta"):
                return builder(*arguments, **self.settings)
            # RegNet, for one, computes its widths with tensors, which have no numbers on the meta device: such a
            # network is built with its weights, and loses them afterwards.
        with torch.device("cpu"):
            return builder(*arguments, **self.settings)


@dataclass(frozen=True)
class Network:
    """A network with an input that it accepts.

    Attributes:
        spec: what the user calls it.
        model: with random weights, or the user's own.
        example: one input (a tensor, several, or keyword arguments); on the "meta" device where there are no weights.
    """

    spec: str
    model: nn.Module
    example: Example

    @property
    def is_meta(self) -> bool:
        """Whether there are shapes alone, so that nothing can be run."""
        return any(tensor.is_meta for tensor in self.model.state_dict().values())

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def input_text(self) -> str:
        """The example in words: "(1, 3, 224, 224) float32"."""
        if isinstance(self.example, Mapping):
            return ", ".join(f"{name} {_shape(tensor)}" for name, tensor in self.example.items())
        tensors = (self.example,) if isinstance(self.example, Tensor) else self.example
        return ", ".join(_shape(tensor) for tensor in tensors)

    def load(self, state: Mapping[str, Tensor], origin: str) -> None:
        """Give the network the weights in `state`.

        Raises:
            UserError: they are of another architecture.
        """
        check_fits(state, self.model.state_dict(), origin)
        self.model.load_state_dict(dict(state))


def first_line(error: BaseException) -> str:
    """Return the error's type and the first line of its text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))}) {str(tensor.dtype).removeprefix('torch.')}"
