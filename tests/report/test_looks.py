"""The table of what analyses found."""

from typing import Any

from lmc.measures import MEASURES
from lmc.report.looks import looks_table
from lmc.report.run import run_table
from lmc.results import Row


def row(value: float, pair: tuple[int, int] = (0, 1), metric: str = "loss", **more: Any) -> Row:
    return Row(
        what="path_ensemble", path="aligned", pair=pair, split="test", metric=metric, unit="nats", value=value,
        examples=10, key="k", more=more,
    )  # fmt: skip


def test_numbers_of_a_whole_path_are_shown_with_their_mean_over_pairs():
    rows = [row(1.0, analysis="ensemble"), row(2.0, (0, 2), analysis="ensemble"), row(0.5, metric="x", analysis="a")]
    table = looks_table(rows)
    assert "ensemble   path_ensemble   loss" in table
    assert "1.5000 ± 0.7071" in table  # the sample deviation of 1 and 2
    assert "0.5000\n" in table


def test_the_end_stands_beside_the_metric():
    table = looks_table([row(1.0, end="fixed", analysis="a"), row(2.0, end="moving", analysis="a")])
    assert "loss, fixed" in table
    assert "loss, moving" in table


def test_single_points_and_other_rows_are_left_out():
    assert looks_table([row(1.0, analysis="a", t=0.5), row(1.0), row(1.0, layer="b")]) == ""


def test_what_an_analysis_calls_a_barrier_is_not_that_of_the_path():
    of_path = {"what": "barrier", "path": "aligned", "pair": (0, 1), "split": "train", "metric": "loss", "unit": "nats"}
    path = Row(**of_path, value=0.25, examples=10, key="path")
    analysis = Row(**of_path, value=0.75, examples=10, key="analysis", more={"analysis": "decomposition"})
    barriers = MEASURES[0]
    assert barriers.fits(path)
    assert not barriers.fits(analysis)
    shown, _, looks = run_table([path, analysis]).partition("Further looks")
    assert "0.2500" in shown
    assert "0.7500" not in shown
    assert "0.7500" in looks
