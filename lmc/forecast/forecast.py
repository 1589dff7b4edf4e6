"""What of a job is there already, and how long the rest takes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from lmc import pipeline
from lmc.curve.trained import TrainedCurve
from lmc.forecast.times import Stopwatch
from lmc.plan import Plan, prepare
from lmc.stages.endpoints import endpoint_keys
from lmc.statistics.moments import Calibrated
from lmc.store import Artifact, Store

_PATHS = 2  # aligned and unaligned


@dataclass(frozen=True)
class Forecast:
    """What a job would do.

    Attributes:
        overrides: what makes it.
        networks: what has to be trained for it, by key: its epochs.
        there: keys of those that are in the store.
        missing: the first stage of which something is missing; None: the job finds all it needs.
        seconds_of_networks: of the training of each, by key; nothing for those that are there.
        seconds: of what comes after, judged by the steps of curves and measurements.
        device: where it would be computed.
    """

    overrides: Sequence[str]
    networks: dict[str, int]
    there: frozenset[str]
    missing: str | None
    seconds_of_networks: dict[str, float]
    seconds: float
    device: str


class _NotThereError(Exception):
    """Something would have to be made."""


class _Finding(Store):
    """A store that makes nothing."""

    def get_or_make(self, stage: str, key: str, *_: Any, **__: Any) -> Artifact:
        """Return the artifact; raise `_NotThereError`, with the stage, if it is not published."""
        found = self.find(stage, key)
        if found is None:
            raise _NotThereError(stage)
        return found


class _Nobody:
    """An observer of a pipeline that makes nothing."""

    def stage(self, label: str, total: int | None) -> AbstractContextManager[Any]:
        """Show nothing."""
        return nullcontext()


def forecast(overrides: Sequence[str], settings: dict[str, Any], stopwatch: Stopwatch) -> Forecast:
    """Return what a job would do; it is checked as it would be before it is run, and nothing is computed or written.

    Raises:
        UserError: the job could not be run.
    """
    plan = prepare(settings)
    networks = {key: epochs for label in plan.labels for key, epochs in endpoint_keys(plan, label).items()}
    there = frozenset(key for key in networks if plan.store.find("endpoints", key) is not None)
    training = {
        key: epochs * stopwatch.epoch(plan, plan.training) if epochs else 0.0
        for key, epochs in networks.items()
        if key not in there
    }
    missing = _first_missing(plan)
    after = 0.0 if missing is None else _after_training(plan, stopwatch)
    return Forecast(overrides, networks, there, missing, training, after, str(plan.device))


def _first_missing(plan: Plan) -> str | None:
    try:
        pipeline.run(replace(plan, store=_Finding(plan.store.root)), _Nobody())
    except _NotThereError as error:
        return str(error)
    return None


def _after_training(plan: Plan, stopwatch: Stopwatch) -> float:
    """Seconds of curves and of the measurement of all paths; not those of searches and analyses."""
    pairs = len(list(combinations(plan.labels, 2)))
    curve = plan.setting.curve
    fitting = curve.training.epochs * stopwatch.epoch(plan, curve.training) if isinstance(curve, TrainedCurve) else 0.0
    measured = sum(len(images) for images in plan.setting.splits.images.values())
    corrected = plan.statistics.examples or len(plan.dataset.train) if isinstance(plan.statistics, Calibrated) else 0
    points = len(plan.evaluation.points)
    return pairs * (fitting + _PATHS * points * (measured + corrected) * stopwatch.image(plan))
