"""The barrier between two networks in one call, for use as a library."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from lmc.evaluation.measure import measure
from lmc.evaluation.path import equal_grid
from lmc.results import path_statistics
from lmc.state import interpolate, to_device
from lmc.statistics.reset import recompute


def barrier(
    model: nn.Module,
    fixed: Mapping[str, Tensor],
    moving: Mapping[str, Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    points: int = 25,
) -> dict[str, dict[str, float]]:
    """Measure the straight line from `fixed` to `moving`; return its barriers for the loss and for the error.

    The networks are compared as they are: align `moving` first. BatchNorm statistics are recomputed over the inputs of
    `batches` at every point, the ends included, since those of a merged network are stale.

    Args:
        model: the architecture; left as it was.
        fixed: tensors of the network at t = 0; the work is done on their device.
        moving: tensors of the network at t = 1.
        batches: (inputs (B, ...), labels (B,) int64), a list or DataLoader: it is gone through at every point.
        points: equally spaced values of t, an odd number, at least 3.

    Returns:
        {"loss": ..., "error": ...}: for each, all of `lmc.results.path_statistics` (loss in nats, error as fraction).

    Raises:
        UserError: `points` is even or less than 3, or `batches` holds no example.
    """
    device = next(iter(fixed.values())).device
    inputs = _Inputs(batches, device)
    grid, losses, errors = equal_grid(points), [], []
    for t in grid:
        merged = interpolate(fixed, to_device(moving, device), t)
        found = measure(model, recompute(model, merged, inputs), batches)
        losses.append(found.loss)
        errors.append(1 - found.accuracy)
    return {"loss": path_statistics(grid, losses), "error": path_statistics(grid, errors)}


class _Inputs:
    """The inputs of labelled batches, on one device; can be iterated as often as the batches can."""

    def __init__(self, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[Tensor]:
        for inputs, _ in self.batches:
            yield inputs.to(self.device)
