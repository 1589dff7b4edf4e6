"""The user's own networks, read from files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmc import state as states
from lmc.endpoints.base import WEIGHTS_FILE, Ingredients, OnEpoch
from lmc.errors import UserError
from lmc.state import State


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Networks of the chosen architecture in `.safetensors` files or in `.pt` files that hold tensors alone.

    Attributes:
        files: at least two paths, the reference first; results number the networks 0, 1, ... in this order.
    """

    files: tuple[str, ...]
    trains = False

    def labels(self, seeds: Sequence[int]) -> tuple[int, ...]:
        """Return the positions in `files`; `seeds` play no part."""
        if len(self.files) < 2:
            raise UserError(f"endpoints.files={list(self.files)}: a path joins two networks; give at least two files")
        return tuple(range(len(self.files)))

    def check(self, expected: State) -> None:
        """Read every file once and compare names and shapes with the architecture."""
        for file in self.files:
            states.check_fits(states.load(Path(file)), expected, f"checkpoint {file}")

    def identity(self, label: int) -> dict[str, Any]:
        """Return the checksum of the file: its content, not its place, makes the key."""
        return {"sha256": hashlib.sha256(Path(self.files[label]).read_bytes()).hexdigest()}

    def make(self, label: int, ingredients: Ingredients, folder: Path, on_epoch: OnEpoch) -> None:
        """Copy the weights into the store."""
        states.save(states.load(Path(self.files[label])), folder / WEIGHTS_FILE)
