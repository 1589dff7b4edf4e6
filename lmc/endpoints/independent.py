"""Networks trained apart: each seed has its own initialisation and its own order of the data."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from lmc import config, seeding
from lmc import state as states
from lmc.endpoints.base import EARLIER_FILE, WEIGHTS_FILE, Ingredients, Moments, OnEpoch
from lmc.errors import UserError
from lmc.state import State
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable


@dataclass(frozen=True, kw_only=True)
class Independent:
    """One network for each seed.

    Args:
        keep_epochs: epochs (from 1, increasing, before the last) after which the weights are kept too, for alignments
            that stack checkpoints.

    Raises:
        UserError: they do not increase.
    """

    keep_epochs: tuple[PositiveInt, ...] = ()
    trains = True

    def __post_init__(self) -> None:
        if any(not first < second for first, second in itertools.pairwise(self.keep_epochs)):
            raise UserError(f"endpoints.keep_epochs={list(self.keep_epochs)}: sort the epochs and give each once")

    def moments(self, epochs: int) -> Moments:
        """Return the epochs that are kept, and the last."""
        return Moments("epoch", (*map(float, self.keep_epochs), float(epochs)))

    def labels(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the seeds themselves."""
        config.check_seeds(list(seeds))
        return tuple(seeds)

    def check(self, expected: State, epochs: int) -> None:
        """Compare the epochs to be kept with those of the training."""
        if self.keep_epochs and self.keep_epochs[-1] >= epochs:
            raise UserError(
                f"endpoints.keep_epochs={list(self.keep_epochs)}: training has {epochs} epochs and keeps the last one "
                "anyway; give earlier ones"
            )

    def identity(self, label: int) -> dict[str, Any]:
        """Return the seed, and the epochs that are kept, if any."""
        found: dict[str, Any] = {"seed": label}
        return {**found, "keep_epochs": list(self.keep_epochs)} if self.keep_epochs else found

    def make(self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch) -> None:
        """Initialise and train a network from the streams of seed `label`."""
        with seeding.isolated(label, "initialisation"):
            model = ingredients.network()
        model.to(ingredients.dataset.train.images.device)
        trainable = NetworkTrainable(model, states.of_model(model))

        def keep(epoch: int) -> None:
            if epoch in self.keep_epochs:
                number = self.keep_epochs.index(epoch)
                states.save(trainable.final_state(), folder / EARLIER_FILE.format(number))

        fit(
            model,
            trainable,
            ingredients.dataset,
            ingredients.training,
            seed=label,
            folder=folder,
            on_epoch=on_epoch,
            keep=keep,
        )
        states.save(trainable.final_state(), folder / WEIGHTS_FILE)
