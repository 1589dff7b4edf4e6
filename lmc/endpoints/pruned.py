"""Sparse networks: pruned, rewound and trained again, level by level."""

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import nn

from lmc import state as states
from lmc.dataset.images import Dataset
from lmc.endpoints.base import EARLIER_FILE, WEIGHTS_FILE, Ingredients, Moments, OnEpoch
from lmc.endpoints.trained import FromSeeds, Trained, initialised
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State
from lmc.training import masks as pruning
from lmc.training.constrained import ConstrainedTrainable
from lmc.training.loop import HISTORY_FILE, fit
from lmc.training.masks import Masked, Masks
from lmc.training.part import Part
from lmc.training.recipe import Training

MASKS_FILE = "masks_{}.safetensors"
"""The masks of a level, from 1: bool tensors, False where a weight is pruned."""

_LEVELS_FOLDER = "levels"


@dataclass(frozen=True, kw_only=True)
class Pruned(FromSeeds):
    """One sparse network for each seed: magnitude pruning with rewinding (Frankle & Carbin 2019; Frankle et al. 2020).

    A dense network is trained; the weights of the smallest magnitude are pruned; the others, and all other tensors, are
    rewound to their values at an epoch of that dense training; and the sparse network is trained again from there to
    the last epoch with a fresh optimiser, the schedule and the order of the data those of the dense training. That
    makes a level, and the next one prunes what the last one trained. Pruned weights are exactly zero all along.

    What is pruned are the trained tensors of at least two dimensions (`lmc.training.masks.prunable`).

    Args:
        levels: how often the share `fraction` of the remaining weights is removed.
        fraction: of the remaining weights.
        rewind_epoch: of the dense training; 0: the initialisation.
        method: "iterative": a training for each level, which keep every level (simultaneous alignment of Sharma et al.
            2024); "one_shot": all that `levels` levels would remove at once, by the magnitudes of the dense network;
            "random": as iterative, with the same numbers, but weights drawn at random.
        scope: whether the share is taken of all weights together ("global") or of each tensor ("layer").
        kept: names of tensors that are not pruned, with * and ?.
    """

    levels: PositiveInt = 5
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    rewind_epoch: NonNegativeInt = 0
    method: Literal["iterative", "one_shot", "random"] = "iterative"
    scope: Literal["global", "layer"] = "global"
    kept: tuple[str, ...] = ()

    @property
    def _rounds(self) -> int:
        """How many sparse networks are trained."""
        return 1 if self.method == "one_shot" else self.levels

    @property
    def _at_once(self) -> int:
        """How many levels a round makes."""
        return self.levels if self.method == "one_shot" else 1

    def moments(self, epochs: int) -> Moments:
        """Return the sparsity of the dense network and of every level, before it is rounded to whole weights."""
        left = [(1 - self.fraction) ** (number * self._at_once) for number in range(self._rounds + 1)]
        return Moments("sparsity", tuple(1 - share for share in left))

    def check(self, model: nn.Module, dataset: Dataset, training: Training, labels: Sequence[int]) -> None:
        """Compare the settings with the training, and with the weights that there are."""
        if self.rewind_epoch >= training.epochs:
            raise UserError(
                f"endpoints.rewind_epoch={self.rewind_epoch}: training has {training.epochs} epochs, so that no epoch "
                "would be left to train the sparse networks; rewind to an earlier one"
            )
        everything = pruning.prunable(model)
        for pattern in self.kept:
            if not any(fnmatchcase(name, pattern) for name in everything):
                raise UserError(
                    f"endpoints.kept: no weight that would be pruned is called {pattern}; those are "
                    f"{', '.join(everything)}"
                )
        names = pruning.prunable(model, self.kept)
        counts = [model.get_parameter(name).numel() for name in names]
        counts = [sum(counts)] if self.scope == "global" else counts
        left = [sum(pruning.survivors(count, self.fraction, n) for count in counts) for n in range(self.levels + 1)]
        if not left[-1] or any(more == fewer for more, fewer in itertools.pairwise(left)):
            raise UserError(
                f"endpoints.levels={self.levels}, endpoints.fraction={self.fraction}: of the weights that are pruned "
                f"the levels would leave {', '.join(map(str, left))}; every level has to remove some and leave some"
            )

    def steps(self, epochs: int) -> int:
        """Return one for every epoch of every level."""
        return self._rounds * (epochs - self.rewind_epoch)

    def identity(self, label: int, labels: Sequence[int]) -> dict[str, Any]:
        """Return the seed and the settings."""
        return {"seed": label, "pruned": {**asdict(self), "kept": sorted(set(self.kept))}}

    def trunk(self, label: int) -> Trained:
        """Return the dense training, which keeps the epoch to rewind to: the same artifact as that of `trajectory`."""
        return Trained(label, (self.rewind_epoch,))

    def make(
        self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch, trunk: Path | None = None
    ) -> None:
        """Make one level after the other; write the weights and masks of each. A killed one goes on at its level."""
        assert trunk is not None
        model = initialised(ingredients, label)
        device = ingredients.dataset.train.images.device
        trained, rewound = (
            states.to_device(states.load(trunk / file), device) for file in (WEIGHTS_FILE, EARLIER_FILE.format(0))
        )
        states.save(trained, folder / EARLIER_FILE.format(0))
        masks = pruning.all_kept(trained, pruning.prunable(model, self.kept))
        history: list[Mapping[str, float]] = []
        for level in range(1, self._rounds + 1):
            masks = self._pruned(label, level, masks, trained)
            states.save(masks, folder / MASKS_FILE.format(level))
            more = {"level": level, "sparsity": pruning.sparsity(masks)}

            def note(record: Mapping[str, float], more: Mapping[str, float] = more) -> None:
                history.append({**record, "epoch": len(history) + 1, **more})
                on_epoch(history[-1])

            within = folder / _LEVELS_FOLDER / str(level)
            trained = self._trained(label, model, rewound, masks, ingredients, within, note)
            name = WEIGHTS_FILE if level == self._rounds else EARLIER_FILE.format(level)
            states.save(trained, folder / name)
        text = "".join(json.dumps(record) + "\n" for record in history)
        (folder / HISTORY_FILE).write_text(text, encoding="utf-8")
        shutil.rmtree(folder / _LEVELS_FOLDER)

    def _pruned(self, label: int, level: int, masks: Masks, trained: State) -> Masks:
        """The masks of a level, from those of the level before and what it trained."""
        if self.method == "random":
            scores = pruning.drawn(masks, generator(label, "pruned", level))
        else:
            scores = pruning.magnitudes(trained, masks)
        return pruning.pruned(masks, scores, self.fraction, self._at_once, layer=self.scope == "layer")

    def _trained(
        self,
        label: int,
        model: nn.Module,
        rewound: State,
        masks: Masks,
        ingredients: Ingredients,
        within: Path,
        note: OnEpoch,
    ) -> State:
        """Train the network of a level, or read it if it is done; `within` is its folder."""
        done = within / WEIGHTS_FILE
        if done.is_file():
            for line in (within / HISTORY_FILE).read_text(encoding="utf-8").splitlines():
                note(json.loads(line))
            return states.to_device(states.load(done), ingredients.dataset.train.images.device)
        trainable = ConstrainedTrainable(model, rewound, Masked(masks))
        fit(
            model,
            trainable,
            ingredients.dataset,
            ingredients.training,
            seed=label,
            folder=within,
            on_epoch=note,
            part=Part(start=self.rewind_epoch),
        )
        found = trainable.final_state()
        partial = done.with_suffix(".partial")
        states.save(found, partial)
        partial.replace(done)
        return found
