"""The loss barrier as an error of linearised logits and a term of Jensen's inequality, example by example."""

import csv
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import partial
from pathlib import Path as FilePath
from typing import ClassVar

import torch
from pydantic import PositiveInt

from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.evaluation import decomposition as evaluation
from lmc.evaluation.path import equal_grid
from lmc.state import State

FILE = "examples.csv"
_COLUMNS = ("t", "split", "example", "label", *(field.name for field in fields(evaluation.Terms)))


@dataclass(frozen=True, kw_only=True)
class Decomposition:
    """Take the cross-entropy barrier of the path apart (see `lmc.evaluation.decomposition`), on both splits.

    The network at t is that of the path, and both ends are those of the path; all three are corrected as on the path.
    On a straight line the sum of both terms at t = 1/2 is the barrier of Jordan et al. (2023); in between it is what
    Entezari et al. (2022, Eq. 1) take the maximum of.

    Args:
        grid: number of equally spaced t, odd, at least 3; at both ends every term is zero, so they are left out.
        kept: the terms of at most so many examples of each split are written: a fixed stratified choice.
        batch_size: images in a batch; does not change a result.

    Raises:
        UserError: an even grid, or one of less than 3 points.
    """

    outside_key: ClassVar[frozenset[str]] = frozenset({"batch_size"})
    files: ClassVar[tuple[str, ...]] = (FILE,)
    together: ClassVar[bool] = False

    grid: PositiveInt = 3
    kept: PositiveInt = 1000
    batch_size: PositiveInt = 500

    def __post_init__(self) -> None:
        equal_grid(self.grid)

    def steps(self, setting: Setting) -> int:
        """Return the number of points between the ends."""
        return self.grid - 2

    def check(self, setting: Setting) -> None:
        """Accept every setting."""

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return both terms, their sum, the measured barrier and the share of positive first terms at every t.

        Those of the middle are there once more without t. examples.csv: t, split, example (its number in the split as
        it is measured on), label, and the fields of `lmc.evaluation.decomposition.Terms`.
        """
        ends = [self._network(subject, t) for t in (0.0, 1.0)]
        findings: list[Finding] = []
        with (folder / FILE).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(_COLUMNS)
            for t in equal_grid(self.grid)[1:-1]:
                found = self._taken_apart(subject, ends, t)
                for split, of_split in found.items():
                    writer.writerows(_rows(t, split, of_split, subject.splits.images[split].labels))
                    findings += _findings(split, of_split, t)
                on_step({"t": t, **{f"{split}_linearisation": of.linearisation for split, of in found.items()}})
        return findings

    def _taken_apart(self, subject: Subject, ends: Sequence[State], t: float) -> dict[str, evaluation.Decomposition]:
        merged = self._network(subject, t)
        return {
            split: evaluation.decompose(
                subject.model, ends, merged, t, subject.dataset, images, kept=self.kept, batch_size=self.batch_size
            )
            for split, images in subject.splits.images.items()
        }

    @staticmethod
    def _network(subject: Subject, t: float) -> State:
        return subject.correction(subject.joined.state(t), (1 - t, t))


def _rows(
    t: float, split: str, found: evaluation.Decomposition, labels: torch.Tensor
) -> list[tuple[float | int | str, ...]]:
    chosen = found.kept.tolist()
    of_kept = labels.cpu()[found.kept].tolist()
    values = torch.stack(astuple(found.terms)).T.tolist()
    return [(t, split, *row[:2], *row[2]) for row in zip(chosen, of_kept, values, strict=True)]


def _findings(split: str, found: evaluation.Decomposition, t: float) -> list[Finding]:
    of = partial(Finding, split=split, examples=found.examples)
    values = {
        "linearisation_error": ("loss", "nats", found.linearisation),
        "jensen_term": ("loss", "nats", found.jensen),
        "sum_of_terms": ("loss", "nats", found.linearisation + found.jensen),
        "barrier": ("loss", "nats", found.barrier),
        "positive_linearisation_error": ("examples", "fraction", found.positive),
    }
    places = [{"t": t}, {}] if t == 0.5 else [{"t": t}]
    return [
        of(what=what, metric=metric, unit=unit, value=value, more=more)
        for more in places
        for what, (metric, unit, value) in values.items()
    ]
