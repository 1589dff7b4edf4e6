"""RESCALE: the standard deviation of the merged network's pre-activations set to that of its ends, and no shift."""

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
class Rescale:
    """Undo the collapse of variance by a factor alone (Qu and Horvath 2024, arXiv 2402.05966).

    Every hidden linear or convolutional layer is corrected to
        y' = y * goal_sd / sd,  goal_sd = sum_i w_i sd_i
    for each channel, folded into its weight and bias. The mean is neither kept nor set: it is multiplied by the same
    factor as everything else (`BatchScale2d` in the authors' code). They report 84.5 % against 64.6 % for REPAIR on
    plain VGG16 (CIFAR-10, weight matching). No bias is needed, so layers without one are corrected too; where a
    BatchNorm follows, it is reset in the same pass and undoes the factor.

    Args:
        examples: how many training images a pass takes, a fixed stratified subset; None: all.
        batch_size: images in a batch. Part of the key: while the moments of a layer are taken, the layers before it
            are corrected by batch, so the deeper ones depend on it a little.
    """

    examples: Annotated[int, Field(ge=2)] | None = None
    batch_size: Annotated[int, Field(ge=2)] = 512

    def bind(self, model: nn.Module, symmetry: Symmetry, ends: Sequence[State], dataset: Dataset) -> Correction:
        """Return the correction, after one pass over the images for every end; it makes one whenever it is called."""
        layers = renormalise.hidden_layers(model, symmetry, with_bias=False)
        return renormalise.bind(model, layers, ends, Calibration(dataset, self.examples, self.batch_size), rescale)


def rescale(measured: Moments, goal: Goal) -> tuple[Tensor, None]:
    """Return the gain that gives the goal's deviation, and no offset."""
    return renormalise.gain(measured, goal), None
