"""What the curves with trained inner points have in common: storage, training, files, and the path."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path as FilePath

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt
from torch import Tensor, nn

from lmc.curve.bends import BendsTrainable
from lmc.curve.linear import on_line
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import derive
from lmc.state import State, check_fits, load, save, to_device
from lmc.training.loop import fit
from lmc.training.recipe import Training

BENDS_FILE = "bends.safetensors"


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
        points = enumerate(trainable.points(), 1)
        save({f"bend{i}.{name}": tensor for i, point in points for name, tensor in point.items()}, folder / BENDS_FILE)

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> "FittedPath":
        """Return the path through the inner points that `fit` wrote into `folder`.

        Raises:
            UserError: the file is missing or damaged, holds another number of bends, or is of another architecture.
            ValueError: no folder is given.
        """
        if folder is None:
            raise ValueError("a fitted curve needs the folder of its bends")
        check_fits(moving, fixed, "the moving network")
        file = folder / BENDS_FILE
        points: list[State] = [{} for _ in range(self.bends)]
        for name, tensor in load(file).items():
            number, _, inner = name.removeprefix("bend").partition(".")
            if not number.isdecimal() or not 1 <= int(number) <= self.bends:
                raise UserError(
                    f"{file} holds {name!r}, but the curve has {self.bends} bends; set curve.bends to match"
                )
            if inner not in fixed:
                raise UserError(f"{file} is of another architecture: the networks have no tensor {inner!r}")
            points[int(number) - 1][inner] = tensor.to(fixed[inner].device)
        for index, point in enumerate(points, 1):
            check_fits(point, {name: fixed[name] for name in points[0]}, f"{file}, bend {index},")
        return FittedPath(self, fixed, moving, points)


class FittedPath:
    """A curve between two networks; a `Path`.

    Args:
        curve: whose weights combine the control points.
        fixed: the network at t = 0.
        moving: the network at t = 1.
        points: the inner control points in order, each with the tensors that bend.
    """

    def __init__(
        self, curve: Fitted, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], points: Sequence[State]
    ) -> None:
        self._curve, self._fixed, self._moving, self._points = curve, fixed, moving, points

    def state(self, t: float) -> State:
        """Return the network at `t` (see `Path.state`)."""
        state = on_line(self._fixed, self._moving, t)
        if t in (0, 1):
            return state
        weights = self._curve.weights(t)
        for name in self._points[0]:
            controls = (self._fixed[name], *(point[name] for point in self._points), self._moving[name])
            state[name] = _combine(weights, controls)
        return state

    def distance(self, grid: Sequence[float]) -> list[float]:
        """Return the lengths (see `Path.distance`)."""
        return self._curve.arc_length(self._gram, grid)

    @cached_property
    def _gram(self) -> NDArray[np.float64]:
        gram = torch.zeros(len(self._points) + 1, len(self._points) + 1, dtype=torch.float64)
        for name in self._points[0]:
            controls = (self._fixed[name], *(point[name] for point in self._points), self._moving[name])
            steps = torch.stack([control.double().flatten() for control in controls]).diff(dim=0)
            gram += (steps @ steps.T).cpu()
        return gram.numpy()


def _combine(weights: Sequence[float], controls: Sequence[Tensor]) -> Tensor:
    """sum_i weights[i] * controls[i]; a weight of 0 adds nothing, so that a control point alone comes out unchanged."""
    terms = [(weight, control) for weight, control in zip(weights, controls, strict=True) if weight != 0]
    total = terms[0][1] * terms[0][0]
    for weight, control in terms[1:]:
        total.add_(control, alpha=weight)
    return total
