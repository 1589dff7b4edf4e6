"""Chains that are short in the space of predictions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import log_softmax

from lmc.curve.bending import Bending
from lmc.curve.bends import straight_chain
from lmc.curve.chain import Chain
from lmc.curve.points import PointsPath, read_points, write_points
from lmc.curve.trained import Ends, Fit, TrainedCurve
from lmc.state import State
from lmc.training.trainable import Forward, Look


@dataclass(frozen=True, kw_only=True)
class Geodesic(TrainedCurve):
    """A chain of networks with the least sum of Jensen-Shannon divergences between the predictions of neighbours.

    With many points that is a discretised geodesic of the Fisher information, its points equally spaced in it (Tan et
    al. 2023). Labels are not used. The path is the chain of straight segments, each with the same share of t. A step
    sends one minibatch through all points and keeps what their gradients need: its time and its memory are those of so
    many plain steps.

    Args:
        training: how the inner points are trained; weight decay is the optimiser's.
        points: number of inner points; the paper takes 25 networks with the two ends.
    """

    draws_one_network: ClassVar[bool] = False

    points: PositiveInt = 23

    def train(self, ends: Ends, fit: Fit) -> None:
        """Train the inner points.

        The history holds the sum of the divergences as objective (nats); its train_loss is the mean over the points.
        """
        bending = Bending(fit.model, *ends, channels_last=self.training.channels_last)
        controls = straight_chain(bending.flatten(ends[0]), bending.flatten(ends[1]), self.points)
        trainable = GeodesicTrainable(bending, controls)
        fit.run(trainable, self.training)
        write_points(bending.points(trainable.parameters()[0]), fit.folder)

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> PointsPath:
        """Return the chain through the points that `fit` wrote into `folder`.

        Raises:
            UserError: the file is missing or damaged, holds another number of points, or is of another architecture.
            ValueError: no folder is given.
        """
        points = read_points(folder, fixed, moving, self.points, "curve.points")
        return PointsPath(Chain(self.points + 1), fixed, moving, points)


class GeodesicTrainable:
    """The inner points of a chain; a `lmc.training.trainable.Composite`.

    Args:
        bending: makes a network of a point.
        controls: (points + 2, P), the ends and between them the points to start from.
    """

    decay_on_sample = False

    def __init__(self, bending: Bending, controls: Tensor) -> None:
        self._bending, self._ends = bending, (controls[0].clone(), controls[-1].clone())
        self._leaf = controls[1:-1].detach().clone().requires_grad_()

    def parameters(self) -> list[Tensor]:
        """Return the one leaf, (points, P)."""
        return [self._leaf]

    def state(self, generator: torch.Generator) -> State:
        """Refuse: no single network stands for the chain.

        Raises:
            ValueError: always.
        """
        raise ValueError("a step of a geodesic looks at all its points")

    def tensors(self) -> State:
        """Return the leaf by its name in checkpoints."""
        return {"points": self._leaf}

    def validated(self) -> None:
        """Return None: no single network of the chain stands for it."""
        return

    def descend(self, network: Forward, images: Tensor, labels: Tensor, generator: torch.Generator) -> Look:
        """Leave the gradient of the sum of divergences (see `Composite.descend`)."""
        last = len(self._leaf) + 1
        with torch.no_grad():
            first, final = (network(self._bending.network(end, float(t)), images) for t, end in enumerate(self._ends))
        points = enumerate(self._leaf.unbind(0), 1)
        inner = [network(self._bending.network(point, index / last), images) for index, point in points]
        chain = torch.stack([first, *inner, final])
        objective = jensen_shannon(chain[:-1], chain[1:]).mean(1).sum()
        objective.backward()  # type: ignore[no-untyped-call] # torch has no annotation
        return Look.of(objective, chain[1:-1], labels)

    def stepped(self) -> None:
        """Do nothing: the points lie where the optimiser has put them."""


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergences (...,) in nats of the softmax of logits (..., classes), from 0 to ln 2."""
    p, q = log_softmax(first, -1), log_softmax(second, -1)
    middle = torch.logaddexp(p, q) - math.log(2)
    return 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1)
