"""What the stages hand to each other."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from lmc.alignment.assignment import flat
from lmc.results import PathPoint, Row
from lmc.state import State
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.transform import AnyTransform


class Observer(Protocol):
    """Whoever wants to see how far the stages are."""

    def stage(self, label: str, total: int | None) -> AbstractContextManager[Callable[[Mapping[str, float]], None]]:
        """Begin a stage of `total` steps (None: not known); what it yields is called once a step with numbers."""
        ...


@dataclass
class Results:
    """What an experiment measured.

    Attributes:
        rows: one number each.
        points: the raw paths that barriers come from.
        matchings: pair to group to the unit of the moving network that each unit of the fixed one is matched with; only
            of pairs that are joined by a permutation.
        files: what analyses leave for the report: the name in the folder of the run to the file in the store.
    """

    rows: list[Row] = field(default_factory=list)
    points: list[PathPoint] = field(default_factory=list)
    matchings: dict[tuple[int, int], dict[str, list[int]]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    def add(self, other: "Results") -> None:
        """Append what `other` holds."""
        self.rows += other.rows
        self.points += other.points
        self.matchings |= other.matchings
        self.files |= other.files


@dataclass(frozen=True)
class Network:
    """An endpoint.

    Attributes:
        label: its number.
        key: of its artifact.
        state: its tensors, on the device of the plan.
        earlier: its checkpoints from earlier moments of training, the oldest first.
    """

    label: int
    key: str
    state: State
    earlier: tuple[State, ...] = ()

    @property
    def checkpoints(self) -> tuple[State, ...]:
        """Its tensors at every moment that was kept, the oldest first; the last are `state`."""
        return (*self.earlier, self.state)


@dataclass(frozen=True)
class Pair:
    """Two endpoints and what brings them together.

    Attributes:
        fixed, moving: the networks.
        transform: is applied to the moving network.
        fixed_transform: is applied to the fixed one; None: it stays as it is.
        key: of the artifact that holds the transforms.
    """

    fixed: Network
    moving: Network
    transform: AnyTransform
    fixed_transform: AnyTransform | None
    key: str

    @property
    def labels(self) -> tuple[int, int]:
        """(fixed, moving)."""
        return self.fixed.label, self.moving.label

    @property
    def name(self) -> str:
        """For progress and messages: "0-1"."""
        return f"{self.fixed.label}-{self.moving.label}"

    @cached_property
    def ends(self) -> tuple[State, State]:
        """Both networks, brought together."""
        fixed = self.fixed_transform.apply(self.fixed.state) if self.fixed_transform else self.fixed.state
        return fixed, self.transform.apply(self.moving.state)

    @property
    def permutation(self) -> Permutation | None:
        """What brings the moving network to the fixed one, if that is a permutation."""
        if not isinstance(self.transform, Permutation):
            return None
        if self.fixed_transform is None:
            return self.transform
        if not isinstance(self.fixed_transform, Permutation):
            return None
        return self.fixed_transform.inverse().compose(self.transform)

    @property
    def matching(self) -> dict[str, list[int]] | None:
        """Group to the unit of the moving network at each place; units of all blocks are numbered through."""
        permutation = self.permutation
        if permutation is None:
            return None
        symmetry = permutation.symmetry
        return {name: flat(symmetry, symmetry.chain(name), permutation).tolist() for name in symmetry.groups}
