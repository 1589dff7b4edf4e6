"""Networks brought together: every pair on its own, or all of them into one frame."""

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lmc import config, results
from lmc.alignment.problem import Alignment, Matching, OnStep, Problem
from lmc.merge.base import JointMerge
from lmc.plan import Plan
from lmc.results import Row
from lmc.stages.base import Network, Observer, Pair
from lmc.state import State
from lmc.symmetry import transform as transforms
from lmc.symmetry.permutation import Permutation

log = logging.getLogger(__name__)

IDENTITY = {"_target_": "lmc.alignment.none.NoAlignment"}
"""What the unaligned pairs are made of; the same option and so the same artifact as alignment=none."""

_FIXED = "fixed"
_MATCHING_FILE = "matching.json"
_TRACE_FILE = "trace.jsonl"


def align(
    plan: Plan, node: Mapping[str, Any], fixed: Network, moving: Network, observer: Observer
) -> tuple[Pair, list[Row]]:
    """Find or load what brings `moving` to `fixed`; return the pair with the rows that describe the search."""
    alignment: Alignment = config.build(node, "alignment")
    made_of = {"alignment": config.identity(node, "alignment"), "seed": plan.seed}
    parents = [fixed.key, moving.key, *([plan.dataset_key] if alignment.needs_data else [])]

    def make(folder: Path) -> None:
        with observer.stage(f"alignment {fixed.label}-{moving.label}", None) as advance:
            matching = search(plan, alignment, fixed.checkpoints, moving.checkpoints, advance)
        transforms.save(matching.transform, folder)
        if matching.fixed_transform is not None:
            (folder / _FIXED).mkdir(exist_ok=True)
            transforms.save(matching.fixed_transform, folder / _FIXED)
        _finish(folder, matching.objective, matching.trace, complete=matching.complete)

    artifact = plan.stage("alignment", made_of, parents, make)
    folder = artifact.folder
    fixed_transform = transforms.load(folder / _FIXED, plan.symmetry) if (folder / _FIXED).is_dir() else None
    pair = Pair(fixed, moving, transforms.load(folder, plan.symmetry), fixed_transform, artifact.key)
    return pair, _search_rows(folder, pair.labels, artifact.key, artifact.record["seconds"])


def search(
    plan: Plan, alignment: Alignment, fixed: Sequence[State], moving: Sequence[State], on_step: OnStep
) -> Matching:
    """Return what brings two networks together, each given as its checkpoints, the oldest first."""
    *earlier, (fixed_end, moving_end) = zip(fixed, moving, strict=True)
    return alignment(fixed_end, moving_end, replace(_problem(plan), earlier=tuple(earlier)), on_step)


def join(
    plan: Plan, merge: JointMerge, networks: Sequence[Network], observer: Observer
) -> tuple[list[Pair], list[Row]]:
    """Find or load the frame of all networks; return every pair in it, with the rows that describe the search."""
    node = plan.settings["alignment"]
    alignment: Alignment = config.build(node, "alignment")
    made_of = {"merge": plan.identity("merge"), "alignment": plan.identity("alignment"), "seed": plan.seed}
    reads_data = merge.needs_data or alignment.needs_data
    parents = [*(network.key for network in networks), *([plan.dataset_key] if reads_data else [])]

    def make(folder: Path) -> None:
        with observer.stage("frame of all networks", None) as advance:
            frame = merge([network.state for network in networks], alignment, _problem(plan), advance)
        for number, permutation in enumerate(frame.permutations):
            permutation.save(_member(folder, number))
        _finish(folder, frame.objective, frame.trace, complete=frame.complete)

    artifact = plan.stage("alignment", made_of, parents, make)
    into = [Permutation.load(_member(artifact.folder, number), plan.symmetry) for number in range(len(networks))]
    pairs = [
        Pair(networks[i], networks[j], into[j], into[i], artifact.key)
        for i, j in itertools.combinations(range(len(networks)), 2)
    ]
    labels = tuple(network.label for network in networks)
    return pairs, _search_rows(artifact.folder, labels, artifact.key, artifact.record["seconds"])


def _member(folder: Path, number: int) -> Path:
    return folder / f"permutation_{number}.safetensors"


def _finish(folder: Path, objective: float, trace: Iterable[Mapping[str, float]], *, complete: bool) -> None:
    """Write what else is known of a search; one that was interrupted is not what the key promises: not published."""
    if not complete:
        log.warning("the best matching so far is kept in %s; another start begins this one anew", folder)
        raise KeyboardInterrupt
    (folder / _MATCHING_FILE).write_text(json.dumps({"objective": objective}), encoding="utf-8")
    (folder / _TRACE_FILE).write_text("".join(json.dumps(step) + "\n" for step in trace), encoding="utf-8")


def _search_rows(folder: Path, labels: tuple[int, ...], key: str, seconds: float) -> list[Row]:
    objective = json.loads((folder / _MATCHING_FILE).read_text(encoding="utf-8"))["objective"]
    values = {"objective": ("similarity", objective), "seconds": ("seconds", seconds)}
    return list(results.metric_rows("alignment", values, "aligned", labels, None, 0, key))


def _problem(plan: Plan) -> Problem:
    """A problem with the normalised training images, in a fixed order in which classes are mixed, and their labels."""
    train = plan.dataset.train.first(len(plan.dataset.train))

    def labelled(batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        return plan.dataset.batches(train, batch_size)

    return Problem(
        model=plan.model,
        symmetry=plan.symmetry,
        seed=plan.seed,
        device=plan.device,
        batches=lambda batch_size: (images for images, _ in labelled(batch_size)),
        labelled=labelled,
    )
