"""A paper's table from runs whose numbers are known."""

import csv
import io
import json
import math
import statistics
from pathlib import Path

import pytest

from lmc.report.costs import duration, missing_costs
from lmc.report.paper import paper_tables
from lmc.report.paper_texts import comma_separated_papers, latex_paper, markdown_paper, plain_paper
from lmc.report.runs import collect
from lmc.report.sweep import write_sweep
from lmc.results import SUMMARY_FILE

# The train loss barrier of a run is its height; a published number in each of the four ways it can be written.
TABLE = {
    "title": "Barriers & <more>",
    "paper": "Somebody et al.",
    "source": "README",
    "rows": {"none": ["alignment=none"], "matched_one": ["alignment=wm"], "never run": ["alignment=am", "seed=3"]},
    "columns": {
        "barrier": {
            "measure": "aligned_train_loss_barrier",
            "tolerance": 0.05,
            "published": {"none": "0.5 ± 0.1", "matched_one": 0.06, "never run": 1},
        },
        "error at 1/2": {
            "measure": {
                "what": "endpoint",
                "split": "test",
                "metric": "error",
                "unit": "%",
                "scale": 100,
                "digits": 1,
            },
            "rows": ["none"],
            "lead": True,
            "published": {"none": 3.5},
        },
    },
    "findings": ["Because of this."],
}
HEIGHTS = {"none": (0.52, 0.56), "wm": (0.11, 0.13)}


@pytest.fixture
def sweep(tmp_path: Path, make_run) -> Path:
    """Two pairs for each of two rows; nothing of the third."""
    number = 0
    for alignment, heights in HEIGHTS.items():
        for first, height in zip((0, 2), heights, strict=True):
            run(make_run, tmp_path / str(number), alignment, [first, first + 1], height)
            number += 1
    return tmp_path


def run(make_run, folder: Path, alignment: str, seeds, height: float, *, budget=None, changed=(), table=TABLE) -> Path:
    return made(
        make_run(
            folder,
            seeds=seeds,
            heights=height,
            choices={"experiment": "paper/table", "budget": budget, "alignment": alignment},
            settings={"table": {**table, "stands_for": [f"alignment={alignment}"], "changed": list(changed)}},
        ),
        alignment,
        seeds,
    )


def made(folder: Path, alignment: str, seeds) -> Path:
    """Say of a run what it was made with: 100 s for each network, 10 s for what comes after."""
    path = folder / SUMMARY_FILE
    document = json.loads(path.read_text(encoding="utf-8"))
    artifacts = {f"network{seed}": {"stage": "endpoints", "seconds": 100} for seed in seeds}
    artifacts[f"path {alignment} {seeds}"] = {"stage": "evaluation", "seconds": 10}
    document["made"] = {
        "versions": {"torch": "9.9"},
        "commit": "abc",
        "hardware": "a machine",
        "artifacts": artifacts,
    }
    path.write_text(json.dumps(document), encoding="utf-8")
    return folder


def only_table(folder: Path):
    (table,), problems = paper_tables(collect([folder]).runs)
    assert problems == []
    return table


def test_cells_hold_mean_deviation_and_difference(sweep):
    table = only_table(sweep)
    ((barrier, error), (matched, no_cell), (missing, _)) = table.cells
    assert barrier.mean == pytest.approx(statistics.mean(HEIGHTS["none"]))
    assert barrier.deviation == pytest.approx(statistics.stdev(HEIGHTS["none"]))
    assert barrier.ours.count == 2
    assert barrier.difference == pytest.approx(0.04)
    assert barrier.within is True
    assert matched.difference == pytest.approx(0.06)
    assert matched.within is False
    assert no_cell is None
    assert (missing.ours, missing.difference, missing.within) == (None, None, None)
    # The networks' test errors are 3 % + seed %, in the units of the column.
    assert error.mean == pytest.approx(statistics.mean((3, 4, 5, 6)), abs=0.5)
    assert error.within is None  # the column has no tolerance
    assert error.published.lead


