"""Loss and accuracy under attack along a path: the robust barrier."""

from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import ClassVar

from pydantic import PositiveInt

from lmc.analysis.along import along_path
from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.evaluation.measure import Measurement
from lmc.evaluation.path import equal_grid
from lmc.evaluation.robustness import robustness
from lmc.seeding import derive
from lmc.state import State
from lmc.training.attack.base import Attack

FILE = "path.csv"


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Attack every network of the path anew and measure it on the attacked test images (Tatro et al. 2020).

    All networks are attacked from the same random starts; the images are those of the test split, not augmented.

    Args:
        attack: against each network, in evaluation mode.
        grid: number of equally spaced t, odd, at least 3.
        examples: at most so many test images, a fixed stratified subset; None: all.
        batch_size: images in a batch; does not change a result.

    Raises:
        UserError: an even grid, or one of less than 3 points.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    files: ClassVar[tuple[str, ...]] = (FILE,)
    together: ClassVar[bool] = False

    attack: Attack
    grid: PositiveInt = 11
    examples: PositiveInt | None = 1000
    batch_size: PositiveInt = 500

    def __post_init__(self) -> None:
        equal_grid(self.grid)

    def steps(self, setting: Setting) -> int:
        """Return the number of points."""
        return self.grid

    def check(self, setting: Setting) -> None:
        """Accept every setting."""

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return the robust loss and error at each t, and their barriers (see `lmc.analysis.along.along_path`)."""
        count = len(subject.dataset.test)

        def measure(state: State) -> Measurement:
            return robustness(
                subject.model,
                state,
                subject.dataset,
                subject.dataset.test,
                self.attack,
                seed=derive(subject.seed, "robustness"),
                examples=count if self.examples is None else min(self.examples, count),
                batch_size=self.batch_size,
            )

        return along_path("robust", subject, self.grid, measure, folder / FILE, on_step)
