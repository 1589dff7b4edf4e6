"""Barriers against a number that a sweep varies, and what analyses found, in the report of a sweep."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmc.report.grouping import group
from lmc.report.looks import sweep_looks
from lmc.report.runs import collect
from lmc.report.sweep import write_sweep
from lmc.report.tables import tabulate
from lmc.report.trends import trend, trend_figure
from lmc.results import Row, read_rows, write_rows, write_summary

HEIGHTS = {"8": (0.5, 0.7, 0.9), "16": (0.3, 0.4, 0.8), "64": (0.1, 0.15, 0.05)}
STRONG = {"8": 1.0, "16": 0.5, "64": 0.25}


def run_of(make_run: Any, folder: Path, width: str, alignment: str = "weight_matching") -> None:
    heights = dict(zip([(0, 1), (0, 2), (1, 2)], HEIGHTS[width], strict=True))
    choices, settings = {"alignment": alignment}, {"architecture": {"width": int(width)}}
    make_run(folder, seeds=(0, 1, 2), heights=heights, choices=choices, settings=settings)
    rows = read_rows(folder / "results.jsonl")
    for pair, factor in (((0, 1, 2), 1.0),):
        of = {"path": "aligned", "pair": pair, "split": "test", "unit": "nats", "examples": 5, "key": width}
        more = {"analysis": "strong_connectivity"}
        rows.append(Row(what="strong_mean_barrier", metric="loss", value=factor * STRONG[width], more=more, **of))
        rows.append(Row(what="line_barrier", metric="loss", value=9.0, more={**more, "line": "1-2"}, **of))
    write_rows(folder / "results.jsonl", rows)
    write_summary(folder / "summary.json", {"seeds": [0, 1, 2], **settings}, choices, rows, {})


@pytest.fixture
def widths(make_run: Any, tmp_path: Path) -> Path:
    for number, width in enumerate(("64", "8", "16")):
        run_of(make_run, tmp_path / "sweep" / str(number), width)
    return tmp_path / "sweep"


def test_the_barriers_stand_against_the_width_with_their_deviations(widths: Path) -> None:
    table = tabulate(collect([widths]).runs)
    found = trend(table, sweep_looks(table.settings))
    assert found is not None
    assert found.column == "architecture.width"
    (own,) = found.panels.values()
    assert [x for x, _ in own["aligned"]] == [8, 16, 64]
    for x, of in own["aligned"]:
        values = 1.5 * np.array(HEIGHTS[f"{x:g}"])  # the test barrier of a made run is half as much again
        assert (of.mean, of.deviation, of.count) == (pytest.approx(values.mean()), pytest.approx(values.std(ddof=1)), 3)
    assert [of.mean for _, of in own["unaligned"]] == pytest.approx([1.2] * 3)
    assert [of.mean for _, of in own["strong connectivity: strong mean barrier"]] == [1.0, 0.5, 0.25]
    figure = trend_figure(found)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["8", "16", "64"]
    drawn = {line.get_xydata()[:, 1].tolist()[-1] for line in axes.lines if len(line.get_xydata()) == 3}
    assert 0.25 in drawn


def test_other_settings_have_a_panel_each(make_run: Any, tmp_path: Path) -> None:
    for number, (width, alignment) in enumerate((w, a) for w in HEIGHTS for a in ("weight_matching", "none")):
        run_of(make_run, tmp_path / str(number), width, alignment)
    table = tabulate(collect([tmp_path]).runs)
    found = trend(table, sweep_looks(table.settings))
    assert found is not None
    assert list(found.panels) == ["weight_matching", "none"]
    titles = [axes.get_title() for axes in trend_figure(found).axes]
    assert titles == ["weight_matching", "none"]


def test_nothing_is_drawn_against_fewer_than_three_numbers_or_names(sweep: Path, make_run: Any, tmp_path: Path) -> None:
    names = tabulate(collect([sweep]).runs)
    assert trend(names, sweep_looks(names.settings)) is None
    for number, width in enumerate(("8", "16")):
        run_of(make_run, tmp_path / "two" / str(number), width)
    two = tabulate(collect([tmp_path / "two"]).runs)
    assert trend(two, sweep_looks(two.settings)) is None


def test_the_report_of_a_sweep_has_what_the_analyses_found(widths: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    text = write_sweep([widths], out)
    assert f"figure: {out / 'trend.png'}" in text
    assert (out / "trend.svg").is_file()
    markdown = (out / "report.md").read_text()
    assert "| strong_connectivity | strong_mean_barrier | loss | test | nats | 0.2500 | 1.0000 | 0.5000 |" in markdown
    assert "line_barrier" not in markdown
    assert "](trend.png)" in markdown
    page = (out / "report.html").read_text()
    assert ">strong_mean_barrier</td>" in page
    with (out / "looks.csv").open(newline="") as file:
        entries = list(csv.DictReader(file))
    assert [(entry["architecture.width"], float(entry["mean"]), entry["n"]) for entry in entries] == [
        ("64", 0.25, "1"),
        ("8", 1.0, "1"),
        ("16", 0.5, "1"),
    ]


def test_a_sweep_without_analyses_has_no_such_table(sweep: Path, tmp_path: Path) -> None:
    write_sweep([sweep], tmp_path / "out")
    assert "What the analyses found" not in (tmp_path / "out" / "report.md").read_text()
    assert not (tmp_path / "out" / "looks.csv").exists()
    columns, settings = group(collect([sweep]).runs)
    assert columns
    assert sweep_looks(settings).looks == []
