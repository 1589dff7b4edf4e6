"""REPAIR: mean and standard deviation of the merged network's pre-activations set to those of its ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from lmc.dataset.images import Dataset
from lmc.state import State
from lmc.statistics import renormalise
from lmc.statistics.base import Correction
from lmc.statistics.moments import Calibration, Moments
from lmc.statistics.renormalise import Goal
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True, kw_only=True)
class Repair:
    """Undo the collapse of variance in a merged network (Jordan et al. 2023, REPAIR).

    Every hidden linear or convolutional layer with a bias is corrected to
        y' = (y - mean) * goal_sd / sd + goal_mean,  goal_mean = sum_i w_i mean_i,  goal_sd = sum_i w_i sd_i
    for each channel; the correction is folded into its weight and bias. BatchNorm layers are reset in the same pass,
    which is REPAIR for the layers before them (see `renormalise`). Hidden layers with neither a bias nor a BatchNorm
    behind them stay as merged: a shift cannot be folded into them (`rescale` can correct those).

    Args:
        examples: how many training images a pass takes, a fixed stratified subset; None: all.
        batch_size: images in a batch. Part of the key: while the moments of a layer are taken, the layers before it
            are corrected by batch, so the deeper ones depend on it a little.
    """

    examples: Annotated[int, Field(ge=2)] | None = None
    batch_size: Annotated[int, Field(ge=2)] = 512

    def bind(self, model: nn.Module, symmetry: Symmetry, ends: Sequence[State], dataset: Dataset) -> Correction:
        """Return the correction, after one pass over the images for every end; it makes one whenever it is called."""
        layers = renormalise.hidden_layers(model, symmetry, with_bias=True)
        return renormalise.bind(model, layers, ends, Calibration(dataset, self.examples, self.batch_size), repair)


def repair(measured: Moments, goal: Goal) -> tuple[Tensor, Tensor]:
    """Return the gain and offset that give the goal's deviation and the goal's mean."""
    gain = renormalise.gain(measured, goal)
    return gain, goal.mean - gain * measured.mean
