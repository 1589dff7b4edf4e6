"""Further looks at the networks that have been brought together, as many as were asked for."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

from lmc import config
from lmc.analysis.base import Analysis, Setting, Subject
from lmc.curve.base import Path as CurvePath
from lmc.plan import Plan
from lmc.results import ANALYSIS, Row
from lmc.stages.alignment import search
from lmc.stages.base import Network, Observer, Pair, Results
from lmc.stages.frame import in_first_frame
from lmc.stages.path import Joined
from lmc.state import State
from lmc.statistics.base import Correction

_FINDINGS_FILE = "findings.json"


def analyse_pair(plan: Plan, joined: Joined, observer: Observer) -> Results:
    """Run the analyses that look at a pair."""
    found = Results()
    for name, analysis in plan.analyses.items():
        if not analysis.together:
            networks = [joined.pair.fixed, joined.pair.moving]
            found.add(_analyse(plan, name, analysis, networks, joined.ends, joined.path, [joined.key], observer))
    return found


def analyse_together(plan: Plan, pairs: Sequence[Pair], observer: Observer) -> Results:
    """Run the analyses that look at all networks at once, each brought into the frame of the first."""
    chosen = {name: analysis for name, analysis in plan.analyses.items() if analysis.together}
    found = Results()
    if chosen and (frame := in_first_frame(pairs)) is not None:
        for name, analysis in chosen.items():
            found.add(_analyse(plan, name, analysis, frame.networks, frame.members, None, frame.parents, observer))
    return found


def _analyse(
    plan: Plan,
    name: str,
    analysis: Analysis,
    networks: Sequence[Network],
    in_frame: Sequence[State],
    path: CurvePath | None,
    parents: Sequence[str],
    observer: Observer,
) -> Results:
    labels = tuple(network.label for network in networks)
    label = "-".join(map(str, labels))
    made_of = {
        "analysis": config.identity(plan.settings["analysis"][name], f"analysis.{name}"),
        "seed": plan.seed,
        **{group: plan.identity(group) for group in ("statistics", "evaluation")},
    }

    def bind(states: Sequence[State]) -> Correction:
        return plan.statistics.bind(plan.model, plan.symmetry, states, plan.dataset)

    def make(folder: Path) -> None:
        subject = Subject(
            **{field.name: getattr(plan.setting, field.name) for field in fields(Setting)},
            networks=in_frame,
            trained=[network.checkpoints for network in networks],
            path=path,
            correction=bind(in_frame),
            bind=bind,
            seed=plan.seed,
            match=partial(search, plan, plan.setting.alignment),
        )
        with observer.stage(f"{name} {label}", analysis.steps(plan.setting)) as advance:
            findings = analysis(subject, folder, advance)
        text = json.dumps([asdict(finding) for finding in findings])
        (folder / _FINDINGS_FILE).write_text(text, encoding="utf-8")

    artifact = plan.stage("analysis", made_of, [*parents, plan.dataset_key], make)
    findings = json.loads((artifact.folder / _FINDINGS_FILE).read_text(encoding="utf-8"))
    rows = [
        Row(path="aligned", pair=labels, key=artifact.key, **{**finding, "more": {ANALYSIS: name, **finding["more"]}})
        for finding in findings
    ]
    return Results(rows, files={f"{name}_{label}_{file}": artifact.folder / file for file in analysis.files})
