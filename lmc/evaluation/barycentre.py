"""The barycentre of any number of aligned networks."""

from collections.abc import Sequence

from torch import nn

from lmc import state as tensors
from lmc.evaluation.measure import Measurement, Splits
from lmc.state import State
from lmc.statistics.base import Correction


def measure_barycentre(
    model: nn.Module, states: Sequence[State], correction: Correction, splits: Splits
) -> dict[str, Measurement]:
    """Return split ("train", "test") to the measurement of the mean of `states`.

    Args:
        model: the architecture; put back as it was.
        states: the networks, already aligned to each other.
        correction: bound to the same networks in the same order; called with equal weights.
        splits: what is measured on; `PathEvaluation.splits` makes it from a data set.
    """
    weights = [1 / len(states)] * len(states)
    return splits.measure(model, correction(tensors.mean(states), weights))
