"""Networks whose training only ever rearranges their initial weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt
from torch import nn

from lmc import state as states
from lmc.dataset.images import Dataset
from lmc.endpoints.base import WEIGHTS_FILE, Ingredients, OnEpoch
from lmc.endpoints.trained import FromSeeds, initialised
from lmc.errors import UserError
from lmc.state import State
from lmc.statistics.moments import Calibration
from lmc.statistics.reset import recompute
from lmc.training.constrained import ConstrainedTrainable
from lmc.training.loop import fit
from lmc.training.rearrangement import Rearranged, Within, constant
from lmc.training.recipe import Training

_BATCH = 500
"""Images in a batch of the pass that takes BatchNorm's statistics."""


@dataclass(frozen=True, kw_only=True)
class PermutationTrained(FromSeeds):
    """One network for each seed, trained by lookahead permutation (LaPerm, Qiu & Suda 2020; Cai et al.).

    The optimiser changes the weights freely; after every `period` steps, and at the end, every weight tensor is
    replaced by the rearrangement of its initial values that has the same ranking, and the optimiser goes on from there.
    So a trained network holds in every weight tensor exactly the values that it was initialised with. A tensor whose
    values are all the same (biases of zeros, scales of ones) has one arrangement only and is not trained at all.

    After the last rearrangement the running statistics of BatchNorm are taken anew over the training images: those of
    the training belong to the free weights. The accuracies in the history are those of the rearranged weights with the
    statistics of the training.

    Args:
        period: steps from one rearrangement to the next (k of the paper).
        within: a value may go anywhere in its "tensor", or only to another input of its "unit" (the paper).
        vectors: what is done to trained tensors of fewer than two dimensions (biases, scales and shifts of norms):
            "permuted" like weights; "kept" as they were initialised; "trained" freely, constant ones too (the paper's
            code): the network then holds its initial values in its weights alone.
    """

    period: PositiveInt = 20
    within: Within = "tensor"
    vectors: Literal["permuted", "kept", "trained"] = "permuted"

    def check(self, model: nn.Module, dataset: Dataset, training: Training, labels: Sequence[int]) -> None:
        """Look for a tensor that training can change."""
        initial = states.of_model(model)
        rearranged, fixed = self._roles(model, initial)
        if not rearranged and len(fixed) == len(_trained(model)):
            raise UserError(
                "endpoints=permutation_trained: every trained tensor of this architecture is initialised with a single "
                "value, so that there is nothing to rearrange; choose another architecture or endpoints=independent"
            )

    def identity(self, label: int, labels: Sequence[int]) -> dict[str, Any]:
        """Return the seed and the settings."""
        settings = {"period": self.period, "within": self.within, "vectors": self.vectors}
        return {"seed": label, "permutation_trained": settings}

    def make(
        self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch, trunk: Path | None = None
    ) -> None:
        """Initialise a network from seed `label` and rearrange its weights with the streams of that seed."""
        model = initialised(ingredients, label)
        initial = states.of_model(model)
        rearranged, fixed = self._roles(model, initial)
        for name in fixed:
            model.get_parameter(name).requires_grad_(False)
        constraint = Rearranged({name: initial[name] for name in rearranged}, self.within)
        trainable = ConstrainedTrainable(model, initial, constraint, self.period)
        dataset = ingredients.dataset
        fit(model, trainable, dataset, ingredients.training, seed=label, folder=folder, on_epoch=on_epoch)
        batches = Calibration(dataset, examples=None, batch_size=_BATCH)
        states.save(recompute(model, trainable.final_state(), batches), folder / WEIGHTS_FILE)

    def _roles(self, model: nn.Module, initial: State) -> tuple[list[str], list[str]]:
        """The names of the trained tensors that are rearranged, and of those that stay as they are."""
        weights, vectors = list[str](), list[str]()
        for name, parameter in _trained(model).items():
            (weights if parameter.ndim >= 2 else vectors).append(name)
        if self.vectors == "permuted":
            weights += vectors
        unchanged = set(constant(initial, weights))
        if self.vectors == "kept":
            unchanged |= set(vectors)
        return [name for name in weights if name not in unchanged], sorted(unchanged)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
