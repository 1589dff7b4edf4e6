"""Whether networks that are aligned to a third one are connected with each other."""

import functools
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import ClassVar

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.analysis.lines import Barriers, Line, OnLines, examples_of, findings, summary
from lmc.errors import UserError
from lmc.state import State

_KINDS = ("weak", "strong", "unaligned")


@dataclass(frozen=True, kw_only=True)
class StrongConnectivity(OnLines):
    """Barriers of straight lines between networks that are all aligned to one of them (Sharma et al. 2024).

    Networks are weakly connected if for every two of them there is a permutation P with B(A, P B) <= epsilon; they are
    strongly connected if there is one permutation P_A for each network such that B(P_A A, P_B B) <= epsilon for every
    two of them. With the first network as the reference the lines from it show the former, those between the others, in
    the frame of the first, the latter.

    The grid and the barrier are those of `OnLines`.
    """

    together: ClassVar[bool] = True

    def steps(self, setting: Setting) -> int:
        """Return the number of lines: of all pairs, aligned and as they are."""
        count = len(setting.labels)
        return count * (count - 1)

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if there are fewer than three networks."""
        if len(setting.labels) < 3:
            raise UserError(
                f"analysis=strong_connectivity compares networks that are aligned to another one, and there are "
                f"{len(setting.labels)}; give at least three, for example seeds=[0,1,2]"
            )

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return the barrier of every line ("line_barrier"), and the mean and the largest of each kind."""
        examples = examples_of(subject)
        as_trained = [states[-1] for states in subject.trained]

        def ends(networks: Sequence[State], first: int, second: int) -> tuple[State, State]:
            return networks[first], networks[second]

        labels: list[tuple[str, str]] = []
        lines = []
        for first, second in itertools.combinations(range(len(subject.networks)), 2):
            pair = f"{subject.labels[first]}-{subject.labels[second]}"
            for kind, networks in (("strong" if first else "weak", subject.networks), ("unaligned", as_trained)):
                labels.append((kind, pair))
                lines.append(Line(labels[-1], functools.partial(ends, networks, first, second)))
        found: dict[str, list[Barriers]] = {kind: [] for kind in _KINDS}
        single = []
        every = self.measured(subject, folder, ("kind", "pair"), lines, on_step)
        for (kind, pair), barriers in zip(labels, every, strict=True):
            found[kind].append(barriers)
            single += findings("line_barrier", barriers, examples, kind=kind, line=pair)
        return [
            *single,
            *(
                one
                for kind, barriers in found.items()
                for name, of in (("mean", statistics.fmean), ("largest", max))
                for one in findings(f"{kind}_{name}_barrier", summary(of, barriers), examples)
            ),
        ]