def test_the_banner_says_how_far_the_runs_are_the_papers(sweep, tmp_path, make_run):
    assert only_table(sweep).banner == "budget=paper, the recipe to the letter"
    cases = {
        ("smoke", ()): "NOT THE PAPER'S RECIPE: budget=smoke",
        (
            None,
            ("training.epochs=3",),
        ): "NOT THE PAPER'S RECIPE: budget=paper; changed by hand: training.epochs=3",
        (None, ("dataset=huggingface", "dataset.path=x")): "budget=paper, the recipe to the letter; images from "
        "dataset=huggingface dataset.path=x",
    }
    for number, ((budget, changed), banner) in enumerate(cases.items()):
        folder = tmp_path / f"case{number}"
        run(make_run, folder / "0", "none", [0, 1], 0.5, budget=budget, changed=changed)
        table = only_table(folder)
        assert table.banner == banner
        cell = table.cells[0][0]
        assert cell.difference == pytest.approx(0)
        assert cell.within is (None if "NOT" in banner else True)
    assert table.command == "lmc -m experiment=paper/table dataset=huggingface dataset.path=x"


def test_runs_of_two_budgets_have_a_table_each(sweep, make_run):
    run(make_run, sweep / "9", "none", [0, 1], 3.0, budget="smoke")
    tables, problems = paper_tables(collect([sweep]).runs)
    assert [table.budget for table in tables] == ["paper", "smoke"]
    assert [table.cells[0][0].ours.count for table in tables] == [2, 1]
    (problem,) = problems
    assert problem.startswith("experiment=paper/table: runs of 2 kinds (budget=paper; budget=smoke); ")


def test_seeds_that_are_added_later_fill_in(sweep, make_run):
    run(make_run, sweep / "later" / "0", "none", [4, 5], 0.6)
    run(make_run, sweep / "later" / "1", "none", [0, 1], 0.52)  # the same pair again counts once
    assert only_table(sweep).cells[0][0].ours.count == 3


def test_a_table_that_cannot_be_read_is_a_line_and_the_rest_is_reported(sweep, make_run, tmp_path):
    wrong = {**TABLE, "columns": {"barrier": {**TABLE["columns"]["barrier"], "published": {"nun": 1, "none": 0.5}}}}
    for path in sweep.glob("*/" + SUMMARY_FILE):
        document = json.loads(path.read_text(encoding="utf-8"))
        document["settings"]["table"] |= {"columns": wrong["columns"]}
        path.write_text(json.dumps(document), encoding="utf-8")
    text = write_sweep([sweep], tmp_path / "out")
    lines = [line for line in text.splitlines() if "no row 'nun'" in line]
    assert len(lines) == 1
    assert "did you mean none" in lines[0]
    assert "0.540 ± 0.028 [0.5, +0.040 ✓]" in text


def test_what_is_missing_and_what_it_would_cost(sweep):
    table = only_table(sweep)
    assert table.missing == ["alignment=am seed=3"]
    (cost,) = missing_costs(table)
    # Judged by a job that differs in alignment and seed alone: its networks are there, its two paths took 10 s each;
    # how long the other alignment takes is not known.
    assert (cost.seconds, cost.at_least) == (20, True)
    assert "- Missing: 1 of 3 jobs, at least 20 s in all" in markdown_paper(table)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3, "3 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (2e5, "2.3 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_markdown(sweep):
    text = markdown_paper(only_table(sweep))
    assert "**budget=paper, the recipe to the letter**" in text
    assert "| none | 0.540 ± 0.028 [0.5 ± 0.1, +0.040 ✓] |" in text
    assert "[3.5†, " in text
    assert "| matched_one | 0.120 ± 0.014 [0.06, +0.060 ✗] |  |" in text
    assert "| never run | – [1] |  |" in text
    assert "- Finding: Because of this." in text
    assert "- Ours: `lmc -m experiment=paper/table`" in text
    assert "- Made with: torch 9.9; commit abc; a machine" in text


