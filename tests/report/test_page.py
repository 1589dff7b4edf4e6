"""The HTML page, driven in a real browser: what is drawn and what a click does, not an exit code."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from lmc.measures import MEASURES
from lmc.report.chart import nice_ticks
from lmc.report.estimates import Estimate
from lmc.report.grouping import Setting
from lmc.report.lines import Line
from lmc.report.looks import Look, SweepLooks
from lmc.report.page import page as make_page
from lmc.report.sweep import write_sweep
from lmc.report.tables import SweepTable
from lmc.results import Row


@pytest.fixture
def page(sweep: Path) -> Path:
    write_sweep([sweep], sweep)
    return sweep / "report.html"


def test_the_page_needs_nothing_outside_itself(page):
    text = page.read_text(encoding="utf-8")
    for outside in ("http", "src=", "@import", "url(", "<link"):
        assert outside not in text


def test_the_paths_are_drawn(page, drive):
    counts = drive(
        page,
        """
        const inside = drawn(".chart path.line").every(function (e) {
          const own = e.getBoundingClientRect(), all = e.closest("svg").getBoundingClientRect();
          return own.left >= all.left && own.right <= all.right && own.top >= all.top && own.bottom <= all.bottom;
        });
        const count = () => drawn(".chart path.line").map((e) => e.dataset.path + " " + e.dataset.split).sort();
        const train = count();
        document.querySelector(".choice button[data-split=test]").click();
        const test = count();
        document.getElementById("unaligned").click();
        const alone = count();
        document.querySelector(".legend button").click();
        return { inside, train, test, alone, fewer: count() };
        """,
    )
    # Two charts; three settings and one unaligned path that they share.
    assert counts["inside"]
    assert counts["train"] == ["aligned train"] * 6 + ["unaligned train"] * 2
    assert counts["test"] == ["aligned test"] * 6 + ["unaligned test"] * 2
    assert counts["alone"] == ["aligned test"] * 6
    assert counts["fewer"] == ["aligned test"] * 4


def test_a_click_on_a_heading_sorts_the_rows(page, drive):
    orders = drive(
        page,
        """
        const found = [names()];
        for (const button of [head(0, "train loss"), head(0, "train loss"), head(0, "alignment")]) {
          button.click();
          found.push(names());
        }
        return found;
        """,
    )
    given = ["none", "activation_matching", "weight_matching"]
    assert orders == [given, given[::-1], given, ["activation_matching", "none", "weight_matching"]]


def test_pointing_at_a_path_shows_its_value(page, drive):
    shown = drive(
        page,
        """
        const line = all(".chart path.line").filter((e) => e.dataset.setting === "2" && e.dataset.split === "train")[0];
        const middle = line.getAttribute("d").split(/[ML]/)[13].split(" ").map(Number);  // of 25 points
        const at = new DOMPoint(middle[0], middle[1]).matrixTransform(line.getScreenCTM());
        const move = new MouseEvent("mousemove", { clientX: at.x, clientY: at.y, bubbles: true });
        line.closest("svg").dispatchEvent(move);
        const tip = document.querySelector(".tip");
        const text = all(".tip div").map((e) => e.textContent), shown = getComputedStyle(tip).display;
        const opaque = all(".chart path.line").filter((e) => getComputedStyle(e).opacity === "1");
        const bold = opaque.filter((e) => e.dataset.setting !== "2").length;
        line.closest("svg").dispatchEvent(new MouseEvent("mouseleave"));
        return { text, shown, bold, opaque: opaque.length, after: getComputedStyle(tip).display };
        """,
    )
    # Heights 0.02 and 0.01 over the middle of the line from 0.1 to 0.3: 0.22 and 0.21.
    assert shown["text"] == ["weight_matching", "train loss 0.2150 ± 0.0071 nats", "t = 0.5, 2 pairs"]
    assert shown["shown"] == "block"
    assert shown["bold"] == 0
    assert shown["opaque"] == 4  # on both splits, in both charts
    assert shown["after"] == "none"


def test_the_arrow_keys_show_the_values_of_a_path(page, drive):
    shown = drive(
        page,
        """
        const svg = document.querySelector("svg.chart"), tip = document.querySelector(".tip");
        const key = (name) => {
          svg.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
          return getComputedStyle(tip).display === "none" ? null : Array.from(tip.children).map((e) => e.textContent);
        };
        document.getElementById("unaligned").click();
        return ["Home", "ArrowRight", "ArrowUp", "End", "Escape"].map(key);
        """,
    )
    names = ["none", "none", "weight_matching", "weight_matching"]
    assert [lines[0] for lines in shown[:4]] == names
    assert [lines[2] for lines in shown[:4]] == [f"t = {t}, 2 pairs" for t in ("0", "0.041667", "0.041667", "1")]
    assert shown[0][1] == "train loss 0.1000 ± 0.0000 nats"
    assert shown[3][1] == "train loss 0.3000 ± 0.0000 nats"
    assert shown[4] is None


def test_what_analyses_found_sorts_and_hides_the_columns_of_other_settings(sweep, drive):
    for job, value in enumerate((1.0, 3.0, 0.25, 0.75, 7.0, 7.0)):
        of_path = {
            "path": "aligned",
            "pair": (job, 9),
            "split": "test",
            "unit": "nats",
            "examples": 10,
            "key": str(job),
        }
        rows = [
            Row(what=what, metric="loss", value=sign * value, more={"analysis": "some"}, **of_path)
            for what, sign in (("found", 1), ("lost", -1))
        ]
        with (sweep / str(job) / "results.jsonl").open("a") as file:
            file.writelines(json.dumps(row.as_dict()) + "\n" for row in rows)
    write_sweep([sweep], sweep)
    found = drive(
        sweep / "report.html",
        """
        const title = all("h2").filter((e) => e.textContent === "What the analyses found")[0];
        const table = title.parentElement.querySelector("table");
        const heads = Array.from(table.tHead.rows[0].cells);
        const state = () => Array.from(table.tBodies[0].rows).map((row) => Array.from(row.cells)
          .filter((cell) => getComputedStyle(cell).display !== "none").map((cell) => cell.textContent));
        heads[6].querySelector("button").click();
        const sorted = state();
        all(".filter button").filter((b) => b.dataset.is === "activation_matching")[0].click();
        const titles = heads.filter((e) => !e.hidden).map((e) => e.textContent);
        table.tBodies[0].rows[0].cells[6].dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
        return { sorted, titles, filtered: state(), tip: all(".tip div").map((e) => e.textContent) };
        """,
    )
    names = ["some", "lost", "loss", "test", "nats"], ["some", "found", "loss", "test", "nats"]
    # Means and sample deviations of (1, 3), (0.25, 0.75) and (7, 7).
    values = [["2.0000 ± 1.4142", "0.5000 ± 0.3536", "7.0000 ± 0.0000"]]
    values.insert(0, [f"-{value}" for value in values[0]])
    assert found["sorted"] == [[*name, *own] for name, own in zip(names, values, strict=True)]
    assert found["filtered"] == [[*name, own[1]] for name, own in zip(names, values, strict=True)]
    assert found["titles"] == ["analysis", "what", "metric", "split", "unit", "activation_matching"]
    assert found["tip"] == ["lost, loss", "-0.5 ± 0.3535533906 nats, n = 2"]


def test_a_narrow_page_scrolls_its_tables_alone(page, drive):
    found = drive(
        page,
        """
        document.documentElement.style.width = "400px";
        const parts = all(".card, .filters, .legend, .charts, .scroll");
        const right = Math.max(...parts.map((e) => e.getBoundingClientRect().right));
        const tables = all(".scroll").map((e) => e.scrollWidth > e.clientWidth);
        return { right, tables };
        """,
    )
    assert found["right"] <= 400
    assert found["tables"] == [True]


def test_the_page_of_many_settings_is_small_and_soon_written():
    generator = np.random.default_rng(0)
    t = np.linspace(0, 1, 25)
    names = [(f"alignment {n % 10}", f"{2 ** (n // 10)}") for n in range(100)]
    settings = [Setting(values, []) for values in names]
    estimates = [[Estimate(*generator.random(2), 5) for _ in MEASURES] for _ in settings]
    table = SweepTable(["alignment", "width"], settings, [5] * 100, list(MEASURES), estimates)
    kinds = [(path, split) for path in ("aligned", "unaligned") for split in ("train", "test")]
    named = [
        (setting.label, {kind: Line(t, generator.random((5, 25)), generator.random((5, 25))) for kind in kinds})
        for setting in settings
    ]
    found = [Look("some", f"quantity {n}", "loss", "test", "nats") for n in range(30)]
    looks = SweepLooks(found, [[Estimate(*generator.random(2), 5) for _ in settings] for _ in found])
    start = time.perf_counter()
    text = make_page([], table, named, [], looks, None, [], [])
    assert time.perf_counter() - start < 10
    assert len(text.encode()) < 3e6


def test_light_and_dark_follow_the_reader(page, drive):
    script = "return getComputedStyle(document.body).backgroundColor;"
    light = drive(page, script, "--blink-settings=preferredColorScheme=1")
    dark = drive(page, script, "--blink-settings=preferredColorScheme=0")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (light, dark)]
    assert brightness[0] > 600
    assert brightness[1] < 150


def test_a_hostile_name_is_text(tmp_path, make_run, drive):
    name = '</script><img onerror="boom()" src=x>"\'&'
    make_run(tmp_path / "sweep" / "0", settings={"note": name})
    make_run(tmp_path / "sweep" / "1", settings={"note": "plain"})
    write_sweep([tmp_path / "sweep"], tmp_path / "out")
    found = drive(tmp_path / "out" / "report.html", "return { names: names(), images: all('img').length };")
    assert found == {"names": [name, "plain"], "images": 0}


@pytest.mark.parametrize(
    ("extent", "ticks"),
    [
        ((0.1, 1.05), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2]),
        ((90.0, 97.0), [90, 92, 94, 96, 98]),
        ((-0.02, 0.03), [-0.02, -0.01, 0.0, 0.01, 0.02, 0.03]),
    ],
)
def test_ticks_are_round_and_hold_the_extent(extent, ticks):
    assert nice_ticks(extent) == pytest.approx(ticks, abs=1e-12)


def test_ticks_of_a_constant_and_of_large_numbers():
    for extent in ((1.0, 1.0), (0.0, 1e6), (1e-9, 2e-9)):
        ticks = nice_ticks(extent)
        assert ticks[0] <= extent[0]
        assert ticks[-1] >= extent[1]
        assert 2 <= len(ticks) <= 8
