import csv
import math
import re
import statistics

import numpy as np
import pytest

from lmc.errors import UserError
from lmc.report.sweep import write_sweep
from lmc.report.tables import escape_latex

FILES = ("report.md", "report.csv", "report.tex", "report.html", "paths.png", "paths.svg")
# The train loss barriers of the `sweep` fixture, two pairs each.
HEIGHTS = {"none": (0.8, 0.9), "activation_matching": (0.05, 0.07), "weight_matching": (0.02, 0.01)}


def read_csv(folder) -> dict[str, dict[str, str]]:
    with (folder / "report.csv").open(encoding="utf-8", newline="") as file:
        return {entry["alignment"]: entry for entry in csv.DictReader(file)}


def test_a_sweep_leaves_its_report(sweep):
    text = write_sweep([sweep], sweep)
    for name in FILES:
        assert (sweep / name).stat().st_size > 100, name
    assert str(sweep / "report.html") in text
    assert text.count("did not end") == 1


def test_the_csv_has_mean_and_deviation_over_pairs_in_full_precision(sweep, tmp_path):
    write_sweep([sweep], tmp_path / "out")
    entries = read_csv(tmp_path / "out")
    assert list(entries) == list(HEIGHTS)
    for alignment, heights in HEIGHTS.items():
        entry = entries[alignment]
        assert entry["pairs"] == entry["aligned_train_loss_barrier_n"] == "2"
        mean, deviation = statistics.mean(heights), statistics.stdev(heights)
        assert float(entry["aligned_train_loss_barrier_mean"]) == pytest.approx(mean, rel=1e-12)
        assert float(entry["aligned_train_loss_barrier_std"]) == pytest.approx(deviation, rel=1e-12)
        assert float(entry["aligned_test_loss_barrier_mean"]) == pytest.approx(1.5 * mean, rel=1e-12)
        assert float(entry["aligned_train_loss_barrier_midpoint_mean"]) == pytest.approx(mean, rel=1e-12)
        assert float(entry["aligned_train_error_barrier_mean"]) == pytest.approx(0.25 * mean, rel=1e-9)
        assert float(entry["unaligned_train_loss_barrier_mean"]) == pytest.approx(0.8, rel=1e-12)
        assert float(entry["alignment_seconds_mean"]) == 1.25
        # Four networks, 0 to 3, with a test error of 3 % and one more each.
        assert entry["endpoint_test_accuracy_n"] == "4"
        accuracies = [0.97, 0.96, 0.95, 0.94]
        assert float(entry["endpoint_test_accuracy_mean"]) == pytest.approx(np.mean(accuracies), rel=1e-12)
        assert float(entry["endpoint_test_accuracy_std"]) == pytest.approx(np.std(accuracies, ddof=1), rel=1e-9)


def test_the_same_experiment_twice_counts_once(tmp_path, make_run):
    for name in ("first", "second"):
        make_run(tmp_path / name, choices={"alignment": "none"})
    make_run(tmp_path / "third", seeds=(1, 2), heights=0.04, choices={"alignment": "none"})
    write_sweep([tmp_path], tmp_path)
    entry = read_csv(tmp_path)["none"]
    assert entry["aligned_train_loss_barrier_n"] == "2"
    assert float(entry["aligned_train_loss_barrier_mean"]) == pytest.approx(0.03, rel=1e-12)
    assert entry["endpoint_test_accuracy_n"] == "3"  # network 1 is in two pairs


def test_one_pair_has_no_deviation(tmp_path, make_run):
    make_run(tmp_path / "0", choices={"alignment": "none"})
    text = write_sweep([tmp_path], tmp_path)
    assert math.isnan(float(read_csv(tmp_path)["none"]["aligned_train_loss_barrier_std"]))
    row = (tmp_path / "report.md").read_text().splitlines()[4]
    assert "±" not in row.split("|")[3]
    assert "nan" not in text


def test_a_negative_barrier_is_shown_as_such(tmp_path, make_run):
    make_run(tmp_path / "0", heights=-0.02, choices={"alignment": "none"})
    write_sweep([tmp_path], tmp_path)
    assert float(read_csv(tmp_path)["none"]["aligned_train_loss_barrier_midpoint_mean"]) == pytest.approx(-0.02)
    assert "| -0.020 |" in (tmp_path / "report.md").read_text()


def test_markdown_and_latex_hold_the_same_numbers(sweep):
    write_sweep([sweep], sweep)
    mean, deviation = "0.060", "0.014"  # activation matching, train loss
    markdown, latex = (sweep / "report.md").read_text(), (sweep / "report.tex").read_text()
    assert f"| activation_matching | 2 | {mean} ± {deviation} |" in markdown
    assert rf"activation\_matching & 2 & {mean} $\pm$ {deviation} &" in latex
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert latex.count(rule) == 1
    width = len(re.search(r"\\begin{tabular}{(\w+)}", latex)[1])
    for line in latex.splitlines():
        if line.endswith(r"\\"):
            spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn{(\d+)}", line))
            assert line.count(" & ") + spanned + 1 == width, line
    assert {line.count(" | ") for line in markdown.splitlines() if line.startswith("| ")} == {width - 1}


def test_latex_and_markdown_escape_what_a_setting_may_hold(tmp_path, make_run):
    for number, name in enumerate(["a|b", r"50% & {x}_1 #$ ~ ^ \n"]):
        make_run(tmp_path / str(number), settings={"note": name})
    write_sweep([tmp_path], tmp_path)
    latex = (tmp_path / "report.tex").read_text()
    assert r"50\% \& \{x\}\_1 \#\$ \textasciitilde{} \textasciicircum{} \textbackslash{}n" in latex
    assert r"| a\|b |" in (tmp_path / "report.md").read_text()
    assert escape_latex("plain text") == "plain text"


def test_the_rest_is_reported_when_a_file_is_damaged(sweep):
    damaged = sweep / "0" / "results.jsonl"
    damaged.write_text(damaged.read_text()[:700])
    text = write_sweep([sweep], sweep)
    line = f"{damaged}, line "
    assert line in text
    assert line in (sweep / "report.md").read_text()
    assert line in (sweep / "report.html").read_text()
    assert read_csv(sweep)["none"]["pairs"] == "1"


def test_runs_without_paths_still_have_a_table(tmp_path, make_run):
    (make_run(tmp_path / "0", choices={"alignment": "none"}) / "path.csv").unlink()
    write_sweep([tmp_path], tmp_path)
    assert read_csv(tmp_path)["none"]["pairs"] == "1"
    assert not (tmp_path / "paths.png").exists()
    assert "paths.png" not in (tmp_path / "report.md").read_text()


def test_a_folder_without_finished_runs_is_an_error(tmp_path, make_run):
    make_run(tmp_path / "0", finished=False)
    with pytest.raises(UserError, match=r"no finished run below .*did not end"):
        write_sweep([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_is_the_same_each_time(sweep, tmp_path):
    for out in ("a", "b"):
        write_sweep([sweep], tmp_path / out)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_five_hundred_jobs(tmp_path, make_run):
    for job in range(500):
        make_run(tmp_path / str(job), seeds=(0, 1), heights=0.001 * job, settings={"training": {"epochs": job // 5}})
    write_sweep([tmp_path], tmp_path)
    with (tmp_path / "report.csv").open() as file:
        entries = list(csv.DictReader(file))
    assert [entry["training.epochs"] for entry in entries] == [str(number) for number in range(100)]