def test_latex_escapes_what_has_a_meaning_there(sweep):
    text = latex_paper(only_table(sweep))
    assert r"none & 0.540 $\pm$ 0.028 [0.5 $\pm$ 0.1, +0.040 \checkmark{}] &" in text
    assert r"matched\_one & " in text
    assert r"error at 1/2 (\%)" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [line.count("&") for line in body] == [2, 2, 2, 2]


def test_csv_has_every_cell_in_full_precision_with_what_made_it(sweep):
    rows = list(csv.DictReader(io.StringIO(comma_separated_papers([only_table(sweep)]))))
    assert [(row["row"], row["column"]) for row in rows] == [
        *(("none", "barrier"), ("none", "error at 1/2")),
        *(("matched_one", "barrier"), ("never run", "barrier")),
    ]
    first, error, _, missing = rows
    assert float(first["mean"]) == pytest.approx(0.54, rel=1e-12)
    assert float(first["published_std"]) == 0.1
    assert (first["within"], first["n"], first["budget"], first["lead"]) == ("true", "2", "paper", "false")
    assert (first["versions"], first["commit"], first["hardware"]) == ("torch=9.9", "abc", "a machine")
    assert (error["lead"], error["tolerance"], error["within"], error["unit"]) == ("true", "", "", "%")
    assert (missing["mean"], missing["n"], missing["published"]) == ("", "0", "1.0")


def test_the_terminal_shows_the_table(sweep):
    text = plain_paper(only_table(sweep))
    assert text.startswith("Barriers & <more> (budget=paper, the recipe to the letter)")
    assert "0.120 ± 0.014 [0.06, +0.060 ✗]" in text
    assert "missing: 1 of 3 jobs" in text


def test_every_file_of_the_report_has_the_table(sweep, tmp_path):
    write_sweep([sweep], tmp_path / "out")
    for name in ("report.md", "report.html", "report.tex", "table.csv"):
        assert "matched" in (tmp_path / "out" / name).read_text(encoding="utf-8"), name
    assert "Barriers &amp; &lt;more&gt;" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_what_a_budget_leaves_out_is_counted(tmp_path, make_run):
    table = {**TABLE, "not_quick": ["never run"]}
    run(make_run, tmp_path / "0", "none", [0, 1], 0.5, budget="quick", table=table)
    assert "- Missing: 2 of 3 jobs (1 of them left out by budget=quick), " in markdown_paper(only_table(tmp_path))
    run(make_run, tmp_path / "1" / "0", "none", [0, 1], 0.5, table=table)
    assert "missing: 2 of 3 jobs\n" in plain_paper(only_table(tmp_path / "1")) + "\n"


def test_an_older_summary_without_what_made_it_is_reported(sweep):
    for path in sweep.glob("*/" + SUMMARY_FILE):
        document = json.loads(path.read_text(encoding="utf-8"))
        del document["made"]
        path.write_text(json.dumps(document), encoding="utf-8")
    table = only_table(sweep)
    assert missing_costs(table) == []
    assert "- Missing: 1 of 3 jobs\n" in markdown_paper(table)


def test_a_single_value_has_no_deviation(tmp_path, make_run):
    run(make_run, tmp_path / "0", "none", [0, 1], 0.5)
    cell = only_table(tmp_path).cells[0][0]
    assert math.isnan(cell.ours.deviation)
    assert cell.deviation is None


def test_a_job_that_the_table_no_longer_has_is_a_line(sweep, make_run):
    run(make_run, sweep / "9", "old", [0, 1], 0.5)
    (table,), problems = paper_tables(collect([sweep]).runs)
    assert problems == ["experiment=paper/table: the table has no cell for alignment=old; its runs are left out of it"]
    assert table.cells[0][0].ours.count == 2
