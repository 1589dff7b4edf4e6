"""One permutation for two networks at many moments of their training, or at many levels of their pruning."""

import functools
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import ClassVar

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
from lmc.state import State
from lmc.symmetry.permutation import Permutation

UNALIGNED = "none"
"""In place of the moment at which a permutation was found: there is none."""


@dataclass(frozen=True, kw_only=True)
class SimultaneousConnectivity(OnLines):
    """Try the permutation that is found at each moment at every moment (Sharma et al. 2024).

    Two sequences of networks (A_t), (B_t) are simultaneously connected if there is one permutation P such that
    B(A_t, P B_t) <= epsilon for all t. The moments are those at which checkpoints were kept: epochs of a training, or
    sparsities of a pruning (so that the permutation of the dense networks is tried on the sparse ones, and back). The
    alignment of the experiment finds a permutation at each of them; one that stacks checkpoints does from the first
    moment that has enough before it.

    The grid and the barrier are those of `OnLines`.
    """

    together: ClassVar[bool] = False

    def steps(self, setting: Setting) -> int:
        """Return the number of lines."""
        moments = len(setting.moments.values)
        return moments * (moments - setting.alignment.stacked + 1)

    def check(self, setting: Setting) -> None:
        """Raise a `UserError` if there is but one moment, or the alignment gives no permutation."""
        refuse_soft(setting, "simultaneous_connectivity")
        if len(setting.moments.values) < 2:
            raise UserError(
                "analysis=simultaneous_connectivity compares moments of training, and only the last is kept; choose "
                "endpoints=trajectory or endpoints=pruned"
            )

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return the barriers of all lines, and what the best, the last and each moment's own permutation give.

        - "moment_barrier" with `axis` (epoch, sparsity), `applied_at` and `found_at`, the latter unless the networks
          are taken as they are.
        - "simultaneous_barrier": of the permutation whose largest barrier over all moments is smallest.
        - "own_barrier": the largest barrier if each moment has its own permutation (weak connectivity at each moment).
        - "last_barrier", "unaligned_barrier": the mean over the moments, by the permutation found last and by none.
        """
        moments, (fixed, moving) = subject.moments.values, subject.trained
        examples, axis = examples_of(subject), subject.moments.axis

        @functools.cache
        def found_at(last: int) -> Permutation:
            return permutation(subject, fixed[: last + 1], moving[: last + 1])

        def line(last: int | None, place: int) -> Line:
            def ends() -> tuple[State, State]:
                return fixed[place], moving[place] if last is None else found_at(last).apply(moving[place])

            return Line((UNALIGNED if last is None else moments[last], moments[place]), ends)

        searched = range(subject.alignment.stacked, len(moments))
        lines = [line(last, place) for last in (None, *searched) for place in range(len(moments))]
        columns = ("found_at", "applied_at")
        every = iter([*self.measured(subject, folder, columns, lines, on_step)])
        unaligned = {at: next(every) for at in moments}
        tried = {moments[last]: {at: next(every) for at in moments} for last in searched}
        found = _of_moments(unaligned, examples, axis=axis)
        for at, by_moment in tried.items():
            found += _of_moments(by_moment, examples, axis=axis, found_at=at)
        worst = [summary(max, by_moment.values()) for by_moment in tried.values()]
        own = [by_moment[at] for at, by_moment in tried.items()]
        values = {
            "simultaneous_barrier": summary(min, worst),
            "own_barrier": summary(max, own),
            "last_barrier": summary(statistics.fmean, tried[moments[-1]].values()),
            "unaligned_barrier": summary(statistics.fmean, unaligned.values()),
        }
        return [*found, *(one for what, of in values.items() for one in findings(what, of, examples))]


def _of_moments(by_moment: Mapping[float, Barriers], examples: Mapping[str, int], **more: float | str) -> list[Finding]:
    """Return the barriers at each moment."""
    return [
        one
        for at, values in by_moment.items()
        for one in findings("moment_barrier", values, examples, applied_at=at, **more)
    ]
