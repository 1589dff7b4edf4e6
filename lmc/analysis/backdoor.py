"""How often a backdoor works along a path: repairing tampered networks by what lies between them."""

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import ClassVar

from pydantic import PositiveInt

from lmc.analysis.along import along_path
from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.errors import UserError
from lmc.evaluation.backdoor import backdoor
from lmc.evaluation.measure import Measurement
from lmc.evaluation.path import equal_grid
from lmc.state import State

FILE = "path.csv"


@dataclass(frozen=True, kw_only=True)
class Backdoor:
    """Measure what every network of the path does with test images that carry the trigger (Zhao et al. 2020).

    Its "error" is 1 - the success rate of the attack: a path repairs where it is high. Accuracy on clean images is what
    the path itself is measured by.

    Args:
        grid: number of equally spaced t, odd, at least 3.
        examples: how many test images with the trigger, a fixed choice; None: all.
        batch_size: images in a batch; does not change a result.

    Raises:
        UserError: an even grid, or one of less than 3 points.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    files: ClassVar[tuple[str, ...]] = (FILE,)
    together: ClassVar[bool] = False

    grid: PositiveInt = 11
    examples: PositiveInt | None = None
    batch_size: PositiveInt = 500

    def __post_init__(self) -> None:
        equal_grid(self.grid)

    def steps(self, setting: Setting) -> int:
        """Return the number of points."""
        return self.grid

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if the dataset has no trigger, or fewer images with it than are asked for."""
        if setting.dataset.tampered is None:
            raise UserError(
                f"analysis=backdoor: dataset {setting.dataset.name} has no trigger whose success could be seen; set "
                "dataset/trigger=square"
            )
        setting.dataset.tampered.marked.first(self.examples)

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return the loss and error towards the target at each t, and their barriers (see `along_path`)."""

        def measure(state: State) -> Measurement:
            return backdoor(subject.model, state, subject.dataset, examples=self.examples, batch_size=self.batch_size)

        return along_path("backdoor", subject, self.grid, measure, folder / FILE, on_step)
