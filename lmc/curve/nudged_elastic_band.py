"""AutoNEB: a nudged elastic band that gets pivots where it needs them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Annotated, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc.curve.band import BandTrainable, inserted, missing
from lmc.curve.bending import Bending
from lmc.curve.bends import straight_chain
from lmc.curve.chain import Chain
from lmc.curve.points import PointsPath, read_points, write_points
from lmc.curve.staged import clear_stages, shared_out
from lmc.curve.trained import Ends, Fit, TrainedCurve
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import derive, isolated
from lmc.state import State
from lmc.training.mounted import Mounted
from lmc.training.recipe import NonNegative, Training

log = logging.getLogger(__name__)

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class NudgedElasticBand(TrainedCurve):
    """A chain of pivots that comes to rest on a path of minimum energy (Draxler et al. 2018; Henkelman, Jonsson 2000).

    Each pivot descends the loss across the band's tangent alone. Along it, it is held by springs, or put in its place
    after every step. The fit goes through cycles: before the first, pivots are set at equal distances on the straight
    line; before each other one, where the loss between pivots lies highest above the straight line between theirs. A
    pivot that is set in a segment keeps its place in it: the band is finer where that was needed. The path is the chain
    of straight segments, each with the same share of t.

    Args:
        training: how the pivots are trained; its epochs are shared out among the cycles.
        insertions: pivots set before each cycle; before all but the first, at most so many.
        lengths: how long each cycle is, relative to the others. A cycle that gets no epoch is left out.
        rates: what the learning rate is multiplied by in each cycle.
        spring: stiffness of the springs between neighbours; None: infinite.
        samples: points between two neighbours at which the loss is measured before an insertion.
        threshold: least excess of the loss at which a pivot is set, as a fraction of the range of the pivots' losses.
        insert_examples: training images on which it is measured, a stratified choice (all, if there are fewer).

    Raises:
        UserError: the lists differ in length, the first cycle has no pivot, or a cycle is shorter than the warm-up.
    """

    draws_one_network: ClassVar[bool] = False

    insertions: tuple[NonNegativeInt, ...] = (3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2)
    lengths: tuple[Positive, ...] = (1, 1, 1, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)
    rates: tuple[Positive, ...] = (1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01)
    spring: Positive | None = None
    samples: PositiveInt = 9
    threshold: NonNegative = 0.1
    insert_examples: PositiveInt = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = len(self.insertions), len(self.lengths), len(self.rates)
        if len(set(counts)) > 1:
            raise UserError(
                f"curve.insertions, curve.lengths and curve.rates have {counts[0]}, {counts[1]} and {counts[2]} "
                "entries; give each cycle one of each"
            )
        if not self.insertions or self.insertions[0] < 1:
            raise UserError("curve.insertions sets no pivot before the first cycle; a band needs at least 1")
        _ = self._cycles

    @property
    def _cycles(self) -> list[tuple[int, Training]]:
        """The pivots set before each cycle and how it is trained; without those that get no epoch."""
        epochs = shared_out(self.training.epochs, self.lengths)
        return [
            (count, replace(self.training, epochs=share, learning_rate=self.training.learning_rate * rate))
            for index, (count, share, rate) in enumerate(zip(self.insertions, epochs, self.rates, strict=True))
            if share or not index
        ]

    def train(self, ends: Ends, fit: Fit) -> None:
        """Train the pivots. The train_loss of the history is the mean over the pivots."""
        bending = Bending(fit.model, *ends, channels_last=self.training.channels_last)
        cycles, device = self._cycles, fit.dataset.train.images.device

        def begin(cycle: int, band: State) -> BandTrainable:
            count = cycles[cycle][0]
            if cycle == 0:
                controls = straight_chain(bending.flatten(ends[0]), bending.flatten(ends[1]), count)
                shares = torch.full((count + 1,), 1 / (count + 1), device=device)
            else:
                with isolated(derive(fit.seed, "insert"), cycle, device=device):
                    energies = self._energies(fit.model, bending, band["controls"], fit.dataset)
                places = missing(energies, count, self.threshold)
                log.info("%d pivots, %d more after segments %s", len(band["controls"]) - 2, len(places), places)
                controls, shares = inserted(band["controls"], band["shares"], places)
            decay = self.training.weight_decay
            return BandTrainable(bending, controls, shares, spring=self.spring, decay=decay)

        found = fit.run_staged([training for _, training in cycles], begin)
        write_points(bending.points(found["controls"][1:-1]), fit.folder)
        clear_stages(fit.folder)

    def path(self, fixed: Mapping[str, Tensor], moving: Mapping[str, Tensor], folder: FilePath | None) -> PointsPath:
        """Return the chain through the pivots that `fit` wrote into `folder`.

        Raises:
            UserError: the file is missing or damaged, or is of another architecture.
            ValueError: no folder is given.
        """
        points = read_points(folder, fixed, moving, None, "curve.insertions")
        return PointsPath(Chain(len(points) + 1), fixed, moving, points)

    @torch.no_grad()
    def _energies(self, model: nn.Module, bending: Bending, controls: Tensor, dataset: Dataset) -> NDArray[np.float64]:
        """The loss with the penalty of the weight decay, (segments, samples + 2), along each segment."""
        network = Mounted(model)
        network.module.to(controls.device).train()
        images = dataset.train.first(min(self.insert_examples, len(dataset.train)))
        batches = list(dataset.batches(images, self.training.batch_size))
        segments, places = len(controls) - 1, torch.linspace(0, 1, self.samples + 2).tolist()

        def energy(segment: int, place: float) -> float:
            point = torch.lerp(controls[segment], controls[segment + 1], place)
            state = bending.network(point, (segment + place) / segments)
            loss = sum(float(cross_entropy(network(state, x), y, reduction="sum")) for x, y in batches) / len(images)
            return loss + 0.5 * self.training.weight_decay * float(point.square().sum())

        # A pivot ends one segment and begins the next.
        rows = [[energy(segment, place) for place in places[:-1]] for segment in range(segments)]
        ends = [*(row[0] for row in rows[1:]), energy(segments - 1, 1.0)]
        return np.array([[*row, end] for row, end in zip(rows, ends, strict=True)])
