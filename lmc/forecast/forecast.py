"""What of a job is there already, and how long the rest takes."""

import json
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


@dataclass(frozen=True)
class Forecast:
    """What a job would do.

    Attributes:
        overrides: what makes it.
        networks: what has to be trained for it, by key: its epochs.
        there: keys of those that are in the store.
        missing: the first stage of which something is missing; None: the job finds all it needs.
        shared: seconds of what other jobs may need too, by key: the training of each network that is not there, and
            the measurement of the unaligned paths.
        seconds: of what is the job's own, judged by the steps of curves and measurements.
        device: where it would be computed.
    """

    overrides: Sequence[str]
    networks: dict[str, int]
    there: frozenset[str]
    missing: str | None
    shared: dict[str, float]
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
    shared = {
        key: epochs * stopwatch.epoch(plan, plan.training) if epochs else 0.0
        for key, epochs in networks.items()
        if key not in there
    }
    missing = _first_missing(plan)
    own = 0.0
    if missing is not None:
        paths = _seconds_of_paths(plan, stopwatch)
        groups = ("architecture", "statistics", "evaluation")
        measured = json.dumps([sorted(networks), *map(plan.identity, groups)], sort_keys=True)
        shared[f"unaligned paths of {measured}"] = paths
        own = _seconds_of_curves(plan, stopwatch) + paths
    return Forecast(overrides, networks, there, missing, shared, own, str(plan.device))


def _first_missing(plan: Plan) -> str | None:
    try:
        pipeline.run(replace(plan, store=_Finding(plan.store.root)), _Nobody())
    except _NotThereError as error:
        return str(error)
    return None


def _pairs(plan: Plan) -> int:
    return len(list(combinations(plan.labels, 2)))


def _seconds_of_curves(plan: Plan, stopwatch: Stopwatch) -> float:
    """Seconds that it takes to fit the curves of all pairs."""
    curve = plan.setting.curve
    if not isinstance(curve, TrainedCurve):
        return 0.0
    return _pairs(plan) * curve.training.epochs * stopwatch.epoch(plan, curve.training)


def _seconds_of_paths(plan: Plan, stopwatch: Stopwatch) -> float:
    """Seconds that it takes to measure one path for each pair."""
    measured = sum(len(images) for images in plan.setting.splits.images.values())
    corrected = plan.statistics.examples or len(plan.dataset.train) if isinstance(plan.statistics, Calibrated) else 0
    points = len(plan.evaluation.points)
    return _pairs(plan) * points * (measured + corrected) * stopwatch.image(plan)
