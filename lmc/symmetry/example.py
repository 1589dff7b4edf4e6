"""What a network is traced on: one input, several, or keyword arguments."""

from collections.abc import Mapping

from torch import Tensor

Example = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
