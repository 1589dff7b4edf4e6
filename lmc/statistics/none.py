"""Measure the merged network as it is."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lmc.dataset.images import Dataset
from lmc.state import State
from lmc.statistics.base import Correction
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True, kw_only=True)
class NoCorrection:
    """Leave everything as interpolated, BatchNorm's running statistics included (they are then stale)."""

    def bind(self, model: nn.Module, symmetry: Symmetry, ends: Sequence[State], dataset: Dataset) -> Correction:
        """Return the correction that copies the dict of tensors and changes none."""
        return lambda merged, weights: dict(merged)
