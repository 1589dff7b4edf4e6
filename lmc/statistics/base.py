"""What every option of this group is: something done to a merged network before it is measured."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import nn

from lmc.dataset.images import Dataset
from lmc.state import State
from lmc.symmetry.structure import Symmetry

Correction = Callable[[State, Sequence[float]], State]
"""(merged network, convex weights of the ends it was merged from) -> corrected network, a new state."""


class Statistics(Protocol):
    """A correction that is still to be bound to the networks whose merger it corrects."""

    def bind(self, model: nn.Module, symmetry: Symmetry, ends: Sequence[State], dataset: Dataset) -> Correction:
        """Return the correction for mergers of `ends`; what it needs to know of the ends is measured here, once.

        Args:
            model: the architecture; its own tensors do not matter and nothing of it is changed.
            symmetry: its permutation symmetry; tells hidden units from outputs.
            ends: the networks as they are merged, that is, already aligned.
            dataset: the training images are read, on their device; `ends` and what the
                correction is called with may lie elsewhere, the corrected network is on the device of the dataset.
        """
        ...
