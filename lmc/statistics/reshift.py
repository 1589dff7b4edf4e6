"""RESHIFT: the mean of the merged network's pre-activations set to that of its ends, and no rescaling."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lmc.statistics.moments import Moments
from lmc.statistics.renormalise import Goal, Renormalisation


@dataclass(frozen=True, kw_only=True)
class Reshift(Renormalisation):
    """Restore the means alone: the control for what the rescaling in REPAIR does (Qu and Horvath 2024, 2402.05966).

    Every hidden linear or convolutional layer with a bias is corrected to
        y' = y - mean + goal_mean,  goal_mean = sum_i w_i mean_i
    for each channel, folded into its bias; weights stay as merged. A layer on the network's input has the goal's mean
    already. The authors report 10.0 % for plain VGG16 (CIFAR-10, weight matching), where REPAIR has 67.4 % and RESCALE
    82.7 %: the variance stays collapsed. BatchNorm layers are reset in the same pass, which restores their variance
    too. Hidden layers with neither a bias nor a BatchNorm behind them stay as merged.
    """

    needs_bias = True

    @staticmethod
    def rule(measured: Moments, goal: Goal) -> tuple[Tensor, Tensor]:
        """Return a gain of 1 and the offset that gives the goal's mean."""
        return torch.ones_like(measured.mean), goal.mean - measured.mean
