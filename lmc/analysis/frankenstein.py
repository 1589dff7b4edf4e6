"""Networks whose layers come from different moments of training, under one permutation."""

import functools
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import ClassVar, Literal

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.analysis.lines import (
    Barriers,
    Line,
    OnLines,
    examples_of,
    findings,
    permutation,
    refuse_soft,
    summary,
)
from lmc.errors import UserError
from lmc.evaluation.layer_barrier import layer_sets, layers_of, partly_merged
from lmc.state import State
from lmc.symmetry.permutation import Permutation

_COLUMNS = ("aligned", "moment", "order", "layer", "layers")
From = Literal["bottom", "top"]


@dataclass(frozen=True)
class Mixed:
    """Which layers are from when.

    Attributes:
        moment: the number of the early checkpoint.
        order: where the early layers are.
        layer: the last (from the bottom) or the first (from the top) of them.
        layers: how many there are.
        tensors: theirs.
    """

    moment: int
    order: From
    layer: str
    layers: int
    tensors: frozenset[str]

    def network(self, checkpoints: Sequence[State]) -> State:
        """Return the network: some layers of an early checkpoint, all others of the last one."""
        return partly_merged(checkpoints[-1], checkpoints[self.moment], self.tensors, 1.0, "fixed")


@dataclass(frozen=True, kw_only=True)
class Frankenstein(OnLines):
    """Align networks that are put together from layers of two moments (Sharma et al. 2024).

    Some layers of both networks come from an early checkpoint, the others from the last one, and the permutation is
    that of the last checkpoints: if it aligns the layers of all moments at once, the barrier is small wherever the cut
    is.

    Args:
        orders: whether the early layers are those at the "bottom", next to the images, at the "top", or both in turn.
        grid, barrier: see `OnLines`.

    Raises:
        UserError: no order, or one of them twice.
    """

    together: ClassVar[bool] = False

    orders: list[From] = field(default_factory=lambda: ["bottom", "top"])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.orders or len(set(self.orders)) < len(self.orders):
            raise UserError(f"analysis.frankenstein.orders={self.orders}: give bottom, top, or both: [bottom,top]")

    def steps(self, setting: Setting) -> int:
        """Return the number of lines."""
        return 2 * len(self._mixed(setting))

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if there is but one moment or one layer, or the alignment gives no permutation."""
        refuse_soft(setting, "frankenstein")
        if not self._mixed(setting):
            raise UserError(
                "analysis=frankenstein puts layers of different moments together, and there is one moment or one "
                "layer; keep earlier checkpoints with endpoints=trajectory, or take a deeper network"
            )

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return every barrier ("mixed_barrier" with its moment, order, layer and number of layers) and the means.

        "aligned_mixed_mean_barrier" and "unaligned_mixed_mean_barrier" are means over all of them.
        """
        fixed, moving = subject.trained

        @functools.cache
        def of_last() -> Permutation:
            return permutation(subject, fixed, moving)

        def ends(mixed: Mixed, *, aligned: bool) -> tuple[State, State]:
            moved = mixed.network(moving)
            return mixed.network(fixed), of_last().apply(moved) if aligned else moved

        lines, described = [], []
        for mixed, aligned in itertools.product(self._mixed(subject), (True, False)):
            at = subject.moments.values[mixed.moment]
            label = ("aligned" if aligned else "unaligned", at, mixed.order, mixed.layer, mixed.layers)
            lines.append(Line(label, functools.partial(ends, mixed, aligned=aligned)))
            described.append(dict(zip(_COLUMNS, label, strict=True)))
        found: list[Finding] = []
        by_kind: dict[str, list[Barriers]] = {"aligned": [], "unaligned": []}
        every = self.measured(subject, folder, _COLUMNS, lines, on_step)
        for more, barriers in zip(described, every, strict=True):
            by_kind[str(more["aligned"])].append(barriers)
            found += findings("mixed_barrier", barriers, examples_of(subject), axis=subject.moments.axis, **more)
        for kind, barriers_of_kind in by_kind.items():
            mean = summary(statistics.fmean, barriers_of_kind)
            found += findings(f"{kind}_mixed_mean_barrier", mean, examples_of(subject))
        return found

    def _mixed(self, setting: Setting) -> list[Mixed]:
        """Every mixture; the whole network from one moment is none."""
        layers = layers_of(setting.model)
        return [
            Mixed(moment, order, layer, len(chosen), frozenset(n for place in chosen for n in layers[place].tensors))
            for moment in range(len(setting.moments.values) - 1)
            for order in self.orders
            for layer, chosen in layer_sets(order, layers)
            if len(chosen) < len(layers)
        ]
