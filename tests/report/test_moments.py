"""The heat map of simultaneous connectivity."""

from typing import Any

import numpy as np
import pytest

from lmc.report.moments import moments, moments_figure
from lmc.results import Row


def row(value: float, pair: tuple[int, int] = (0, 1), split: str = "test", metric: str = "loss", **more: Any) -> Row:
    return Row(
        what="moment_barrier", path="aligned", pair=pair, split=split, metric=metric, unit="nats", value=value,
        examples=5, key="k", more={"analysis": "simultaneous_connectivity", "axis": "epoch", **more},
    )  # fmt: skip


ROWS = [
    *(row(value, pair, applied_at=at) for pair in ((0, 1), (0, 2)) for at, value in ((1.0, 2.0), (5.0, 3.0))),
    *(row(0.5 * by * at, found_at=by, applied_at=at) for by in (1.0, 5.0) for at in (1.0, 5.0)),
    *(row(1.5 * by * at, (0, 2), found_at=by, applied_at=at) for by in (1.0, 5.0) for at in (1.0, 5.0)),
    row(99.0, split="train", applied_at=1.0),
    row(99.0, metric="error", applied_at=1.0),
]


def test_a_cell_is_the_mean_over_pairs() -> None:
    found = moments(ROWS)
    assert found is not None
    axis, columns, applied, values = found
    assert (axis, columns, applied) == ("epoch", ["none", "1", "5"], ["1", "5"])
    assert values == pytest.approx(np.array([[2.0, 1.0, 5.0], [3.0, 5.0, 25.0]]))


def test_the_figure_shows_every_cell_with_its_number() -> None:
    found = moments(ROWS)
    assert found is not None
    figure = moments_figure(*found)
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.texts] == ["2.00", "1.00", "5.00", "3.00", "5.00", "25.00"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["none", "1", "5"]
    assert axes.get_ylabel() == "tried at epoch"


def test_other_rows_give_no_figure() -> None:
    assert moments([]) is None
    assert moments(ROWS[-2:]) is None
