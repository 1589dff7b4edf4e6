"""Shares of units that two runs match alike, against counts by hand."""

from pathlib import Path

import pytest

from lmc import results
from lmc.report.agreement import Agreements, compare, with_agreement
from lmc.report.grouping import group
from lmc.report.runs import collect
from lmc.report.sweep import write_sweep
from lmc.report.tables import markdown_matrix

# Of 10 units in two groups, the second matching differs in 2, the third in 3 + 2 of the first and in 5 of the second.
MATCHINGS = {
    "none": {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2, 3]},
    "weight_matching": {"a": [0, 1, 2, 3, 5, 4], "b": [0, 1, 2, 3]},
    "activation_matching": {"a": [1, 2, 0, 3, 5, 4], "b": [0, 1, 3, 2]},
}


def write(folder: Path, alignment: str, pair: tuple[int, int] = (0, 1)) -> None:
    results.write_matching(folder, pair, MATCHINGS[alignment])


@pytest.fixture
def runs(tmp_path: Path, make_run) -> Path:
    for alignment in MATCHINGS:
        write(make_run(tmp_path / "runs" / alignment, choices={"alignment": alignment}), alignment)
    return tmp_path / "runs"


def test_a_matching_is_read_as_it_was_written(tmp_path: Path):
    write(tmp_path, "weight_matching", (3, 12))
    found = results.read_matchings(tmp_path)
    assert list(found) == [(3, 12)]
    assert {name: units.tolist() for name, units in found[3, 12].items()} == MATCHINGS["weight_matching"]


def test_the_shares_are_those_counted_by_hand(runs: Path):
    _, settings = group(collect([runs]).runs)
    found = compare(settings)
    assert found is not None
    names = {label: number for number, label in enumerate(found.labels)}
    expected = {
        ("none", "none"): 1.0,
        ("none", "weight_matching"): 0.8,
        ("none", "activation_matching"): 0.3,
        ("weight_matching", "activation_matching"): 0.5,
    }
    for (one, other), share in expected.items():
        assert found.shares[names[one]][names[other]] == found.shares[names[other]][names[one]] == pytest.approx(share)
    assert "| weight_matching | 50.0 | 80.0 | 100.0 |" in markdown_matrix(found)


def test_every_run_is_compared_with_weight_matching(runs: Path):
    found = {run.choices["alignment"]: run for run in with_agreement(collect([runs]).runs)}
    shares = {name: [r.value for r in run.rows if r.what == "agreement"] for name, run in found.items()}
    assert shares == {"none": [0.8], "weight_matching": [1.0], "activation_matching": [0.5]}


def test_the_report_shows_both(runs: Path, tmp_path: Path):
    write_sweep([runs], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "as weight matching (%)" in text
    assert "## Units that two alignments match alike, %" in text
    assert 'class="matrix"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_networks_trained_apart_are_not_compared(tmp_path: Path, make_run):
    for number, alignment in enumerate(("none", "weight_matching")):
        pair = (2 * number, 2 * number + 1)
        write(make_run(tmp_path / alignment, seeds=pair, choices={"alignment": alignment}), alignment, pair)
    assert compare(group(collect([tmp_path]).runs)[1]) is None


def test_pairs_that_cannot_be_compared_are_a_dash():
    assert "| a | 100.0 | – |" in markdown_matrix(Agreements(["a", "b"], [[1.0, None], [None, 1.0]]))


def test_settings_that_share_their_permutations_are_one(tmp_path: Path, make_run):
    for alignment in ("none", "weight_matching"):
        for statistics in ("repair", "rescale"):
            chosen = {"alignment": alignment, "statistics": statistics}
            write(make_run(tmp_path / f"{alignment}-{statistics}", choices=chosen), alignment)
    found = compare(group(collect([tmp_path]).runs)[1])
    assert found is not None
    assert found.labels == ["none", "weight_matching"]


def test_a_damaged_matching_costs_a_line_and_not_the_report(runs: Path, tmp_path: Path):
    (runs / "none" / "matching_0-1.safetensors").write_bytes(b"no")
    assert "matching_0-1.safetensors is damaged" in write_sweep([runs], tmp_path / "out")


def test_runs_without_permutations_have_no_section(sweep: Path, tmp_path: Path):
    write_sweep([sweep], tmp_path)
    assert "match alike" not in (tmp_path / "report.md").read_text(encoding="utf-8")
