"""Planes in reports: read, drawn as contours, and turned in a real browser; the losses are known in closed form."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmc.errors import UserError
from lmc.report.contours import levels, plane_figure
from lmc.report.planes import plane_files, read_plane
from lmc.report.run import write_run
from lmc.report.runs import collect
from lmc.report.sweep import write_sweep

Drive = Callable[..., Any]

PLACES = ((0.0, 0.0), (10.0, 0.0), (5.0, 6.0))
X, Y = np.linspace(-2, 12, 15), np.linspace(-1, 7, 9)  # the networks are points of this grid
# What the script of a test may use besides what tests/report/conftest.py has.
CANVASES = """
const canvases = all("#planes canvas");
const picture = (canvas) => canvas.toDataURL();
const at = (name, x, y) => new PointerEvent(name, { clientX: x, clientY: y, bubbles: true });
"""


def loss(x: Any, y: Any, split: str) -> Any:
    return 0.25 + 0.01 * x**2 + 0.02 * y**2 + (0.1 if split == "test" else 0.0)


def write_plane(folder: Path, stem: str = "plane_0-1", *, through: str = "middle", level: float = 0.0) -> Path:
    curve = [{"t": t, "x": 10 * t, "y": 24 * t * (1 - t), "distance": 0.0} for t in np.linspace(0, 1, 17).tolist()]
    geometry = {
        "through": through,
        "networks": [{"x": x, "y": y} for x, y in PLACES],
        "grid": [len(X), len(Y)],
        "curve": curve if through == "middle" else [],
    }
    (folder / f"{stem}_plane.json").write_text(json.dumps(geometry))
    path = folder / f"{stem}_plane.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["x", "y", "split", "loss", "accuracy", "examples"])
        for y in Y.tolist():
            for x in X.tolist():
                for split in ("train", "test"):
                    writer.writerow([x, y, split, loss(x, y, split) + level, 1 - loss(x, y, split) / 8, 100])
    return path


@pytest.fixture
def run(tmp_path: Path, make_run: Any) -> Path:
    folder: Path = make_run(tmp_path / "run")
    write_plane(folder)
    return folder


def test_what_was_written_is_read(tmp_path):
    plane = read_plane(write_plane(tmp_path))
    assert (plane.stem, plane.pair) == ("plane_0-1", "0-1")
    assert plane.networks == (("0", 0, 0), ("1", 10, 0), ("middle", 5, 6))
    np.testing.assert_array_equal(plane.x, X)
    np.testing.assert_array_equal(plane.y, Y)
    for split in ("train", "test"):
        np.testing.assert_array_equal(plane.loss[split], loss(X[None], Y[:, None], split))
        np.testing.assert_array_equal(plane.accuracy[split], 1 - loss(X[None], Y[:, None], split) / 8)
    assert plane.curve.shape == (17, 2)
    together = read_plane(write_plane(tmp_path, "look_3-5-8-9", through="networks"))
    assert [name for name, *_ in together.networks] == ["3", "5", "8"]
    assert together.curve.shape == (0, 2)
    assert [path.name for path in plane_files(tmp_path)] == ["look_3-5-8-9_plane.csv", "plane_0-1_plane.csv"]


def shorten(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))


def spoil(path: Path) -> None:
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:9], lines[9][:12], *lines[10:]]))


def lose_places(path: Path) -> None:
    path.with_suffix(".json").write_text('{"networks": [')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shorten, r"plane\.csv, line 269: is not a grid of 15 x 9 points"),
        (spoil, r"plane\.csv, line 10: not a whole point"),
        (lose_places, r"plane\.json is missing or damaged"),
        (lambda path: path.with_suffix(".json").unlink(), r"plane\.json is missing or damaged"),
        (lambda path: path.write_text(""), r"plane\.csv, line 1: is not a grid"),
    ],
)
def test_a_damaged_plane_costs_a_line_and_not_the_report(run, damage, message):
    write_plane(run, "plane_0-2")
    damage(run / "plane_0-1_plane.csv")
    found = collect([run])
    assert len(found.problems) == 1
    assert re.search(message, found.problems[0])
    assert "\n" not in found.problems[0]
    assert [plane.stem for plane in found.runs[0].planes] == ["plane_0-2"]
    assert found.runs[0].points
    write_sweep([run], run)
    assert "plane_0-1_plane" in (run / "report.md").read_text()
    with pytest.raises(UserError, match=message):
        write_run(run)


def test_a_run_draws_its_planes_and_names_every_figure(run):
    report = write_run(run)
    assert report.figures == (run / "barrier.png", run / "plane_0-1.png")
    assert (run / "plane_0-1.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert b"<svg" in (run / "plane_0-1.svg").read_bytes()[:1000]


def test_the_levels_are_closer_together_where_it_is_best():
    values = np.linspace(1.0, 101.0, 1001)
    edges = levels(values, best_is_low=True)
    assert edges[0] == 1
    assert edges[-1] == pytest.approx(np.quantile(values, 0.9))
    assert (np.diff(edges, 2) > 0).all()
    mirrored = levels(-values, best_is_low=False)
    np.testing.assert_allclose(mirrored, -edges[::-1])
    for odd in (np.full(9, 2.0), np.array([np.nan, 1.0, np.inf, 3.0]), np.full(4, np.nan)):
        assert (np.diff(levels(odd, best_is_low=True)) > 0).all()


def test_the_contours_show_the_plane_the_networks_and_the_curve(tmp_path):
    plane = read_plane(write_plane(tmp_path))
    figure = plane_figure(plane)
    panels, bars = figure.axes[:2], figure.axes[2:]
    assert [bar.get_ylabel() for bar in bars] == ["train loss (nats)", "test accuracy (%)"]
    for axes in panels:
        assert [text.get_text() for text in axes.texts] == ["0", "1", "middle"]
        drawn = [np.column_stack(line.get_data()) for line in axes.lines]
        assert all(any(np.array_equal(line, [place]) for line in drawn) for place in PLACES)
        assert any(line.shape == (17, 2) and np.array_equal(line, plane.curve) for line in drawn)
        assert axes.get_xlim() == (-2, 12)
        assert axes.get_ylim() == (-1, 7)
    low, high = bars[0].get_ylim()
    assert low == pytest.approx(0.25)
    assert high == pytest.approx(np.quantile(plane.loss["train"], 0.9))
    assert bars[1].get_ylim()[1] == pytest.approx(100 * (1 - 0.35 / 8))


def test_labels_stay_inside_the_figure(tmp_path):
    figure = plane_figure(read_plane(write_plane(tmp_path)))
    figure.draw_without_rendering()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1 + 1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1 + 1


@pytest.fixture
def drive(drive: Drive) -> Drive:
    return lambda page, script, *flags: drive(page, CANVASES + script, *flags)


@pytest.fixture
def page(run: Path, tmp_path: Path) -> Path:
    write_plane(run, "plane_0-2", level=0.5)
    write_sweep([run], tmp_path)
    return tmp_path / "report.html"


def test_a_plane_that_two_runs_share_is_shown_once(tmp_path, make_run):
    for name in ("a", "b"):
        write_plane(make_run(tmp_path / name))
    write_sweep([tmp_path], tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert text.count("<canvas") == 1
    for outside in ("http", "src=", "@import", "url(", "<link"):
        assert outside not in text


def test_a_page_without_planes_has_no_section(tmp_path, make_run):
    make_run(tmp_path / "run")
    write_sweep([tmp_path], tmp_path)
    assert 'id="planes"' not in (tmp_path / "report.html").read_text()


def test_surfaces_are_drawn_and_turned(page, drive):
    found = drive(
        page,
        """
        const key = (name) => {
          const event = new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true });
          canvases[0].dispatchEvent(event);
          return event.defaultPrevented;
        };
        const tones = new Set();
        const first = canvases[0], pixels = first.getContext("2d").getImageData(0, 0, first.width, first.height).data;
        for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] === 255) tones.add(pixels.slice(i, i + 3).join());
        const start = canvases.map(picture);
        const turned = key("ArrowLeft"), left = canvases.map(picture);
        const home = key("Home"), back = canvases.map(picture);
        const ignored = key("a"), same = picture(first);
        const box = first.getBoundingClientRect(), x = box.left + 150, y = box.top + 200;
        first.dispatchEvent(at("pointerdown", x, y));
        first.dispatchEvent(at("pointermove", x + 40, y + 20));
        const dragged = canvases.map(picture);
        first.dispatchEvent(at("pointerup", x + 40, y + 20));
        key("Home");
        document.getElementById("log-height").click();
        const linear = picture(first), cap = document.getElementById("cap").textContent;
        document.querySelector("#planes [data-split=test]").click();
        const test = document.getElementById("cap").textContent;
        const paths = document.querySelector("#paths .choice [data-split=train]").getAttribute("aria-pressed");
        return {
          count: canvases.length, tones: tones.size, turned, home, ignored, cap, test, paths, labels:
          Array.from(document.querySelectorAll("#planes figcaption")).map((e) => e.textContent),
          changed: left.map((image, i) => image !== start[i]), back: back.every((image, i) => image === start[i]),
          same: same === start[0], dragged: dragged.map((image, i) => image !== start[i]), linear: linear !== start[0],
        };
        """,
    )
    assert found["count"] == 2
    assert found["labels"] == ["all runs, 0-1", "all runs, 0-2"]
    assert found["tones"] > 100
    # All surfaces turn together, so that they stay comparable.
    assert found["changed"] == found["dragged"] == [True, True]
    assert found["back"]
    assert found["same"]
    assert found["linear"]
    assert (found["turned"], found["home"], found["ignored"]) == (True, True, False)
    # The cap: the larger of the two 90 % quantiles.
    for split, cap in (("train", found["cap"]), ("test", found["test"])):
        assert float(cap) == pytest.approx(np.quantile(loss(X[None], Y[:, None], split), 0.9) + 0.5, rel=0.01)
    assert found["paths"] == "true"


def test_pointing_at_a_surface_shows_the_measured_point(page, drive):
    shown = drive(
        page,
        """
        const found = [], box = canvases[0].getBoundingClientRect(), tip = document.querySelector(".tip");
        for (let x = 0; x < box.width; x += 14) for (let y = 0; y < box.height; y += 14) {
          canvases[0].dispatchEvent(at("pointermove", box.left + x, box.top + y));
          if (getComputedStyle(tip).display === "block") {
            found.push(Array.from(tip.children).map((e) => e.textContent).join("; "));
          }
        }
        canvases[0].dispatchEvent(at("pointerleave", 0, 0));
        return { found: Array.from(new Set(found)), after: getComputedStyle(tip).display };
        """,
    )
    assert shown["after"] == "none"
    pattern = r"all runs, 0-1; x = (\S+), y = (\S+); train loss (\S+) nats; train accuracy (\S+) %"
    seen = [tuple(map(float, re.fullmatch(pattern, text).groups())) for text in shown["found"]]
    assert len(seen) > 60  # of the 135 points; the pointer passes over most of them
    for x, y, value, accuracy in seen:
        assert x in X
        assert y in Y
        assert value == pytest.approx(loss(x, y, "train"), rel=1e-3)
        assert accuracy == pytest.approx(100 - 12.5 * loss(x, y, "train"), abs=0.01)


def test_a_filter_hides_the_planes_of_other_settings(tmp_path, make_run, drive):
    for name in ("activation_matching", "weight_matching"):
        write_plane(make_run(tmp_path / name, choices={"alignment": name}), level=len(name))
    write_sweep([tmp_path], tmp_path)
    script = """
        const seen = () => all("#planes figure").filter((e) => e.offsetParent !== null).map((e) => e.textContent);
        const before = seen();
        all(".filter button").filter((b) => b.dataset.is === "weight_matching")[0].click();
        return [before, seen()];
        """
    names = ["activation_matching, 0-1", "weight_matching, 0-1"]
    assert drive(tmp_path / "report.html", script) == [names, names[1:]]


def test_surfaces_follow_light_and_dark(page, drive):
    script = "return getComputedStyle(document.querySelector('#planes')).backgroundColor + picture(canvases[0]);"
    light = drive(page, script, "--blink-settings=preferredColorScheme=1")
    dark = drive(page, script, "--blink-settings=preferredColorScheme=0")
    assert light.partition("data:")[0] != dark.partition("data:")[0]
    assert light.partition("data:")[2] != dark.partition("data:")[2]


def test_a_plane_with_points_that_are_not_finite_is_drawn(run, tmp_path, drive):
    path = run / "plane_0-1_plane.csv"
    lines = path.read_text().splitlines()
    fields = lines[5].split(",")
    path.write_text("\n".join([*lines[:5], ",".join([*fields[:3], "nan", *fields[4:]]), *lines[6:]]) + "\n")
    assert write_run(run).figures
    write_sweep([run], tmp_path)
    assert drive(tmp_path / "report.html", "return canvases[0].points.length;") == 135
