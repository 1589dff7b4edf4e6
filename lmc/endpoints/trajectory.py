"""Networks trained apart of which several moments are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt
from torch import nn

from lmc.dataset.images import Dataset
from lmc.endpoints.base import Ingredients, Moments, OnEpoch
from lmc.endpoints.trained import FromSeeds, Trained, check_epochs
from lmc.errors import UserError
from lmc.training.recipe import Training


@dataclass(frozen=True, kw_only=True)
class Trajectory(FromSeeds):
    """The networks of `independent`, with their weights at chosen epochs (Sharma et al. 2024, simultaneous alignment).

    Args:
        epochs: after which the weights are kept, increasing, before the last; 0 is the initialisation. The last epoch
            is that of the network itself and is always kept.

    Raises:
        UserError: there is none.
    """

    epochs: tuple[NonNegativeInt, ...]

    def __post_init__(self) -> None:
        if not self.epochs:
            raise UserError("endpoints.epochs=[]: give the epochs to be kept, or choose endpoints=independent")

    def moments(self, epochs: int) -> Moments:
        """Return the epochs that are kept, and the last."""
        return Moments("epoch", (*map(float, self.epochs), float(epochs)))

    def check(self, model: nn.Module, dataset: Dataset, training: Training, labels: Sequence[int]) -> None:
        """Compare the epochs to be kept with those of the training."""
        check_epochs(self.epochs, training.epochs, "endpoints.epochs")

    def identity(self, label: int, labels: Sequence[int]) -> dict[str, Any]:
        """Return the seed and the epochs that are kept."""
        return Trained(label, self.epochs).identity()

    def make(
        self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch, trunk: Path | None = None
    ) -> None:
        """Initialise and train a network from the streams of seed `label`."""
        Trained(label, self.epochs).make(ingredients, folder, on_epoch)
