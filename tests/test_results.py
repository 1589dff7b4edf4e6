"""Rows and raw paths: written and read again, and what is refused."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from lmc import results
from lmc.errors import UserError
from lmc.results import PathPoint, Row

ROW = Row(
    what="barrier",
    path="aligned",
    pair=(0, 1),
    split="test",
    metric="loss",
    unit="nats",
    value=0.1 + 0.2,
    examples=360,
    key="k",
    more={"layer": "conv1"},
)


def point(t: float, **changes: object) -> PathPoint:
    made = PathPoint(
        pair=(0, 1), path="aligned", split="test", t=t, loss=t / 3, accuracy=1 - t / 7, distance=2 * t, examples=9
    )
    return dataclasses.replace(made, **changes)


def test_rows_are_read_as_they_were_written(tmp_path: Path):
    rows = [ROW, dataclasses.replace(ROW, path=None, split=None, pair=(2,), value=-1e-300, more={})]
    results.write_rows(tmp_path / "r.jsonl", rows)
    assert results.read_rows(tmp_path / "r.jsonl") == rows


def test_a_row_is_flat_and_has_the_documented_fields():
    assert ROW.as_dict() == {
        "what": "barrier",
        "path": "aligned",
        "pair": [0, 1],
        "split": "test",
        "metric": "loss",
        "unit": "nats",
        "value": 0.1 + 0.2,
        "examples": 360,
        "key": "k",
        "layer": "conv1",
    }


def test_a_file_cut_in_half_names_the_line(tmp_path: Path):
    results.write_rows(tmp_path / "r.jsonl", [ROW, ROW])
    text = (tmp_path / "r.jsonl").read_text(encoding="utf-8")
    (tmp_path / "r.jsonl").write_text(text[: len(text) * 3 // 4], encoding="utf-8")
    with pytest.raises(UserError, match=r"r\.jsonl, line 2: not a whole result row"):
        results.read_rows(tmp_path / "r.jsonl")


def test_paths_are_read_as_they_were_written(tmp_path: Path):
    points = [point(t) for t in (0.0, 1 / 3, 1.0)]
    results.write_path(tmp_path / "p.csv", points)
    assert results.read_path(tmp_path / "p.csv") == points


def test_a_path_cut_in_half_names_the_line(tmp_path: Path):
    results.write_path(tmp_path / "p.csv", [point(0.0), point(1.0)])
    text = (tmp_path / "p.csv").read_text(encoding="utf-8")
    (tmp_path / "p.csv").write_text(text[:-12], encoding="utf-8")
    with pytest.raises(UserError, match=r"p\.csv, line 3: not a whole path point"):
        results.read_path(tmp_path / "p.csv")


def test_each_path_gives_its_own_rows_for_loss_and_error():
    points = [
        point(t, path=path, split=split)
        for path in ("aligned", "unaligned")
        for split in ("train", "test")
        for t in (1.0, 0.0, 0.5)
    ]
    rows = results.path_rows(points, {"aligned/0-1": "a", "unaligned/0-1": "u"})
    assert {(row.path, row.key) for row in rows} == {("aligned", "a"), ("unaligned", "u")}
    errors = {row.what: row.value for row in rows if (row.path, row.split, row.metric) == ("aligned", "test", "error")}
    # error = t / 7 on the straight line: no barrier, and a mean of 1/14 however it is weighted
    for what in ("barrier", "barrier_midpoint"):
        assert errors[what] == pytest.approx(0, abs=1e-15)
    assert errors["path_length_mean"] == pytest.approx(1 / 14)
    assert len(rows) == 2 * 2 * 2 * 8


def test_mean_and_deviation_are_those_of_numpy():
    values = [1.0, 4.0, -2.0]
    assert results.mean_and_deviation(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    mean, deviation = results.mean_and_deviation([3.0])
    assert mean == 3
    assert math.isnan(deviation)
