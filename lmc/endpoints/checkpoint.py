"""The user's own networks, read from files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lmc import state as states
from lmc.dataset.images import Dataset
from lmc.endpoints.base import EARLIER_FILE, WEIGHTS_FILE, Ingredients, Moments, OnEpoch
from lmc.errors import UserError
from lmc.state import State
from lmc.training.recipe import Training


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Networks of the chosen architecture in `.safetensors` files or in `.pt` files that hold tensors alone.

    Attributes:
        files: at least two paths, the reference first; results number the networks 0, 1, ... in this order.
        earlier: for each of `files` the same number of checkpoints of the same network from earlier moments of its
            training, the oldest first; for alignments that stack checkpoints. Empty: there are none.

    Raises:
        UserError: the networks have different numbers of earlier checkpoints.
    """

    files: tuple[str, ...]
    earlier: tuple[tuple[str, ...], ...] = ()
    trains = False

    def __post_init__(self) -> None:
        counts = [len(files) for files in self.earlier]
        if counts and (len(counts) != len(self.files) or len(set(counts)) > 1):
            raise UserError(
                f"endpoints.earlier has {counts} checkpoints for {len(self.files)} networks; give each of "
                "endpoints.files the same number of them"
            )

    def moments(self, epochs: int) -> Moments:
        """Return the positions of the files of a network: those of `earlier` first."""
        return Moments("checkpoint", tuple(float(n) for n in range(len(self.earlier[0]) + 1 if self.earlier else 1)))

    def labels(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the positions in `files`; `seeds` play no part."""
        if len(self.files) < 2:
            raise UserError(f"endpoints.files={list(self.files)}: a path joins two networks; give at least two files")
        return tuple(range(len(self.files)))

    def check(self, model: nn.Module, dataset: Dataset, training: Training, labels: Sequence[int]) -> None:
        """Read every file once and compare names and shapes with the architecture."""
        expected = states.of_model(model)
        for file in (*self.files, *(file for files in self.earlier for file in files)):
            states.check_fits(states.load(Path(file)), expected, f"checkpoint {file}")

    def steps(self, epochs: int) -> int:
        """Return 0: nothing is trained."""
        return 0

    def trunk(self, label: int) -> None:
        """Return None: nothing is trained."""
        return

    def identity(self, label: int, labels: Sequence[int]) -> dict[str, Any]:
        """Return the checksums of the files: their content, not their place, makes the key."""
        found: dict[str, Any] = {"sha256": _checksum(self.files[label])}
        return {**found, "earlier": [_checksum(file) for file in self.earlier[label]]} if self.earlier else found

    def make(
        self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch, trunk: Path | None = None
    ) -> None:
        """Copy the weights into the store, in float32 as those of trained networks."""
        states.save(_weights(self.files[label]), folder / WEIGHTS_FILE)
        for number, file in enumerate(self.earlier[label] if self.earlier else ()):
            states.save(_weights(file), folder / EARLIER_FILE.format(number))


def _weights(file: str) -> State:
    found = states.load(Path(file))
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in found.items()}


def _checksum(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
