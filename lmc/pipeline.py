"""The order of the stages, written once: `run`, read from top to bottom, is the method section of a paper."""

import itertools
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from lmc import config, results
from lmc import state as states
from lmc.alignment.problem import Alignment, Problem
from lmc.curve.base import Curve
from lmc.endpoints.base import WEIGHTS_FILE, Ingredients
from lmc.evaluation.barycentre import measure_barycentre
from lmc.evaluation.measure import Measurement
from lmc.evaluation.path import path_points, read_raw, write_raw
from lmc.plan import Plan, stage_key
from lmc.results import PathName, PathPoint, Row
from lmc.state import State
from lmc.symmetry import transform as transforms
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.transform import LinearMap

log = logging.getLogger(__name__)

# What the unaligned line is made of; the same options and so the same artifacts as alignment=none curve=linear.
_IDENTITY = {"_target_": "lmc.alignment.none.NoAlignment"}
_LINE = {"_target_": "lmc.curve.linear.Linear"}

_MATCHING_FILE = "matching.json"
_TRACE_FILE = "trace.jsonl"
_MEASUREMENT_FILE = "measurement.json"


class Observer(Protocol):
    """Whoever wants to see how far the stages are."""

    def stage(self, label: str, total: int | None) -> AbstractContextManager[Callable[[Mapping[str, float]], None]]:
        """Begin a stage of `total` steps (None: not known); what it yields is called once a step with numbers."""
        ...


@dataclass
class Results:
    """What an experiment measured: one number a row, and the raw paths that barriers come from."""

    rows: list[Row] = field(default_factory=list)
    points: list[PathPoint] = field(default_factory=list)

    def add(self, other: "Results") -> None:
        """Append what `other` holds."""
        self.rows += other.rows
        self.points += other.points


@dataclass(frozen=True)
class Network:
    """An endpoint: its number, its key, and its tensors on the device of the plan."""

    label: int
    key: str
    state: State


@dataclass(frozen=True)
class Pair:
    """Two endpoints and what brings the second to the first; `key` is the transform's."""

    fixed: Network
    moving: Network
    transform: Permutation | LinearMap
    key: str

    @property
    def labels(self) -> tuple[int, int]:
        """(fixed, moving)."""
        return self.fixed.label, self.moving.label

    @property
    def name(self) -> str:
        """For progress and messages: "0-1"."""
        return f"{self.fixed.label}-{self.moving.label}"

    @property
    def ends(self) -> tuple[State, State]:
        """The fixed network and the aligned moving one."""
        return self.fixed.state, self.transform.apply(self.moving.state)


def run(plan: Plan, observer: Observer) -> Results:
    """Train or load the networks, align every pair, join it by a path, and measure the path.

    The straight line between the unaligned networks is always measured beside it.

    Args:
        plan: from `lmc.plan.prepare`, which has checked everything that can be checked before training.
        observer: is shown the progress and the history of every stage.

    Raises:
        UserError: training diverged, or the store can no longer be written.
    """
    networks = [_endpoint(plan, label, observer) for label in plan.labels]
    found = Results(rows=[row for network in networks for row in _endpoint_rows(plan, network)])
    aligned, unaligned = [], []
    for fixed, moving in itertools.combinations(networks, 2):
        pair, matching_rows = _align(plan, plan.settings["alignment"], fixed, moving, observer)
        plain, _ = _align(plan, _IDENTITY, fixed, moving, observer)
        found.rows += matching_rows
        found.add(_measure_path(plan, "aligned", pair, plan.settings["curve"], observer))
        found.add(_measure_path(plan, "unaligned", plain, _LINE, observer))
        aligned.append(pair)
        unaligned.append(plain)
    if len(networks) > 2:
        found.rows += _barycentre_rows(plan, "aligned", aligned)
        found.rows += _barycentre_rows(plan, "unaligned", unaligned)
    return found


def _endpoint(plan: Plan, label: int, observer: Observer) -> Network:
    """Train or load one network."""
    made_of: dict[str, Any] = {"architecture": plan.identity("architecture"), "member": plan.endpoints.identity(label)}
    parents, epochs = [], 1
    if plan.endpoints.trains:
        made_of["training"], parents, epochs = plan.identity("training"), [plan.dataset_key], plan.training.epochs
    ingredients = Ingredients(plan.network, plan.dataset, plan.training)

    def make(folder: Path) -> None:
        with observer.stage(f"network {label}", epochs) as advance:
            plan.endpoints.make(label, ingredients, folder, advance)

    artifact = plan.stage("endpoints", made_of, parents, make)
    return Network(label, artifact.key, states.to_device(states.load(artifact.folder / WEIGHTS_FILE), plan.device))


