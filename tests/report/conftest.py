"""Synthetic run folders whose barriers are known in closed form."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lmc.results import PathPoint, Row, path_label, path_rows, write_path, write_rows, write_summary

POINTS = 25

MakeRun = Callable[..., Path]


def _points(pair: tuple[int, int], path: str, split: str, height: float) -> list[PathPoint]:
    """A parabola over the line from 0.1 to 0.3: its loss barrier and its midpoint barrier are `height` exactly."""
    found = []
    for step in range(POINTS):
        t = step / (POINTS - 1)
        loss = 0.1 + 0.2 * t + 4 * height * t * (1 - t)
        accuracy = 0.97 - 0.02 * t - 4 * min(height, 2.0) * 0.25 * t * (1 - t)
        found.append(
            PathPoint(
                pair=pair, path=path, split=split, t=t, loss=loss, accuracy=accuracy, distance=10 * t, examples=1000
            )
        )
    return found


def _run(
    folder: Path,
    *,
    seeds: Sequence[int] = (0, 1),
    heights: Mapping[tuple[int, int], float] | float = 0.02,
    unaligned: float = 0.8,
    choices: Mapping[str, str | None] | None = None,
    settings: Mapping[str, Any] | None = None,
    finished: bool = True,
) -> Path:
    """Write a run folder: the train loss barrier of a pair is its height, on test data half as much again."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(f"- seeds=[{','.join(map(str, seeds))}]\n- alignment=some\n")
    key = repr(sorted((choices or {}).items())) + repr(settings)
    points, rows = [], []
    for pair in combinations(seeds, 2):
        height = heights if isinstance(heights, float) else heights[pair]
        for split, factor in (("train", 1.0), ("test", 1.5)):
            points += _points(pair, "unaligned", split, unaligned * factor)
            points += _points(pair, "aligned", split, height * factor)
        shared = {"what": "alignment", "path": "aligned", "split": None, "examples": 0, "key": f"a{key}{pair}"}
        rows.append(Row(**shared, pair=pair, metric="objective", unit="", value=100.0))
        rows.append(Row(**shared, pair=pair, metric="seconds", unit="seconds", value=1.25))
    keys = {path_label(p.path, p.pair): f"{key}/{path_label(p.path, p.pair)}" for p in points}
    rows = path_rows(points, keys) + rows
    for seed in seeds:
        for split in ("train", "test"):
            for metric, value, unit in (("loss", 0.1 + 0.01 * seed, "nats"), ("error", 0.03 + 0.01 * seed, "fraction")):
                rows.append(
                    Row(
                        what="endpoint", path=None, pair=(seed,), split=split, metric=metric, unit=unit,
                        value=value, examples=1000, key=f"endpoint-{seed}",
                    )
                )  # fmt: skip
    write_rows(folder / "results.jsonl", rows)
    write_path(folder / "path.csv", points)
    if finished:
        document = {"seeds": list(seeds), "device": "cpu", "store": {"root": str(folder)}, **(settings or {})}
        write_summary(folder / "summary.json", document, dict(choices or {}), rows, {})  # type: ignore[arg-type]  # None is "no option"
    return folder


@pytest.fixture
def make_run() -> MakeRun:
    return _run


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three alignments on two pairs of seeds each, as six jobs, and a job that did not end."""
    folder = tmp_path / "sweep"
    heights = {"none": (0.8, 0.9), "activation_matching": (0.05, 0.07), "weight_matching": (0.02, 0.01)}
    job = 0
    for alignment, of_pairs in heights.items():
        for seeds, height in zip(((0, 1), (2, 3)), of_pairs, strict=True):
            _run(
                folder / str(job),
                seeds=seeds,
                heights=height,
                choices={"dataset": "digits", "alignment": alignment, "tracker": "wandb", "experiment": None},
                settings={"alignment": {"_target_": f"lmc.alignment.{alignment}.X"}, "tracker": {"mode": f"m{job}"}},
            )
            job += 1
    _run(folder / str(job), seeds=(4, 5), finished=False)
    assert math.isclose(sum(heights["none"]), 1.7)
    return folder
