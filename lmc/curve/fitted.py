"""What the curves with trained inner points have in common: storage, training, files, and the path."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor

from lmc.curve.bends import BendsTrainable
from lmc.curve.points import BENDS_FILE, PointsPath, read_points, write_points
from lmc.curve.trained import Ends, Fit, TrainedCurve

__all__ = ["BENDS_FILE", "Fitted"]


@dataclass(frozen=True, kw_only=True)
class Fitted(TrainedCurve):
    """A curve phi(t) = sum_i w_i(t) P_i through control points: P_0 fixed, P_1 .. P_bends trained, then moving.

    Only the parameters that require gradients bend; everything else stays on the straight line. The inner points start
    evenly spaced on the line, which makes phi the line itself. One t, uniform on [0, 1], is drawn for each minibatch
    (Garipov et al. 2018, Eq. 2).

    Args:
        training: how the inner points are trained.
        bends: number of inner control points.
        decay_on_sample: True: weight decay is that of the sampled network, 0.5 * weight_decay * ||phi(t)||^2 (Garipov,
            Tatro); False: the optimiser decays the inner points themselves.
    """

    bends: PositiveInt = 1
    decay_on_sample: bool = True

    @abstractmethod
    def weights(self, t: float) -> list[float]:
        """Return w_i(t), i = 0 .. bends + 1: non-negative, their sum 1, at t = 0 and 1 exactly one of them 1."""

    @abstractmethod
    def arc_length(self, gram: NDArray[np.float64], grid: Sequence[float]) -> list[float]:
        """Return the length from 0 to each t of `grid`.

        Args:
            gram: (bends + 1, bends + 1), inner products of the differences P_{i+1} - P_i.
            grid: positions in [0, 1], in any order.
        """

    def train(self, ends: Ends, fit: Fit) -> None:
        """Train the inner points. The train_loss of the history is the mean over the drawn t, without weight decay."""
        trainable = BendsTrainable(
            fit.model,
            *ends,
            weights=self.weights,
            bends=self.bends,
            decay=self.training.weight_decay if self.decay_on_sample else None,
            channels_last=self.training.channels_last,
        )
        fit.run(trainable, self.training)
        write_points(trainable.points(), fit.folder)

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> PointsPath:
        """Return the path through the inner points that `fit` wrote into `folder`.

        Raises:
            UserError: the file is missing or damaged, holds another number of bends, or is of another architecture.
            ValueError: no folder is given.
        """
        return PointsPath(self, fixed, moving, read_points(folder, fixed, moving, self.bends, "curve.bends"))
