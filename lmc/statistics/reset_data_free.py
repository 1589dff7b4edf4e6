"""BatchNorm statistics of the merged network from those of its ends, without data."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from lmc.dataset.images import Dataset
from lmc.state import State, to_device
from lmc.statistics.base import Correction
from lmc.statistics.forward import tie
from lmc.statistics.moments import wide
from lmc.statistics.renormalise import check_weights
from lmc.statistics.reset import batch_norms
from lmc.symmetry.structure import Symmetry


@dataclass(frozen=True, kw_only=True)
class ResetDataFree:
    """Set the running statistics of every BatchNorm of the merged network to what those of its ends let expect.

    What enters a BatchNorm of the merged network is taken to be the interpolation of what enters it in the ends, and
    the answers of any two matched units to have one correlation c, the same for all units:
        running_mean = sum_i w_i mean_i
        running_var = c (sum_i w_i sd_i)^2 + (1 - c) sum_i (w_i sd_i)^2
    On a line the variance is (1-a)^2 sd_0^2 + a^2 sd_1^2 + 2 a (1-a) c sd_0 sd_1, the closed form of `repair` (Jordan
    et al. 2023), where c is measured; with c = 1 it is ((1-a) sd_0 + a sd_1)^2. At the ends the networks are untouched,
    whatever c is. The interpolated variance that a merged network has otherwise is never smaller than this
    one: it leaves the collapse of the variance as it is. A network without BatchNorm stays as it is.

    The notebooks of Qu and Horvath (2024) have a "data-independent" reset of another kind, which is not a state of the
    network: they measure in training mode, so that each test batch is normalised by its own statistics.

    Args:
        correlation: c. 0.4 is what Jordan et al. report of aligned networks; with 1, matched units are taken for copies
            of each other and nothing is foreseen to collapse.
    """

    correlation: Annotated[float, Field(ge=0, le=1)] = 0.4

    def bind(self, model: nn.Module, symmetry: Symmetry, ends: Sequence[State], dataset: Dataset) -> Correction:
        """Return the correction; no network is run and no image is read."""
        device = dataset.train.images.device
        norms = batch_norms(model)

        def correct(merged: State, weights: Sequence[float]) -> State:
            check_weights(weights, ends)
            found = to_device(merged, device)
            for name in norms:
                mean, variance = f"{name}.running_mean", f"{name}.running_var"
                means = torch.stack([wide(end[mean].to(device)) for end in ends])
                deviations = torch.stack([wide(end[variance].to(device)) for end in ends]).sqrt()
                share = torch.tensor(weights, dtype=means.dtype, device=means.device).view(-1, 1)
                alike, unlike = (share * deviations).sum(0).square(), (share * deviations).square().sum(0)
                expected = self.correlation * alike + (1 - self.correlation) * unlike
                found[mean] = torch.empty_like(found[mean]).copy_((share * means).sum(0))
                found[variance] = torch.empty_like(found[variance]).copy_(expected)
            return tie(model, found)

        return correct
