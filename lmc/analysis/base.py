"""What every option of this group is: a further look at networks that have been brought together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, ClassVar, Protocol

from torch import nn

from lmc.alignment.problem import Alignment, Matching
from lmc.curve.base import Curve, JointCurve, Path
from lmc.dataset.images import Dataset
from lmc.endpoints.base import Moments
from lmc.evaluation.measure import Splits
from lmc.state import State
from lmc.statistics.base import Correction
from lmc.symmetry.structure import Symmetry

OnStep = Callable[[Mapping[str, float]], None]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known before anything is trained.

    Attributes:
        model: the architecture; its own tensors do not matter and nothing of it is changed.
        symmetry: of the architecture, proved.
        dataset: on the device where everything is computed.
        splits: the images that networks are measured on.
        curve: what joins a pair.
        alignment: what brings a pair together.
        moments: when the checkpoints of every network were taken.
        labels: the numbers of all networks, the reference first.
    """

    model: nn.Module
    symmetry: Symmetry
    dataset: Dataset
    splits: Splits
    curve: Curve | JointCurve
    alignment: Alignment
    moments: Moments
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Subject(Setting):
    """What is looked at: two joined networks, or all networks.

    Attributes:
        networks: in one frame, that of the first; two, the fixed and the moving one, unless `together`.
        trained: the same networks as they were trained, each in its own frame: its checkpoints at each of `moments`.
        path: from the first to the second; None if all networks are looked at together.
        correction: what is done to a network merged from `networks` before it is measured.
        bind: the same for a network that is merged from others: those, in one frame -> correction.
        seed: of everything that is drawn.
        match: brings a network to another one by the chosen alignment, (fixed, moving, called with the numbers of each
            step) -> matching; both are given as their checkpoints, the oldest first: the last are brought together, and
            an alignment that stacks checkpoints has to suit those before it too.
    """

    networks: Sequence[State]
    trained: Sequence[Sequence[State]]
    path: Path | None
    correction: Correction
    bind: Callable[[Sequence[State]], Correction]
    seed: int
    match: Callable[[Sequence[State], Sequence[State], OnStep], Matching]

    @property
    def joined(self) -> Path:
        """The path of a pair.

        Raises:
            ValueError: all networks are looked at together.
        """
        if self.path is None:
            raise ValueError("an analysis of all networks together has no path")
        return self.path


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One number that was found; the fields are those of `lmc.results.Row`, which explains them."""

    what: str
    metric: str
    unit: str
    value: float
    split: str | None = None
    examples: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)


class Analysis(Protocol):
    """A further look; it runs on every pair, or once on all networks."""

    files: ClassVar[tuple[str, ...]]
    """The raw results that it leaves in its folder, for the report and for whoever wants to look again."""

    @property
    def together(self) -> bool:
        """Whether it looks at all networks at once instead of at each pair."""

    def steps(self, setting: Setting) -> int | None:
        """Return how many times `on_step` will be called; None: not known."""

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` where it cannot be done; called before any training."""

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Look at `subject`, write `files` into `folder`, and return the numbers.

        The folder may hold what an earlier, killed attempt left: a long analysis goes on from there. Whatever else it
        keeps there for that purpose is removed at the end.
        """
