"""Synthetic run folders whose barriers are known in closed form, and a browser that reads the page made of them."""

import html
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from lmc.results import PathPoint, Row, path_label, path_rows, write_path, write_rows, write_summary

POINTS = 25

MakeRun = Callable[..., Path]
Drive = Callable[..., Any]

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1000")

# What the script of a test may use; its answer is left in the document for --dump-dom.
TOOLS = """
<script>window.errors = []; window.onerror = function (text) { window.errors.push(text); };</script>
"""
PROBE = """
<script>
const all = (selector) => Array.from(document.querySelectorAll(selector));
const drawn = (selector) => all(selector).filter(
  (e) => getComputedStyle(e).display !== "none" && e.getTotalLength() > 50 && e.getBoundingClientRect().width > 50);
const names = () => all("#results tbody tr").map((row) => row.cells[0].textContent);
const head = (nth, label) => all("#results th[aria-sort] button").filter((b) => b.textContent.startsWith(label))[nth];
const answer = (function () { %s })();
const box = document.body.appendChild(document.createElement("pre"));
box.id = "answer";
box.textContent = JSON.stringify({ errors: window.errors, answer: answer });
</script>
"""


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
    made: Mapping[str, Any] | None = None,
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
        write_summary(folder / "summary.json", document, dict(choices or {}), rows, made or {})  # type: ignore[arg-type]  # None is "no option"
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


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    """Load a page, run a script body in it, and return what the script returned; no error may have happened."""
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH (apt-get install chromium)")

    def run(page: Path, script: str, *flags: str) -> Any:
        copy = tmp_path / "driven.html"
        text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + TOOLS)
        copy.write_text(text.replace("</body>", PROBE % script + "</body>"), encoding="utf-8")
        command = [
            str(CHROMIUM),
            *FLAGS,
            *flags,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            copy.as_uri(),
        ]
        document = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True).stdout
        found = re.search(r'<pre id="answer">(.*?)</pre>', document, re.DOTALL)
        assert found, document[-2000:]
        content = json.loads(html.unescape(found[1]))
        assert content["errors"] == []
        return content["answer"]

    return run
