"""What an attack is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

Logits = Callable[[Tensor], Tensor]
"""A network with its normalisation inside: images (B, C, H, W) float32 in [0, 1] to logits (B, classes), float32."""


@runtime_checkable
class Attack(Protocol):
    """An attack on the classification of images."""

    def __call__(self, network: Logits, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Return changed copies of `images` that `network` classifies worse; nothing that is handed in is changed.

        No gradient is left in, or computed for, the parameters of the network. Whether it is in training or in
        evaluation mode is the caller's choice.

        Args:
            network: as `Logits`, differentiable.
            images: (B, C, H, W) float32 in [0, 1], not normalised.
            labels: (B,) int64, the true classes.
            generator: where the numbers are drawn; on the CPU or on the device of `images`.

        Returns:
            (B, C, H, W) float32 in [0, 1], detached, in the memory format of `images`.
        """
        ...


@contextmanager
def kept_statistics(module: nn.Module) -> Iterator[None]:
    """Let the layers of `module` that are in training mode use the statistics of the minibatch but record none."""
    tracking = [m for m in module.modules() if isinstance(m, _NormBase) and m.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
