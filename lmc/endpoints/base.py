"""What every kind of endpoints offers to the pipeline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lmc.dataset.images import Dataset
from lmc.training.recipe import Training

WEIGHTS_FILE = "weights.safetensors"
EARLIER_FILE = "earlier_{}.safetensors"
"""A checkpoint from an earlier moment of training; 0 is the oldest."""

OnEpoch = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True)
class Ingredients:
    """What a network is made from.

    Attributes:
        network: returns a freshly initialised network on the CPU; draws from torch's global generator.
        dataset: on the device on which to train.
        training: optimiser, schedule, epochs.
        labels: the numbers of all networks, the reference first.
    """

    network: Callable[[], nn.Module]
    dataset: Dataset
    training: Training
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Moments:
    """When the checkpoints of a network were taken.

    Attributes:
        axis: what tells them apart, for results and figures: "epoch", "sparsity", ...
        values: one number for each checkpoint, the oldest first; the last is that of the network itself.
    """

    axis: str
    values: tuple[float, ...]


class Trunk(Protocol):
    """A training that comes before that of one or several networks; it is an artifact of its own."""

    def steps(self, epochs: int) -> int:
        """Return how often `make` calls `on_epoch`, of a training of `epochs` epochs."""

    def identity(self) -> dict[str, Any]:
        """Return what tells it from others, as a part of its key; equal trunks are made once."""

    def make(self, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch) -> None:
        """Write to `folder` what the networks that are made from it will read there."""


class Endpoints(Protocol):
    """A kind of endpoints; every network has a number, by which results name it."""

    @property
    def trains(self) -> bool:
        """Whether a network depends on the dataset and the training settings."""

    def labels(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the numbers of the networks, the reference first.

        Raises:
            UserError: they are too few, or not different.
        """

    def moments(self, epochs: int) -> Moments:
        """Return when the checkpoints of each network are taken, of a training of `epochs` epochs."""

    def check(self, model: nn.Module, dataset: Dataset, training: Training, labels: Sequence[int]) -> None:
        """Raise a `UserError` where something that will be needed is missing or does not fit; called before anything.

        Args:
            model: a freshly initialised network of the architecture.
            dataset: what networks are trained on.
            training: how.
            labels: the numbers of all networks.
        """

    def steps(self, epochs: int) -> int:
        """Return how often `make` calls `on_epoch`, of a training of `epochs` epochs."""

    def identity(self, label: int, labels: Sequence[int]) -> dict[str, Any]:
        """Return what tells network `label` of `labels` from others, as a part of its key."""

    def trunk(self, label: int) -> Trunk | None:
        """Return what has to be trained before network `label`; None: nothing."""

    def make(
        self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch, trunk: Path | None = None
    ) -> None:
        """Write network `label` to `folder`: its weights as `WEIGHTS_FILE`, earlier ones as `EARLIER_FILE`.

        A killed one goes on from what is there.

        Args:
            label: its number.
            ingredients: what it is made from.
            folder: where its files are written.
            on_epoch: called after every epoch with its record.
            trunk: what `Trunk.make` has written, if there is a trunk.
        """
