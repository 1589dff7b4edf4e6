"""Simplices of networks with low loss, and the path through them."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from lmc.curve.bending import Bending
from lmc.curve.chain import Chain
from lmc.curve.complex import VertexTrainable, draw, gram_of, log_volumes, next_vertex
from lmc.curve.linear import on_line
from lmc.curve.points import PointsPath, combine, read_points, write_points
from lmc.curve.staged import clear_stages, shared_out
from lmc.curve.trained import Ends, Fit, TrainedCurve
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, mean
from lmc.training.recipe import NonNegative, Training


@dataclass(frozen=True, kw_only=True)
class Simplex(TrainedCurve):
    """Two simplices {fixed, v_1 .. v_k} and {moving, v_1 .. v_k} of networks with low loss (Benton et al. 2021, SPRO).

    The shared vertices are trained one after the other, each with the mean loss of some points of the complex so far,
    drawn uniformly, minus a multiple of the logarithm of its volume. A vertex starts near the mean of the others. The
    path goes straight to the mean of the shared vertices and straight on; with one vertex it is a polygonal chain.

    Args:
        training: how a vertex is trained; its epochs are shared out equally among the vertices, weight decay is the
            optimiser's.
        vertices: k, the dimension of the simplices.
        samples: points of the complex that a step looks at, with one minibatch.
        volume_weight: lambda, what the logarithm of the volume is multiplied by.

    Raises:
        UserError: the share of a vertex is shorter than the warm-up.
    """

    draws_one_network: ClassVar[bool] = False

    vertices: PositiveInt = 2
    samples: PositiveInt = 5
    volume_weight: NonNegative = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vertices < 1:
            raise UserError(f"curve.vertices={self.vertices}: a simplex needs at least 1 vertex that both ends share")
        if self.volume_weight < 0:
            raise UserError(f"curve.volume_weight={self.volume_weight} makes simplices small; give 0 or more")
        _ = self._trainings

    @property
    def _trainings(self) -> list[Training]:
        epochs = shared_out(self.training.epochs, [1.0] * self.vertices)
        return [replace(self.training, epochs=share) for share in epochs]

    def check(self, model: nn.Module) -> None:
        """Raise a `UserError` if the networks have fewer parameters than the simplices have dimensions."""
        super().check(model)
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        if self.vertices > parameters:
            raise UserError(
                f"curve.vertices={self.vertices}: a simplex of that dimension has no volume among {parameters} "
                "parameters; give fewer vertices"
            )

    def train(self, ends: Ends, fit: Fit) -> None:
        """Train the shared vertices.

        The history holds what is minimised as objective; its train_loss is the mean over the drawn points.

        Raises:
            UserError: also if the networks are equal, or as `check`.
        """
        self.check(fit.model)
        bending = Bending(fit.model, *ends, channels_last=self.training.channels_last)
        first = torch.stack([bending.flatten(end) for end in ends])
        if torch.equal(first[0], first[1]):
            raise UserError("the two networks are equal: there is nothing between them for a simplex to fill")

        def begin(number: int, handed: State) -> VertexTrainable:
            rng = generator(fit.seed, "vertex", number)
            controls = next_vertex(handed["controls"] if number else first, rng)
            return VertexTrainable(bending, controls, samples=self.samples, volume_weight=self.volume_weight)

        found = fit.run_staged(self._trainings, begin)
        write_points(bending.points(found["controls"][2:]), fit.folder)
        clear_stages(fit.folder)

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> PointsPath:
        """Return the chain from `fixed` over the mean of the vertices in `folder` to `moving`.

        Raises:
            UserError: the file is missing or damaged, holds another number of vertices, or is of another architecture.
            ValueError: no folder is given.
        """
        vertices = read_points(folder, fixed, moving, self.vertices, "curve.vertices")
        return PointsPath(Chain(2), fixed, moving, [mean(vertices)])

    def networks(
        self,
        fixed: Mapping[str, Tensor],
        moving: Mapping[str, Tensor],
        folder: FilePath | None,
        *,
        count: int,
        seed: int,
    ) -> list[State]:
        """Return `count` networks drawn uniformly from the complex whose vertices are in `folder`.

        What does not bend lies on the line between `fixed` and `moving`, as far along as the point: at the middle where
        all weight is on the shared vertices.

        Raises:
            UserError: as `path`.
        """
        vertices = read_points(folder, fixed, moving, self.vertices, "curve.vertices")
        corners: list[State] = [dict(fixed), dict(moving), *vertices]
        volumes = log_volumes(gram_of(corners))
        rng = generator(seed, "complex")
        found = []
        for _ in range(count):
            weights, t = draw(volumes, self.vertices, rng)
            state = on_line(fixed, moving, t)
            found.append(state | {name: combine(weights, [corner[name] for corner in corners]) for name in vertices[0]})
        return found
