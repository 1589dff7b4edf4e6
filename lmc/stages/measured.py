"""A single network measured, and the result kept."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lmc import results
from lmc.evaluation.measure import Measurement
from lmc.plan import Plan
from lmc.results import PathName, Row

_MEASUREMENT_FILE = "measurement.json"


def measured_rows(
    plan: Plan,
    what: str,
    path: PathName | None,
    labels: tuple[int, ...],
    made_of: Mapping[str, Any],
    parents: Sequence[str],
    measure: Callable[[], dict[str, Measurement]],
) -> list[Row]:
    """Measure a single network, or read what was measured, and return loss and error on both splits."""

    def make() -> dict[str, Any]:
        return {split: asdict(measurement) for split, measurement in measure().items()}

    whole = {"what": what, "evaluation": plan.identity("evaluation"), **made_of}
    key, document = kept(plan, whole, parents, make)
    rows: list[Row] = []
    for split, found in document.items():
        values = {"loss": ("nats", found["loss"]), "error": ("fraction", 1 - found["accuracy"])}
        rows += results.metric_rows(what, values, path, labels, split, found["examples"], key)
    return rows


def kept(
    plan: Plan, made_of: Mapping[str, Any], parents: Sequence[str], make: Callable[[], dict[str, Any]]
) -> tuple[str, dict[str, Any]]:
    """Return the key and the numbers (a JSON document) of a measurement, from the store or freshly made by `make`."""

    def write(folder: Path) -> None:
        (folder / _MEASUREMENT_FILE).write_text(json.dumps(make()), encoding="utf-8")

    artifact = plan.stage("evaluation", made_of, [*parents, plan.dataset_key], write)
    return artifact.key, json.loads((artifact.folder / _MEASUREMENT_FILE).read_text(encoding="utf-8"))
