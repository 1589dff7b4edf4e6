"""A paper's table on the HTML page, driven in a browser; what it shows follows from heights that are known."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lmc.report.sweep import write_sweep

# Row to its overrides; the heights (train loss barriers) of its two pairs, None for a row that has not run.
ROWS = {
    "Activations": ("alignment=activation_matching", "architecture.width=512"),
    "Weights <b>&\"'": ("alignment=weight_matching", "architecture.width=512"),
    "Weights, narrow": ("alignment=weight_matching", "architecture.width=64"),
    "Transport": ("alignment=optimal_transport", "architecture.width=64"),
}
HEIGHTS = {"Activations": (0.05, 0.07), "Weights <b>&\"'": (0.02, 0.01), "Weights, narrow": (0.4, 0.5)}
TABLE = {
    "title": "Barriers of <i>aligned</i> networks",
    "paper": "Someone et al. 2023, Table 1",
    "source": "Table 1",
    "rows": {label: list(overrides) for label, overrides in ROWS.items()},
    "columns": {
        "barrier": {
            "measure": "aligned_train_loss_barrier",
            "tolerance": 0.02,
            "published": {"Activations": 0.055, "Weights <b>&\"'": "0.115 ± 0.003", "Transport": 0.25},
        },
        "accuracy": {
            "measure": "endpoint_test_accuracy",
            "lead": True,
            "source": "a table in <another> paper",
            "published": {"Activations": 95.0},
            "rows": ["Activations", "Weights <b>&\"'", "Weights, narrow"],
        },
    },
    "findings": ["the numbers of `alignment=weight_matching` differ & that is known"],
}
BESIDE = """
const rows = () => all(".paper tbody tr").filter((row) => !row.hidden).map((row) => row.cells[0].textContent);
const text = (e) => e.innerText.replace(/\\s+/g, " ").trim();
const cells = all(".paper tbody tr").map((row) => Array.from(row.cells));
const by = (name, is) => all(".filter button").filter((b) => b.dataset.name === name && b.dataset.is === is)[0];
const sorter = (label) => all(".paper th button").filter((b) => b.textContent.startsWith(label))[0];
const tip = document.querySelector(".tip");
const lines = () => Array.from(tip.children).map((e) => e.textContent);
"""


def write_paper_runs(folder: Path, make_run: Any, changed: Sequence[str] = (), budget: str | None = None) -> None:
    """Two pairs of networks for each row that has heights; each job took ten minutes, five of them training."""
    artifacts = {
        f"{number}": {"stage": stage, "seconds": 300.0} for number, stage in enumerate(("endpoints", "evaluation"))
    }
    made = {"commit": "abc", "versions": {"torch": "2.9"}, "hardware": "a machine", "artifacts": artifacts}
    for row, heights in HEIGHTS.items():
        choices: Mapping[str, str | None] = {
            "dataset": "digits", "experiment": "someone", "budget": budget, "alignment": ROWS[row][0].partition("=")[2],
        }  # fmt: skip
        node = {**TABLE, "stands_for": [" ".join(sorted(ROWS[row]))], "changed": list(changed)}
        settings = {"architecture": {"width": int(ROWS[row][1].partition("=")[2])}, "table": node}
        for seeds, height in zip(((0, 1), (2, 3)), heights, strict=True):
            name = f"{len(list(folder.glob('*'))) if folder.is_dir() else 0}"
            own = {**settings, "seeds": list(seeds)}
            make_run(folder / name, seeds=seeds, heights=height, choices=choices, settings=own, made=made)


@pytest.fixture
def page(tmp_path: Path, make_run: Any) -> Path:
    write_paper_runs(tmp_path / "sweep", make_run)
    write_sweep([tmp_path / "sweep"], tmp_path / "out")
    return tmp_path / "out" / "report.html"


def test_the_page_needs_nothing_outside_itself_and_runs_nothing_in_its_tags(page):
    text = page.read_text(encoding="utf-8")
    for outside in ("http", "src=", "@import", "url(", "<link", "javascript:"):
        assert outside not in text
    tags = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"<[^>]*\son[a-z]+\s*=", tags)


def drive_paper(drive: Any, page: Path, script: str, *flags: str) -> Any:
    return drive(page, BESIDE + script, *flags)


def test_a_cell_shows_ours_the_published_number_and_the_verdict(page, drive):
    found = drive_paper(
        drive,
        page,
        """
        const colour = (e) => getComputedStyle(e).color, size = (e) => parseFloat(getComputedStyle(e).fontSize);
        return {
          text: cells.map((row) => row.map(text)), banner: text(document.querySelector(".banner")),
          departs: all(".paper.departs").length, below: all(".findings li, .findings code").map(text),
          size: [".ours", ".beside"].map((s) => size(document.querySelector(s))),
          nested: all(".paper b, .paper i").length,
          colours: [".within", ".outside", ".beside"].map((s) => colour(document.querySelector(s))),
          outside: performance.getEntriesByType("resource").length,
          missing: text(document.querySelector(".paper summary")),
        };
        """,
    )
    # Means of (0.05, 0.07), (0.02, 0.01), (0.4, 0.5); four networks with a test error of 3, 4, 5 and 6 %.
    accuracy = "95.50 ± 1.29"
    assert found["text"] == [
        ["Activations", "0.060 ± 0.014 paper 0.055 +0.005 ✓", f"{accuracy} paper 95† +0.50"],
        ["Weights <b>&\"'", "0.015 ± 0.007 paper 0.115 ± 0.003 -0.100 ✗", accuracy],
        ["Weights, narrow", "0.450 ± 0.071", accuracy],
        ["Transport", "missing, at least 5 min paper 0.25", ""],
    ]
    assert found["banner"] == "budget=paper, the recipe to the letter"
    assert found["departs"] == found["nested"] == found["outside"] == 0
    assert found["below"] == [
        "the numbers of alignment=weight_matching differ & that is known",
        "alignment=weight_matching",
    ]
    assert found["size"][0] > found["size"][1]
    assert len(set(found["colours"])) == 3
    assert found["missing"] == "Missing: 1 of 4 jobs, at least 5 min in all"


def test_a_tip_says_all_that_is_known_of_a_cell_also_to_the_keyboard(page, drive):
    found = drive_paper(
        drive,
        page,
        """
        const over = (e) => { e.dispatchEvent(new MouseEvent("mouseover", { bubbles: true })); return lines(); };
        const key = (name) => {
          document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true }));
          return tip.style.display === "none" ? "none" : lines()[0];
        };
        const barrier = over(cells[1][1]), lead = over(cells[0][2]), missing = over(cells[3][1]);
        const shown = getComputedStyle(tip).display;
        over(document.querySelector("h1"));
        const hidden = getComputedStyle(tip).display;
        const stops = all(".paper td[tabindex='0']");
        stops[0].focus();
        const focus = [lines()[0], ...["ArrowDown", "ArrowRight", "ArrowUp", "ArrowUp", "Escape"].map(key)];
        return { barrier, lead, missing, shown, hidden, stops: stops.length, focus };
        """,
    )
    deviation = 0.01 / 2**0.5
    assert found["barrier"][0] == "Weights <b>&\"', barrier (nats)"
    ours = re.fullmatch(r"ours: (\S+) ± (\S+) nats, n = 2", found["barrier"][1])
    assert float(ours[1]) == pytest.approx(0.015, rel=1e-9)
    assert float(ours[2]) == pytest.approx(deviation, rel=1e-9)
    assert found["barrier"][2:5] == [
        "paper: 0.115 ± 0.003 nats, from Table 1",
        "difference: -0.1 nats; ✗ outside, tolerance 0.02 nats",
        "job: alignment=weight_matching architecture.width=512",
    ]
    assert [line.rpartition("/")[2] for line in found["barrier"][5:]] == ["2", "3"]
    assert "paper: 95† %, from a table in <another> paper" in found["lead"]
    assert any(line.startswith("† a lead") for line in found["lead"])
    assert "difference: +0.5 %; no tolerance is set" in found["lead"]
    assert found["missing"][1] == "ours: missing, at least 5 min"
    assert (found["shown"], found["hidden"], found["stops"]) == ("block", "none", 1)
    name = "Weights <b>&\"', "
    assert found["focus"] == [
        "Activations, barrier (nats)", f"{name}barrier (nats)", f"{name}accuracy (%)", "Activations, accuracy (%)",
        "Activations, accuracy (%)", "none",
    ]  # fmt: skip


def test_a_paper_table_sorts_with_what_is_missing_last(page, drive):
    orders = drive_paper(
        drive,
        page,
        """
        const found = [];
        for (const label of ["barrier", "barrier", "row"]) {
          sorter(label).click();
          found.push([rows(), sorter(label).closest("th").getAttribute("aria-sort")]);
        }
        return found;
        """,
    )
    activations, weights, narrow, transport = ROWS
    assert orders == [
        [[weights, activations, narrow, transport], "ascending"],
        [[narrow, activations, weights, transport], "descending"],
        [[activations, transport, weights, narrow], "ascending"],
    ]


def test_a_filter_holds_for_tables_curves_and_legend_until_all_is_shown(page, drive):
    states = drive_paper(
        drive,
        page,
        """
        const state = () => ({
          paper: rows(), results: all("#results tbody tr").filter((row) => !row.hidden).length,
          curves: drawn(".chart path.line[data-path=aligned]").length / 2,
          unaligned: drawn(".chart path.line[data-path=unaligned]").length / 2,
          legend: all(".legend button").filter((b) => !b.hidden).length,
          counts: all(".filters output").map(text),
        });
        const found = [state()], press = (button) => { button.click(); found.push(state()); };
        press(by("alignment", "weight_matching"));
        press(by("architecture.width", "64"));
        const pressed = all("#filters [aria-pressed=true]").map(text);
        document.querySelector(".legend button:not([hidden])").click();
        press(document.querySelector("#filters .all"));
        const last = document.querySelector(".all").disabled;
        press(by("alignment", "optimal_transport"));
        return { found, pressed, last };
        """,
    )
    everything, weights, narrow, again, transport = states["found"]
    assert everything == again
    assert everything["paper"] == list(ROWS)
    assert (everything["results"], everything["legend"]) == (3, 3)
    assert everything["counts"] == ["7 of 7 cells", "3 of 3 settings"]
    assert weights["paper"] == list(ROWS)[1:3]
    assert (weights["results"], weights["curves"], weights["legend"]) == (2, 2, 2)
    assert weights["counts"] == ["4 of 7 cells", "2 of 3 settings"]
    assert narrow["paper"] == ["Weights, narrow"]
    assert (narrow["results"], narrow["curves"], narrow["legend"]) == (1, 1, 1)
    assert narrow["counts"] == ["2 of 7 cells", "1 of 3 settings"]
    assert states["pressed"] == ["weight_matching", "64"]
    assert states["last"]
    # A row that has not run belongs to no setting.
    assert transport["paper"] == ["Transport"]
    assert transport["counts"] == ["1 of 7 cells", "0 of 3 settings"]


def test_a_run_not_by_the_recipe_stands_out_and_is_not_judged(tmp_path, make_run, drive):
    write_paper_runs(tmp_path / "sweep", make_run, changed=["training.epochs=1"], budget="smoke")
    write_sweep([tmp_path / "sweep"], tmp_path / "out")
    script = """
        cells[0][1].dispatchEvent(new MouseEvent("mouseover", { bubbles: true }));
        const style = getComputedStyle(document.querySelector(".banner"));
        return { banner: text(document.querySelector(".banner")), back: style.backgroundColor, front: style.color,
                 judged: all(".paper .within, .paper .outside").length, tip: lines() };
        """
    page = tmp_path / "out" / "report.html"
    light = drive_paper(drive, page, script, "--blink-settings=preferredColorScheme=1")
    dark = drive_paper(drive, page, script, "--blink-settings=preferredColorScheme=0")
    assert "NOT THE PAPER'S RECIPE: budget=smoke; changed by hand: training.epochs=1" in light["banner"]
    assert light["judged"] == 0
    assert light["tip"][1].startswith("ours (not by the recipe): 0.06 ")
    assert any(line.endswith("not judged, tolerance 0.02 nats") for line in light["tip"])
    for found in (light, dark):
        assert contrast(found["back"], found["front"]) > 4.5
    assert light["back"] != dark["back"]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG 2 defines it, 1 to 21."""
    shares = [[int(channel) / 255 for channel in re.findall(r"\d+", colour)[:3]] for colour in (one, other)]
    linear = [[c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels] for channels in shares]
    low, high = sorted(0.2126 * red + 0.7152 * green + 0.0722 * blue for red, green, blue in linear)
    return (high + 0.05) / (low + 0.05)
