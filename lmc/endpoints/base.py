"""What every kind of endpoints offers to the pipeline."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from lmc.dataset.images import Dataset
from lmc.state import State
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
    """

    network: Callable[[], nn.Module]
    dataset: Dataset
    training: Training


@dataclass(frozen=True)
class Moments:
    """When the checkpoints of a network were taken.

    Attributes:
        axis: what tells them apart, for results and figures: "epoch", "sparsity", ...
        values: one number for each checkpoint, the oldest first; the last is that of the network itself.
    """

    axis: str
    values: tuple[float, ...]


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

    def check(self, expected: State, epochs: int) -> None:
        """Raise a `UserError` where something that will be needed is missing or does not fit.

        Args:
            expected: tensors of the architecture.
            epochs: of the training.
        """

    def identity(self, label: int) -> dict[str, Any]:
        """Return what tells network `label` from the others, as a part of its key."""

    def make(self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch) -> None:
        """Write network `label` to `folder`: its weights as `WEIGHTS_FILE`, earlier ones as `EARLIER_FILE`."""
