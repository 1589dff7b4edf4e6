"""Networks that share the beginning of their training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import NonNegativeInt
from torch import nn

from lmc import state as states
from lmc.dataset.images import Dataset
from lmc.endpoints.base import WEIGHTS_FILE, Ingredients, OnEpoch
from lmc.endpoints.trained import FromSeeds, initialised
from lmc.errors import UserError
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable
from lmc.training.part import Earlier, Part
from lmc.training.recipe import Training


@dataclass(frozen=True, kw_only=True)
class Forked(FromSeeds):
    """Copies of one network, each trained on with data in an order of its own (Frankle et al. 2020).

    The instability analysis of that paper: a network is unstable to the noise of SGD at an epoch if two copies that go
    separate ways from there end with a barrier between them. Weights, buffers, the state of the optimiser and the
    schedule go on as in one training; from the fork on, the order of the data, their augmentation and what dropout
    draws are those of each network's seed. A network whose seed is `shared_seed` is the one that `independent` trains
    from it.

    Args:
        shared_epochs: how many epochs all networks have in common; 0: only their initialisation.
        shared_seed: of the initialisation and of these epochs.
    """

    shared_epochs: NonNegativeInt = 0
    shared_seed: NonNegativeInt = 0

    def check(self, model: nn.Module, dataset: Dataset, training: Training, labels: Sequence[int]) -> None:
        """Compare the epochs that are shared with those of the training."""
        if self.shared_epochs >= training.epochs:
            raise UserError(
                f"endpoints.shared_epochs={self.shared_epochs}: training has {training.epochs} epochs, so that all "
                "networks would be one and the same; share fewer or raise training.epochs"
            )

    def identity(self, label: int, labels: Sequence[int]) -> dict[str, Any]:
        """Return the seed; what it goes on from is in the key of the trunk."""
        return {"fork": label}

    def trunk(self, label: int) -> "SharedEpochs":
        """Return the epochs that all networks share."""
        return SharedEpochs(self.shared_seed, self.shared_epochs)

    def make(
        self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch, trunk: Path | None = None
    ) -> None:
        """Go on after the shared epochs with the streams of seed `label`."""
        assert trunk is not None
        part = Part(after=Earlier(trunk, self.shared_seed))
        states.save(_train(ingredients, self.shared_seed, label, part, folder, on_epoch), folder / WEIGHTS_FILE)


@dataclass(frozen=True)
class SharedEpochs:
    """The first epochs of a training, left off with all that is needed to go on; a `Trunk`.

    Attributes:
        seed: of the training.
        count: how many epochs.
    """

    seed: int
    count: int

    def steps(self, epochs: int) -> int:
        """Return how many epochs there are."""
        return self.count

    def identity(self) -> dict[str, Any]:
        """Return the seed and the number of epochs."""
        return {"seed": self.seed, "shared_epochs": self.count}

    def make(self, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch) -> None:
        """Train these epochs; leave their checkpoint and their history."""
        _train(ingredients, self.seed, self.seed, Part(stop=self.count), folder, on_epoch)


def _train(
    ingredients: Ingredients, initialisation: int, seed: int, part: Part, folder: Path, on_epoch: OnEpoch
) -> states.State:
    """Train a part of a network's training; return what it has become."""
    model = initialised(ingredients, initialisation)
    trainable = NetworkTrainable(model, states.of_model(model))
    fit(
        model,
        trainable,
        ingredients.dataset,
        ingredients.training,
        seed=seed,
        folder=folder,
        on_epoch=on_epoch,
        part=part,
    )
    return trainable.final_state()
