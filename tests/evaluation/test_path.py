import itertools
import math

import pytest
import torch
import yaml

from lmc.config import build, conf_dir, identity, settings
from lmc.errors import UserError
from lmc.evaluation.measure import measure
from lmc.evaluation.path import PathEvaluation, RawPoint, path_points, read_raw, write_raw
from lmc.results import path_rows
from lmc.state import interpolate, of_model
from lmc.statistics.none import NoCorrection
from lmc.statistics.reset import Reset, recompute

NONE = NoCorrection().bind(None, None, (), None)


def test_every_point_is_the_network_at_t_on_both_splits(seeded, dataset, line):
    model, fixed, moving = seeded(9), of_model(seeded(0)), of_model(seeded(1))
    path, evaluation = line(fixed, moving), PathEvaluation(grid=5, train_examples=40, batch_size=16)
    seen = []
    raw = evaluation.measure(model, path, NONE, dataset, seen.append)
    assert [(p.t, p.split) for p in raw] == [(t, s) for t in (0, 0.25, 0.5, 0.75, 1) for s in ("train", "test")]
    for point in raw:
        images = dataset.train.first(40) if point.split == "train" else dataset.test
        expected = measure(model, interpolate(fixed, moving, point.t), dataset.batches(images, 500))
        assert point.loss == pytest.approx(expected.loss, rel=1e-6)
        assert (point.accuracy, point.examples) == (expected.accuracy, expected.examples)
        assert point.distance == path.distance([point.t])[0]
    assert [set(at) for at in seen] == [{"t", "train_loss", "test_loss", "train_accuracy", "test_accuracy"}] * 5
    assert seen[1]["test_loss"] == raw[3].loss
    assert len(evaluation.points) == len(seen)


def test_each_network_is_corrected_with_the_weights_of_its_ends(seeded, dataset, line):
    model, fixed, moving = seeded(9, norm=True), of_model(seeded(0, norm=True)), of_model(seeded(1, norm=True))
    used = []
    reset = Reset(augment=False).bind(model, None, (fixed, moving), dataset)

    def correction(state, weights):
        used.append(weights)
        return reset(state, weights)

    raw = PathEvaluation(grid=[0.0, 0.3, 1.0]).measure(model, line(fixed, moving), correction, dataset)
    assert used == [(1, 0), (0.7, 0.3), (0, 1)]
    merged = recompute(model, interpolate(fixed, moving, 0.3), [dataset.normalise(dataset.train.images)])
    assert raw[3].loss == pytest.approx(measure(model, merged, dataset.batches(dataset.test, 9)).loss, rel=1e-4)
    stale = PathEvaluation(grid=[0, 0.3, 1]).measure(model, line(fixed, moving), NONE, dataset)
    assert stale[3].loss != pytest.approx(raw[3].loss, rel=1e-2)


def test_nothing_handed_in_changes(seeded, dataset, line):
    model, fixed, moving = seeded(9, norm=True), of_model(seeded(0, norm=True)), of_model(seeded(1, norm=True))
    kept = [{n: x.clone() for n, x in s.items()} for s in (of_model(model), fixed, moving)]
    PathEvaluation(grid=3).measure(model, line(fixed, moving), NONE, dataset)
    for state, copy in zip((model.state_dict(), fixed, moving), kept, strict=True):
        assert all(torch.equal(tensor, copy[name]) for name, tensor in state.items())
    assert all(module.training for module in model.modules())


def test_a_path_from_a_network_to_itself_has_no_barrier(seeded, dataset, line):
    state = of_model(seeded(0))
    raw = PathEvaluation(grid=7).measure(seeded(9), line(state, dict(state)), NONE, dataset)
    rows = path_rows(path_points(raw, (0, 1), "aligned"), {"aligned/0-1": "key"})
    barriers = [row.value for row in rows if row.what.startswith("barrier")]
    assert len(barriers) == 12  # three definitions, two metrics, two splits
    assert max(map(abs, barriers)) < 1e-12


@pytest.mark.parametrize("points", [3, 5, 25, 61, 101])
def test_equal_grids_hold_0_the_middle_and_1_exactly(points):
    grid = PathEvaluation(grid=points).points
    assert len(grid) == points
    assert {0.0, 0.5, 1.0} <= set(grid)
    assert [b - a for a, b in itertools.pairwise(grid)] == pytest.approx([1 / (points - 1)] * (points - 1))


def test_a_grid_can_be_given_point_by_point():
    assert PathEvaluation(grid=[0, 0.1, 1]).points == (0.0, 0.1, 1.0)


@pytest.mark.parametrize(
    ("grid", "says"),
    [
        (1, "odd number"),
        (2, "odd number"),
        (24, "odd number"),
        ([], "without 0 and 1"),
        ([0.0, 0.5], "without 0 and 1"),
        ([0.1, 1.0], "without 0 and 1"),
        ([1.0, 0.5, 0.0], "without 0 and 1"),
        ([0.0, 0.7, 0.3, 1.0], "does not increase"),
        ([0.0, 0.5, 0.5, 1.0], "does not increase"),
        ([0.0, math.nan, 1.0], "does not increase"),
    ],
)
def test_grids_that_cannot_be_used_are_refused(grid, says):
    with pytest.raises(UserError, match=says):
        PathEvaluation(grid=grid)


@pytest.fixture
def node():
    with open(f"{conf_dir()}/evaluation/path.yaml", encoding="utf-8") as file:
        return yaml.safe_load(file)


def test_option_lists_every_setting_with_its_default(node):
    assert settings(node, "evaluation") == node
    assert settings({"_target_": node["_target_"]}, "evaluation") == node
    assert build(node, "evaluation") == PathEvaluation()


def test_the_batch_size_is_not_part_of_the_key(node):
    changed = identity({**node, "batch_size": 3}, "evaluation")
    assert changed == identity(node, "evaluation")
    assert identity({**node, "grid": 11}, "evaluation") != changed


@pytest.mark.parametrize("wrong", [{"grid": "fine"}, {"grid": 0}, {"train_examples": 0}, {"batch_size": 0}, {"n": 1}])
def test_wrong_settings_are_refused_by_name(node, wrong):
    with pytest.raises(UserError, match=rf"evaluation\.{next(iter(wrong))}"):
        build({**node, **wrong}, "evaluation")


def test_raw_points_are_read_back_bit_for_bit(tmp_path):
    numbers = [0.1 + 0.2, 1 / 3, 5e-324, 1e300, math.inf]
    points = [
        RawPoint(t=0.1 * k, split="test", loss=x, accuracy=1 / 7, distance=x / 3, examples=10**6)
        for k, x in enumerate(numbers)
    ]
    write_raw(tmp_path, points)
    assert read_raw(tmp_path) == points
    diverged = RawPoint(t=0.5, split="train", loss=math.nan, accuracy=0.1, distance=0.0, examples=3)
    write_raw(tmp_path, [diverged])
    assert math.isnan(read_raw(tmp_path)[0].loss)


def test_a_raw_file_that_was_cut_is_refused_with_its_line(tmp_path):
    point = RawPoint(t=0.5, split="train", loss=1.5, accuracy=0.1, distance=0.0, examples=30)
    write_raw(tmp_path, [point, point])
    file = tmp_path / "points.csv"
    file.write_text(file.read_text()[:-12])
    with pytest.raises(UserError, match="line 3"):
        read_raw(tmp_path)
