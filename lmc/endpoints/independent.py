"""Networks trained apart: each seed has its own initialisation and its own order of the data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmc import config, seeding
from lmc import state as states
from lmc.endpoints.base import WEIGHTS_FILE, Ingredients, OnEpoch
from lmc.state import State
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable


@dataclass(frozen=True, kw_only=True)
class Independent:
    """One network for each seed."""

    trains = True

    def labels(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the seeds themselves."""
        config.check_seeds(list(seeds))
        return tuple(seeds)

    def check(self, expected: State) -> None:
        """Nothing to check: networks are made from the architecture."""

    def identity(self, label: int) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": label}

    def make(self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch) -> None:
        """Initialise and train a network from the streams of seed `label`."""
        with seeding.isolated(label, "initialisation"):
            model = ingredients.network()
        model.to(ingredients.dataset.train.images.device)
        trainable = NetworkTrainable(model, states.of_model(model))
        fit(model, trainable, ingredients.dataset, ingredients.training, seed=label, folder=folder, on_epoch=on_epoch)
        states.save(trainable.final_state(), folder / WEIGHTS_FILE)
