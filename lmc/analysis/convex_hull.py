"""Random mixtures of all networks."""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, PositiveInt

from lmc import seeding
from lmc.analysis.base import Finding, OnStep, Setting, Subject
from lmc.analysis.lines import Barriers as Levels
from lmc.analysis.lines import examples_of, findings, summary
from lmc.evaluation.measure import Measurement
from lmc.state import mean

FILE = "mixtures.csv"


@dataclass(frozen=True, kw_only=True)
class ConvexHull:
    """Measure networks drawn at random from the convex hull of all networks, in the frame of the first.

    If every two networks are connected in one frame, is all that lies between them as good? The excess of a mixture
    sum_i w_i W_i is L(mixture) - sum_i w_i L(W_i): for two networks the excess over the straight line whose maximum is
    the barrier. The networks themselves are corrected like every mixture.

    Args:
        samples: how many mixtures.
        concentration: of the Dirichlet distribution that the weights are drawn from; 1: uniform, larger: nearer to the
            mean of all networks, smaller: nearer to single ones.

    Raises:
        UserError: a setting is out of its range.
    """

    files: ClassVar[tuple[str, ...]] = (FILE,)
    together: ClassVar[bool] = True

    samples: PositiveInt = 20
    concentration: Annotated[float, Field(gt=0)] = 1.0

    def steps(self, setting: Setting) -> int:
        """Return the number of networks and of mixtures."""
        return len(setting.labels) + self.samples

    def check(self, setting: Setting) -> None:
        """Accept every setting."""

    def __call__(self, subject: Subject, folder: FilePath, on_step: OnStep) -> list[Finding]:
        """Return the mean and the largest excess over the mixtures ("hull_mean_excess", "hull_largest_excess")."""
        count = len(subject.networks)
        draw = np.random.default_rng(seeding.derive(subject.seed, "convex_hull"))
        drawn = draw.dirichlet([self.concentration] * count, self.samples)
        mixtures: list[list[float]] = [*np.eye(count).tolist(), *drawn.tolist()]
        levels: list[Levels] = []
        with (folder / FILE).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow((*(f"weight_{label}" for label in subject.labels), "split", "loss", "accuracy", "examples"))
            for weights in mixtures:
                state = subject.correction(mean(subject.networks, weights), weights)
                measured = subject.splits.measure(subject.model, state)
                levels.append(_levels(measured))
                for split, of in measured.items():
                    writer.writerow((*weights, split, of.loss, of.accuracy, of.examples))
                on_step({"mixture": len(levels), "test_loss": measured["test"].loss})
        drawn_levels = zip(mixtures[count:], levels[count:], strict=True)
        excess = [_excess(weights, levels[:count], mixture) for weights, mixture in drawn_levels]
        examples = examples_of(subject)
        return [
            one
            for name, of_all in (("mean", statistics.fmean), ("largest", max))
            for one in findings(f"hull_{name}_excess", summary(of_all, excess), examples)
        ]


def _excess(weights: Sequence[float], alone: Sequence[Levels], mixture: Levels) -> Levels:
    """What a mixture has more than its networks have on average."""
    return {
        name: value - math.fsum(weight * one[name] for weight, one in zip(weights, alone, strict=True))
        for name, value in mixture.items()
    }


def _levels(measured: Mapping[str, Measurement]) -> Levels:
    losses = {(split, "loss"): of.loss for split, of in measured.items()}
    return losses | {(split, "error"): 1 - of.accuracy for split, of in measured.items()}
