"""Which part of a training a call of `lmc.training.loop.fit` is."""

from dataclasses import dataclass
from pathlib import Path

from lmc.training.checkpoint import CHECKPOINT_FILE


@dataclass(frozen=True)
class Earlier:
    """A training that was left off (`Part.stop`).

    Attributes:
        folder: where its checkpoint lies.
        seed: with which it was called.

    Raises:
        ValueError: there is no checkpoint.
    """

    folder: Path
    seed: int

    def __post_init__(self) -> None:
        if not (self.folder / CHECKPOINT_FILE).is_file():
            raise ValueError(f"{self.folder} holds no checkpoint of a training that was left off")


@dataclass(frozen=True)
class Part:
    """A part of the epochs of a training; by default all of them.

    The learning rate and all that is drawn in an epoch depend on its number in the whole training, so that two parts
    of the same seed, one going on `after` the other, end with the same bits as an unbroken training on a CPU.

    Attributes:
        start: how many epochs are left out at the beginning: the weights handed in are taken for those after these
            epochs, and the optimiser is fresh.
        stop: after which epoch (counted in the whole training) to leave off; the checkpoint then stays in the folder,
            for other trainings to go on `after` it. None: after the last one, and the checkpoint is removed.
        after: the training that this one continues, with the weights, the optimiser and the history that it left.

    Raises:
        ValueError: both `start` and `after`.
    """

    start: int = 0
    stop: int | None = None
    after: Earlier | None = None

    def __post_init__(self) -> None:
        if self.start and self.after:
            raise ValueError("a part goes on after another one, or begins at an epoch of its own; not both")

    def origin(self) -> dict[str, object]:
        """Return what a checkpoint must know of the part, for a killed run to go on from it; nothing of the whole."""
        found: dict[str, object] = {"start": self.start} if self.start else {}
        return {**found, "after": self.after.seed} if self.after else found
