"""REPAIR: mean and standard deviation of the merged network's pre-activations set to those of its ends."""

from dataclasses import dataclass

from torch import Tensor

from lmc.statistics.moments import Moments
from lmc.statistics.renormalise import Goal, Renormalisation, gain


@dataclass(frozen=True, kw_only=True)
class Repair(Renormalisation):
    """Undo the collapse of variance in a merged network (Jordan et al. 2023, REPAIR).

    Every hidden linear or convolutional layer with a bias is corrected to
        y' = (y - mean) * goal_sd / sd + goal_mean,  goal_mean = sum_i w_i mean_i,  goal_sd = sum_i w_i sd_i
    for each channel; the correction is folded into its weight and bias. BatchNorm layers are reset in the same pass,
    which is REPAIR for the layers before them (see `renormalise`). Hidden layers with neither a bias nor a BatchNorm
    behind them stay as merged: a shift cannot be folded into them (`rescale` can correct those).
    """

    needs_bias = True

    @staticmethod
    def rule(measured: Moments, goal: Goal) -> tuple[Tensor, Tensor]:
        """Return the gain and the offset that give the goal's deviation and the goal's mean."""
        factor = gain(measured, goal)
        return factor, goal.mean - factor * measured.mean