def _align(
    plan: Plan, node: Mapping[str, Any], fixed: Network, moving: Network, observer: Observer
) -> tuple[Pair, list[Row]]:
    """Find or load the transform that brings `moving` to `fixed`; return it with the rows that describe it."""
    alignment: Alignment = config.build(node, "alignment")
    made_of = {"alignment": config.identity(node, "alignment"), "seed": plan.seed}
    parents = [fixed.key, moving.key, *([plan.dataset_key] if alignment.needs_data else [])]
    problem = Problem(
        model=plan.model, symmetry=plan.symmetry, seed=plan.seed, device=plan.device, batches=_training_images(plan)
    )

    def make(folder: Path) -> None:
        with observer.stage(f"alignment {fixed.label}-{moving.label}", None) as advance:
            matching = alignment(fixed.state, moving.state, problem, advance)
        transforms.save(matching.transform, folder)
        if not matching.complete:  # not what the key promises, so it is not published
            log.warning("the best matching so far is kept in %s; another start begins this one anew", folder)
            raise KeyboardInterrupt
        (folder / _MATCHING_FILE).write_text(json.dumps({"objective": matching.objective}), encoding="utf-8")
        (folder / _TRACE_FILE).write_text("".join(json.dumps(s) + "\n" for s in matching.trace), encoding="utf-8")

    artifact = plan.stage("alignment", made_of, parents, make)
    pair = Pair(fixed, moving, transforms.load(artifact.folder, plan.symmetry), artifact.key)
    objective = json.loads((artifact.folder / _MATCHING_FILE).read_text(encoding="utf-8"))["objective"]
    values = {"objective": ("similarity", objective), "seconds": ("seconds", artifact.record["seconds"])}
    return pair, list(results.metric_rows("alignment", values, "aligned", pair.labels, None, 0, artifact.key))


def _training_images(plan: Plan) -> Callable[[int], Iterator[Tensor]]:
    """Batch size to the normalised training images in a fixed order in which classes are mixed."""
    images = plan.dataset.train.first(len(plan.dataset.train))
    return lambda batch_size: (inputs for inputs, _ in plan.dataset.batches(images, batch_size))


def _measure_path(plan: Plan, name: PathName, pair: Pair, node: Mapping[str, Any], observer: Observer) -> Results:
    """Fit or load the curve that joins a pair, and measure the path."""
    curve: Curve = config.build(node, "curve")
    ends = pair.ends
    curve_key, folder = _fitted(plan, curve, node, pair, observer)
    path = curve.path(*ends, folder)
    made_of = {group: plan.identity(group) for group in ("statistics", "evaluation")}

    def make(folder: Path) -> None:
        correction = plan.statistics.bind(plan.model, plan.symmetry, ends, plan.dataset)
        with observer.stage(f"{name} path {pair.name}", len(plan.evaluation.points)) as advance:
            write_raw(folder, plan.evaluation.measure(plan.model, path, correction, plan.dataset, advance))

    artifact = plan.stage("evaluation", made_of, [curve_key, plan.dataset_key], make)
    points = path_points(read_raw(artifact.folder), pair.labels, name)
    return Results(results.path_rows(points, {results.path_label(name, pair.labels): artifact.key}), points)


def _fitted(
    plan: Plan, curve: Curve, node: Mapping[str, Any], pair: Pair, observer: Observer
) -> tuple[str, Path | None]:
    """Return the key of the curve and, if it has to be fitted, the folder of what was fitted."""
    made_of: dict[str, Any] = {"curve": config.identity(node, "curve")}
    parents = [pair.fixed.key, pair.moving.key, pair.key]
    training = curve.training
    if training is None:
        return stage_key("curve", made_of, parents), None
    epochs = training.epochs

    def make(folder: Path) -> None:
        with observer.stage(f"curve {pair.name}", epochs) as advance:
            curve.fit(plan.model, *pair.ends, plan.dataset, seed=plan.seed, folder=folder, on_epoch=advance)

    artifact = plan.stage("curve", {**made_of, "seed": plan.seed}, [*parents, plan.dataset_key], make)
    return artifact.key, artifact.folder


def _endpoint_rows(plan: Plan, network: Network) -> list[Row]:
    """Measure an endpoint as it was trained, whatever is done to merged networks."""

    def measure() -> dict[str, Measurement]:
        return plan.evaluation.splits(plan.dataset).measure(plan.model, network.state)

    return _measured_rows(plan, "endpoint", None, (network.label,), {}, [network.key], measure)


def _barycentre_rows(plan: Plan, path: PathName, pairs: Sequence[Pair]) -> list[Row]:
    """Measure the mean of all networks, each aligned to the first."""
    reference = pairs[0].fixed
    towards = [pair for pair in pairs if pair.fixed is reference]
    members = [reference.state, *(pair.ends[1] for pair in towards)]
    labels = (reference.label, *(pair.moving.label for pair in towards))

    def measure() -> dict[str, Measurement]:
        correction = plan.statistics.bind(plan.model, plan.symmetry, members, plan.dataset)
        return measure_barycentre(plan.model, members, correction, plan.evaluation.splits(plan.dataset))

    parents = [reference.key, *(key for pair in towards for key in (pair.moving.key, pair.key))]
    made_of = {"statistics": plan.identity("statistics")}
    return _measured_rows(plan, "barycentre", path, labels, made_of, parents, measure)


def _measured_rows(
    plan: Plan,
    what: str,
    path: PathName | None,
    labels: tuple[int, ...],
    made_of: Mapping[str, Any],
    parents: Sequence[str],
    measure: Callable[[], dict[str, Measurement]],
) -> list[Row]:
    """Measure a single network, or read what was measured, and return loss and error on both splits."""

    def make(folder: Path) -> None:
        found = {split: asdict(measurement) for split, measurement in measure().items()}
        (folder / _MEASUREMENT_FILE).write_text(json.dumps(found), encoding="utf-8")

    whole = {"what": what, "evaluation": plan.identity("evaluation"), **made_of}
    artifact = plan.stage("evaluation", whole, [*parents, plan.dataset_key], make)
    rows: list[Row] = []
    for split, found in json.loads((artifact.folder / _MEASUREMENT_FILE).read_text(encoding="utf-8")).items():
        values = {"loss": ("nats", found["loss"]), "error": ("fraction", 1 - found["accuracy"])}
        rows += results.metric_rows(what, values, path, labels, split, found["examples"], artifact.key)
    return rows
