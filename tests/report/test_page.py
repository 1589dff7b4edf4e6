"""The HTML page, driven in a real browser: what is drawn and what a click does, not an exit code."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lmc.report.chart import nice_ticks
from lmc.report.sweep import write_sweep

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1300,1000")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (apt-get install chromium)")

Drive = Callable[..., Any]
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


@pytest.fixture
def drive(tmp_path: Path) -> Drive:
    """Load a page, run a script body in it, and return what the script returned; no error may have happened."""

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


@pytest.fixture
def page(sweep: Path) -> Path:
    write_sweep([sweep], sweep)
    return sweep / "report.html"


def test_the_page_needs_nothing_outside_itself(page):
    text = page.read_text(encoding="utf-8")
    for outside in ("http", "src=", "@import", "url(", "<link"):
        assert outside not in text


@needs_browser
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


@needs_browser
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


@needs_browser
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
        const bold = all(".chart path.line:not(.faint)").filter((e) => e.dataset.setting !== "2").length;
        line.closest("svg").dispatchEvent(new MouseEvent("mouseleave"));
        return { text, shown, bold, after: getComputedStyle(tip).display };
        """,
    )
    # Heights 0.02 and 0.01 over the middle of the line from 0.1 to 0.3: 0.22 and 0.21.
    assert shown["text"] == ["weight_matching", "train loss 0.2150 ± 0.0071 nats", "t = 0.5, 2 pairs"]
    assert shown["shown"] == "block"
    assert shown["bold"] == 0
    assert shown["after"] == "none"


@needs_browser
def test_light_and_dark_follow_the_reader(page, drive):
    script = "return getComputedStyle(document.body).backgroundColor;"
    light = drive(page, script, "--blink-settings=preferredColorScheme=1")
    dark = drive(page, script, "--blink-settings=preferredColorScheme=0")
    brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (light, dark)]
    assert brightness[0] > 600
    assert brightness[1] < 150


@needs_browser
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
