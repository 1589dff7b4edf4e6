"""What the curves with trained inner points have in common: storage, training, files, and the path."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor, nn

from lmc.curve.bends import BendsTrainable
from lmc.curve.points import BENDS_FILE, PointsPath, read_points, write_points
from lmc.dataset.images import Dataset
from lmc.seeding import derive
from lmc.state import check_fits, to_device
from lmc.training.loop import fit
from lmc.training.recipe import Training

__all__ = ["BENDS_FILE", "Fitted"]


@dataclass(frozen=True, kw_only=True)
class Fitted(ABC):
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

    training: Training
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

    def fit(
        self,
        model: nn.Module,
        fixed: Mapping[str, Tensor],
        moving: Mapping[str, Tensor],
        dataset: Dataset,
        *,
        seed: int,
        folder: FilePath,
        on_epoch: Callable[[Mapping[str, float]], None],
    ) -> None:
        """Train the inner points; write bends.safetensors (tensors "bend1.<name>", ...) and history.jsonl.

        BatchNorm works with the statistics of the minibatch, and its running statistics are thrown away. A killed fit
        goes on from its last epoch (`lmc.training.loop.fit`). The train_loss of the history is the mean over the drawn
        t, without weight decay.

        Args:
            model: the architecture; it is not changed.
            fixed: the network at t = 0.
            moving: the network at t = 1.
            dataset: images in memory; their device is where everything is computed.
            seed: of the order of the images, their augmentation and t.
            folder: where the files are written; made if absent.
            on_epoch: called after every epoch with its record.

        Raises:
            UserError: the networks are of another architecture, or the training fails.
        """
        expected = model.state_dict()
        check_fits(fixed, expected, "the fixed network")
        check_fits(moving, expected, "the moving network")
        device = dataset.train.images.device
        trainable = BendsTrainable(
            model,
            to_device(fixed, device),
            to_device(moving, device),
            weights=self.weights,
            bends=self.bends,
            decay=self.training.weight_decay if self.decay_on_sample else None,
            channels_last=self.training.channels_last,
        )
        fit(
            model,
            trainable,
            dataset,
            self.training,
            seed=derive(seed, "curve"),
            folder=folder,
            on_epoch=on_epoch,
        )
        write_points(trainable.points(), folder)

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> PointsPath:
        """Return the path through the inner points that `fit` wrote into `folder`.

        Raises:
            UserError: the file is missing or damaged, holds another number of bends, or is of another architecture.
            ValueError: no folder is given.
        """
        return PointsPath(self, fixed, moving, read_points(folder, fixed, moving, self.bends, "curve.bends"))
