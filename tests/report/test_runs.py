import subprocess
import sys

import pytest

from lmc.errors import UserError
from lmc.report.runs import collect


def test_runs_are_found_in_natural_order_and_the_unfinished_named(tmp_path, make_run):
    for name in ("10", "2", "1"):
        make_run(tmp_path / name)
    make_run(tmp_path / "3", finished=False)
    found = collect([tmp_path])
    assert [run.folder.name for run in found.runs] == ["1", "2", "10"]
    assert len(found.problems) == 1
    assert str(tmp_path / "3") in found.problems[0]
    assert "seeds=[0,1] alignment=some" in found.problems[0]


def test_a_run_given_twice_counts_once(tmp_path, make_run):
    run = make_run(tmp_path / "sweep" / "0")
    assert len(collect([tmp_path, tmp_path / "sweep", run]).runs) == 1


def test_a_store_beside_the_runs_is_not_searched(tmp_path, make_run):
    make_run(tmp_path / "0")
    (tmp_path / "store" / "locks").mkdir(parents=True)
    make_run(tmp_path / "store" / "evaluation" / "key")
    assert [run.folder.name for run in collect([tmp_path]).runs] == ["0"]


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(UserError, match="nowhere is not a folder"):
        collect([tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("name", "runs_left", "points_left"),
    [("results.jsonl", 1, True), ("summary.json", 1, True), ("path.csv", 2, False)],
)
def test_a_file_cut_in_half_costs_one_line_that_names_it(tmp_path, make_run, name, runs_left, points_left):
    make_run(tmp_path / "0")
    file = make_run(tmp_path / "1") / name
    text = file.read_text()
    half = text[: len(text) // 2]
    file.write_text(half)
    found = collect([tmp_path])
    assert len(found.runs) == runs_left
    assert all(bool(run.points) for run in found.runs if run.folder.name == "0")
    assert all(bool(run.points) == points_left for run in found.runs if run.folder.name == "1")
    (problem,) = found.problems
    assert "\n" not in problem
    line = len(half.splitlines())
    assert f"{file}, line {line}" in problem


@pytest.mark.parametrize("name", ["results.jsonl", "path.csv"])
def test_a_file_cut_between_two_lines_is_noticed_too(tmp_path, make_run, name):
    file = make_run(tmp_path / "0") / name
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 2 + 3]))
    (problem,) = collect([tmp_path]).problems
    assert problem.startswith(f"{file}, line ")


def test_a_file_of_noise_costs_one_line(tmp_path, make_run):
    make_run(tmp_path / "0")
    (make_run(tmp_path / "1") / "results.jsonl").write_bytes(b"\xff\xfe\x00noise")
    found = collect([tmp_path])
    assert len(found.runs) == 1
    assert len(found.problems) == 1
    assert str(tmp_path / "1") in found.problems[0]


def test_reports_are_made_without_torch():
    modules = ["report.run", "report.sweep", "reporting", "report.callback", "report.figures", "report.paper"]
    code = "import sys\n" + "".join(f"import lmc.{name}\n" for name in modules) + "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_callback_is_light_enough_for_completion():
    code = "import sys, lmc.report.callback\nassert not {'torch', 'matplotlib', 'rich', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
