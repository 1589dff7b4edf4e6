"""Every analysis, found by glob, in a whole experiment."""

from pathlib import Path

import numpy as np
import pytest

from lmc import config
from lmc.errors import UserError
from lmc.pipeline import Results
from lmc.results import ANALYSIS, path_statistics
from tests import whole

FOLDER = Path(config.conf_dir()) / "analysis"
OPTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
QUICK = ("architecture.depth=1", "training.epochs=1", "curve=bezier")
NEEDED = {
    "backdoor": ["dataset/trigger=square", "dataset.validation_size=20"],
    "plane": ["analysis.plane.grid=3"],
    "robustness": ["analysis.robustness.grid=3"],
    "frankenstein": ["endpoints=trajectory", "endpoints.epochs=[1]", "training.epochs=2"],
    "simultaneous_connectivity": ["endpoints=trajectory", "endpoints.epochs=[1]", "training.epochs=2"],
    "strong_connectivity": ["seeds=[0,1,2]"],
    "transitivity": ["seeds=[0,1,2]", "analysis.transitivity.longest=2"],
}


def run(*overrides: str) -> tuple[Results, whole.Silent]:
    return whole.run(*QUICK, *overrides)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_analysis_runs_counts_its_steps_and_is_kept(name: str):
    overrides = [f"analysis={name}", *NEEDED.get(name, [])]
    found, observer = run(*overrides)
    mine = [row for row in found.rows if row.more.get(ANALYSIS) == name]
    assert mine
    assert all(row.pair[:2] == (0, 1) and np.isfinite(row.value) for row in mine)
    total, taken = observer.steps[f"{name} {'-'.join(map(str, mine[0].pair))}"]
    assert total == len(taken)
    assert all(path.is_file() for path in found.files.values())
    again, second = run(*overrides)
    assert again == found
    assert second.steps == {}


def test_several_analyses_leave_what_each_alone_leaves():
    both, _ = run("analysis=[ensemble,correlation]")
    for name in ("ensemble", "correlation"):
        alone, _ = run(f"analysis={name}")
        mine = [row for row in both.rows if row.more.get(ANALYSIS) == name]
        assert mine == [row for row in alone.rows if row.more.get(ANALYSIS) == name]


def test_the_robust_barrier_is_that_of_its_points():
    found, _ = run("analysis=robustness", "analysis.robustness.grid=5", "analysis.robustness.attack.budget=0.1")
    rows = [row for row in found.rows if row.more.get(ANALYSIS) == "robustness" and row.metric == "robust_error"]
    points = {row.more["t"]: row.value for row in rows if row.what == "point"}
    assert sorted(points) == [0, 0.25, 0.5, 0.75, 1]
    expected = path_statistics(sorted(points), [points[t] for t in sorted(points)])
    values = {row.what: row.value for row in rows if row.what != "point"}
    for what in ("barrier", "barrier_midpoint", "path_min", "path_max", "path_mean"):
        assert values[what] == pytest.approx(expected[what])
    plain = {row.what: row.value for row in found.rows if row.path == "aligned" and row.metric == "error"}
    assert values["path_max"] >= plain["path_max"]


def test_a_poisoned_dataset_trains_its_networks_once_for_any_number_of_clean_images():
    _, first = run("analysis=backdoor", *NEEDED["backdoor"])
    _, second = run("analysis=backdoor", *NEEDED["backdoor"], "dataset.trigger.clean=10")
    assert "network 0" in first.steps
    assert "network 0" not in second.steps
    assert "curve 0-1" in second.steps


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analysis=plane", "curve=linear"], "needs a curve that bends"),
        (["analysis=plane", "analysis.plane.through=networks"], "needs three networks, and there are 2"),
        (["analysis=backdoor"], "has no trigger whose success could be seen"),
        (["analysis=robustness", "analysis.robustness.grid=4"], "a grid of 4 points"),
        (["analysis=robustness", "analysis.robustness.attack.budget=-1"], "attack.budget"),
        (["analysis=ensemble", "analysis.ensemble.points=2"], "a grid of 2 points"),
        (["curve=simplex", "curve.vertices=1000"], "a simplex of that dimension has no volume among"),
        (
            ["curve=geodesic", "training/attack@curve.training.attack=pgd"],
            r"curve\.training\.attack: this curve looks at several networks",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_before_training(overrides: list[str], message: str):
    with pytest.raises(UserError, match=message):
        run(*overrides)


def test_a_star_joins_all_networks_through_one_hub():
    found, observer = run("curve=star", "seeds=[0,1,2]")
    assert [label for label in observer.steps if label.startswith("curve")] == ["curve of all networks"]
    ends = {
        row.pair[0]: row.value
        for row in found.rows
        if row.what == "endpoint" and row.split == "test" and row.metric == "loss"
    }
    for point in found.points:
        if point.path == "aligned" and point.split == "test" and point.t in (0, 1):
            assert point.loss == pytest.approx(ends[point.pair[int(point.t)]], rel=1e-5)
    middles = {p.pair: p.loss for p in found.points if p.path == "aligned" and p.split == "test" and p.t == 0.5}
    assert len(middles) == 3
    assert len({round(loss, 9) for loss in middles.values()}) == 1  # the hub itself
