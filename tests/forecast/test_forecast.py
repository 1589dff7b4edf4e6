"""What an experiment would do, against what it then does."""

from pathlib import Path

import pytest

from lmc.errors import UserError
from lmc.forecast.composed import composed_jobs
from lmc.forecast.forecast import forecast
from lmc.forecast.listing import listing
from lmc.forecast.times import Stopwatch
from tests.whole import SMALL, run


def small(*more: str) -> list[str]:
    return [*SMALL, "training.epochs=2", *more]


def forecasts(*arguments: str):
    stopwatch = Stopwatch()
    return [forecast(overrides, settings, stopwatch) for overrides, settings in composed_jobs(arguments)]


def test_nothing_is_there_at_first_and_nothing_is_made(tmp_path: Path):
    (job,) = forecasts(*small("curve=bezier"))
    assert set(job.networks.values()) == {2}
    assert (len(job.networks), job.there, job.missing) == (2, frozenset(), "endpoints")
    assert set(job.networks) < set(job.shared)  # and the unaligned paths
    assert all(seconds > 0 for seconds in job.shared.values())
    assert job.seconds > 0
    assert not list((tmp_path / "store").glob("*/*/record.json"))


def test_what_was_made_is_found_and_what_is_missing_is_named():
    run("training.epochs=2")
    (same,) = forecasts(*small())
    assert (len(same.there), same.missing) == (2, None)
    assert (same.shared, same.seconds) == ({}, 0.0)
    (other,) = forecasts(*small("alignment=activation_matching"))
    assert (len(other.there), other.missing) == (2, "alignment")
    (bent,) = forecasts(*small("curve=bezier"))
    assert bent.missing == "curve"
    (finer,) = forecasts(*small("evaluation.grid=5"))
    assert finer.missing == "evaluation"
    (third,) = forecasts(*small("seeds=[0,1,2]"))
    assert (len(third.there), len(third.networks), third.missing) == (2, 3, "endpoints")


def test_unaligned_paths_are_shared_by_alignments_and_not_by_what_is_measured():
    by_alignment = [job.shared for job in forecasts(*small("alignment=none,weight_matching"))]
    assert len(by_alignment[0].keys() & by_alignment[1].keys()) == 3  # two networks and the path between them
    for changed in ("evaluation.grid=3,5", "statistics=none,reset", "seeds=[0,1],[1,2]"):
        first, second = (job.shared.keys() for job in forecasts(*small(changed)))
        assert len(first & second) == (1 if changed.startswith("seeds") else 2), changed


def test_networks_that_come_from_a_common_trunk_need_it():
    forked = ["endpoints=forked", "endpoints.shared_epochs=1"]
    (job,) = forecasts(*small(*forked))
    assert sorted(job.networks.values()) == [1, 2, 2]  # the trunk's epoch; each network tells of all its epochs
    run("training.epochs=2", *forked)
    (after,) = forecasts(*small(*forked))
    assert (after.there, after.missing) == (frozenset(job.networks), None)


def test_all_jobs_of_a_sweep_are_listed_and_a_shared_network_counts_once():
    text = listing(small("alignment=none,weight_matching", "architecture.width=4,5"))
    assert "4 jobs of: lmc " in text
    assert "architecture.width=5 alignment=weight_matching" in text
    assert "0 of 4 jobs find all they need; 0 of 4 networks are there" in text


def test_repetitions_of_a_table_are_jobs_of_their_own():
    overrides = [
        own for own, _ in composed_jobs(["experiment=jordan2023/mlp_depth", "table.only=[architecture.depth:3]"])
    ]
    assert len(overrides) == 2 * 3  # two columns that are measured apart, three pairs of seeds
    assert all("architecture.depth=3" in own for own in overrides)


def test_a_job_that_could_not_be_run_is_refused():
    with pytest.raises(UserError, match="a grid of 4 points"):
        forecasts(*small("evaluation.grid=3,4"))
