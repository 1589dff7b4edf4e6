"""Pairs of networks joined by a line or a fitted curve, and the path measured."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmc import config, results
from lmc.curve.base import Curve, JointCurve
from lmc.curve.base import Path as CurvePath
from lmc.curve.trained import TrainedCurve
from lmc.errors import UserError
from lmc.evaluation.path import path_points, read_raw, write_raw
from lmc.plan import Plan, stage_key
from lmc.results import VARIANCE, PathName
from lmc.stages.base import Observer, Pair, Results
from lmc.stages.frame import in_first_frame
from lmc.state import State
from lmc.statistics.moments import Calibration
from lmc.statistics.variance import variance_ratios

LINE = {"_target_": "lmc.curve.linear.Linear"}
"""What joins the unaligned pairs; the same option and so the same artifact as curve=linear."""

_VARIANCE_FILE = "variance.json"
_VARIANCE_IMAGES = 1000
"""At most so many training images tell what is left of the variance of activations."""


@dataclass(frozen=True)
class Joined:
    """A pair and the path that joins it.

    Attributes:
        pair: the two networks.
        ends: the networks where the path begins and ends; those of the pair, or the same two in the frame of all.
        path: from the fixed to the moving one.
        key: of the curve.
    """

    pair: Pair
    ends: tuple[State, State]
    path: CurvePath
    key: str


def join_pairs(plan: Plan, pairs: Sequence[Pair], node: Mapping[str, Any], observer: Observer) -> Iterator[Joined]:
    """Fit or load the curves that join the pairs: one after the other, or at first what joins all networks."""
    curve: Curve | JointCurve = config.build(node, "curve")
    if isinstance(curve, JointCurve):
        yield from _joined_at_once(plan, curve, node, pairs, observer)
        return
    for pair in pairs:
        key, folder = _fitted(plan, curve, node, pair, observer)
        yield Joined(pair, pair.ends, curve.path(*pair.ends, folder), key)


def measure_path(plan: Plan, name: PathName, joined: Joined, observer: Observer) -> Results:
    """Measure the path of a pair, and the variance of activations in its middle."""
    pair, path, ends = joined.pair, joined.path, joined.ends
    made_of = {group: plan.identity(group) for group in ("statistics", "evaluation")}

    def make(folder: Path) -> None:
        correction = plan.statistics.bind(plan.model, plan.symmetry, ends, plan.dataset)
        with observer.stage(f"{name} path {pair.name}", len(plan.evaluation.points)) as advance:
            write_raw(folder, plan.evaluation.measure(plan.model, path, correction, plan.dataset, advance))
        middle = path.state(0.5)
        images = Calibration(plan.dataset, min(_VARIANCE_IMAGES, len(plan.dataset.train)), batch_size=500)
        ratios = variance_ratios(plan.model, plan.symmetry, ends, middle, correction(middle, (0.5, 0.5)), images)
        text = json.dumps([asdict(ratio) for ratio in ratios])
        (folder / _VARIANCE_FILE).write_text(text, encoding="utf-8")

    artifact = plan.stage("evaluation", made_of, [joined.key, plan.dataset_key], make)
    points = path_points(read_raw(artifact.folder), pair.labels, name)
    rows = results.path_rows(points, {results.path_label(name, pair.labels): artifact.key})
    for ratio in json.loads((artifact.folder / _VARIANCE_FILE).read_text(encoding="utf-8")):
        values = {when: ("ratio", ratio[when]) for when in ("before", "after")}
        of_layer = results.metric_rows(VARIANCE, values, name, pair.labels, "train", _VARIANCE_IMAGES, artifact.key)
        rows += [replace(row, more={"layer": ratio["layer"], "units": ratio["units"]}) for row in of_layer]
    return Results(rows, points)


def _joined_at_once(
    plan: Plan, curve: JointCurve, node: Mapping[str, Any], pairs: Sequence[Pair], observer: Observer
) -> Iterator[Joined]:
    frame = in_first_frame(pairs)
    if frame is None:
        raise UserError(
            "this curve joins all networks at once, and the alignment changes the first of them anew for every pair; "
            "choose an alignment that gives permutations, or a curve that joins two networks (curve=bezier)"
        )
    made_of = {"curve": config.identity(node, "curve"), "seed": plan.seed}

    def make(folder: Path) -> None:
        with observer.stage("curve of all networks", curve.training.epochs) as advance:
            curve.fit_jointly(plan.model, frame.members, plan.dataset, seed=plan.seed, folder=folder, on_epoch=advance)

    artifact = plan.stage("curve", made_of, [*frame.parents, plan.dataset_key], make)
    members = dict(zip(frame.labels, frame.members, strict=True))
    for pair in pairs:
        fixed, moving = (members[label] for label in pair.labels)
        path = curve.path(fixed, moving, artifact.folder)
        key = stage_key("curve", {"pair": list(pair.labels)}, [artifact.key])
        yield Joined(pair, (fixed, moving), path, key)


def _fitted(
    plan: Plan, curve: Curve, node: Mapping[str, Any], pair: Pair, observer: Observer
) -> tuple[str, Path | None]:
    """Return the key of the curve and, if it has to be fitted, the folder of what was fitted."""
    made_of: dict[str, Any] = {"curve": config.identity(node, "curve")}
    parents = [pair.fixed.key, pair.moving.key, pair.key]
    if not isinstance(curve, TrainedCurve):
        return stage_key("curve", made_of, parents), None

    def make(folder: Path) -> None:
        with observer.stage(f"curve {pair.name}", curve.training.epochs) as advance:
            curve.fit(plan.model, *pair.ends, plan.dataset, seed=plan.seed, folder=folder, on_epoch=advance)

    artifact = plan.stage("curve", {**made_of, "seed": plan.seed}, [*parents, plan.dataset_key], make)
    return artifact.key, artifact.folder
