"""Networks trained apart: each seed has its own initialisation and its own order of the data."""

from dataclasses import dataclass
from pathlib import Path

from lmc.endpoints.base import Ingredients, OnEpoch
from lmc.endpoints.trained import FromSeeds, Trained


@dataclass(frozen=True, kw_only=True)
class Independent(FromSeeds):
    """One network for each seed."""

    def make(
        self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch, trunk: Path | None = None
    ) -> None:
        """Initialise and train a network from the streams of seed `label`."""
        Trained(label).make(ingredients, folder, on_epoch)
