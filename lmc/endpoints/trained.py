"""Networks that are trained, one for each seed: what all kinds of them share."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lmc import seeding
from lmc import state as states
from lmc.dataset.images import Dataset
from lmc.endpoints.base import EARLIER_FILE, WEIGHTS_FILE, Ingredients, Moments, OnEpoch, Trunk
from lmc.errors import UserError
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable
from lmc.training.recipe import Training


class FromSeeds(ABC):
    """One trained network for each seed; a subclass says how, and overrides what is not so simple."""

    trains = True

    def labels(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the seeds themselves."""
        check_seeds(list(seeds))
        return tuple(seeds)

    def moments(self, epochs: int) -> Moments:
        """Return the last epoch alone."""
        return Moments("epoch", (float(epochs),))

    def check(self, model: nn.Module, dataset: Dataset, training: Training, labels: Sequence[int]) -> None:
        """Ask for nothing that any training would not ask for."""
        return

    def steps(self, epochs: int) -> int:
        """Return one for each epoch."""
        return epochs

    def identity(self, label: int, labels: Sequence[int]) -> dict[str, Any]:
        """Return the seed."""
        return {"seed": label}

    def trunk(self, label: int) -> Trunk | None:
        """Return None: the network is trained in one go."""
        return None

    @abstractmethod
    def make(
        self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch, trunk: Path | None = None
    ) -> None:
        """Train network `label` (see `lmc.endpoints.base.Endpoints.make`)."""


@dataclass(frozen=True)
class Trained:
    """One network trained from the streams of a seed; also a `Trunk`.

    Attributes:
        seed: of the initialisation, the order of the data and their augmentation.
        epochs: after which the weights are kept, increasing, before the last; 0 is the initialisation.
    """

    seed: int
    epochs: tuple[int, ...] = ()

    def steps(self, epochs: int) -> int:
        """Return one for each epoch."""
        return epochs

    def identity(self) -> dict[str, Any]:
        """Return the seed, and the epochs that are kept, if any."""
        found: dict[str, Any] = {"seed": self.seed}
        return {**found, "keep_epochs": list(self.epochs)} if self.epochs else found

    def make(self, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch) -> None:
        """Initialise and train the network; write its weights and those of the epochs that are kept."""
        model = initialised(ingredients, self.seed)
        trainable = NetworkTrainable(model, states.of_model(model))

        def keep(epoch: int) -> None:
            if epoch in self.epochs:
                states.save(trainable.final_state(), folder / EARLIER_FILE.format(self.epochs.index(epoch)))

        keep(0)
        fit(
            model,
            trainable,
            ingredients.dataset,
            ingredients.training,
            seed=self.seed,
            folder=folder,
            on_epoch=on_epoch,
            keep=keep,
        )
        states.save(trainable.final_state(), folder / WEIGHTS_FILE)


def initialised(ingredients: Ingredients, seed: int) -> nn.Module:
    """Return the network as seed `seed` initialises it, on the device of the dataset."""
    with seeding.isolated(seed, "initialisation"):
        model = ingredients.network()
    return model.to(ingredients.dataset.train.images.device)


def check_epochs(epochs: Sequence[int], of: int, where: str) -> None:
    """Raise a `UserError` unless `epochs` increase and come before the last of a training of `of` epochs.

    Args:
        epochs: to be kept.
        of: how many there are.
        where: name of the setting, for the message.
    """
    if any(not first < second for first, second in itertools.pairwise(epochs)):
        raise UserError(f"{where}={list(epochs)}: sort the epochs and give each once")
    if epochs and epochs[-1] >= of:
        raise UserError(
            f"{where}={list(epochs)}: training has {of} epochs and keeps the last one anyway; give earlier ones"
        )


def check_seeds(seeds: list[int]) -> None:
    """Raise a `UserError` unless `seeds` are at least two different non-negative numbers."""
    if len(seeds) < 2:
        raise UserError(f"seeds={seeds}: a path joins two networks; give at least two seeds, for example seeds=[0,1]")
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"seeds={seeds}: a seed is there twice, which would compare a network with itself; make them differ"
        )
    if min(seeds) < 0:
        raise UserError(f"seeds={seeds}: a seed is negative; use 0, 1, 2, ...")
