"""Every barrier and summary of design.md, against closed forms and numpy."""

import math

import numpy as np
import pytest

from lmc.results import PathPoint, path_rows, path_statistics

T = np.linspace(0, 1, 25)


def test_a_parabola_over_a_slope():
    """L(t) = 1 + t + 4 h t (1 - t) lies h above the line between its ends, at t = 1/2."""
    h = 0.8
    found = path_statistics(T, 1 + T + 4 * h * T * (1 - T))
    assert found["barrier"] == pytest.approx(h)
    assert found["barrier_midpoint"] == pytest.approx(h)
    # The highest point is at t = 1/2 + 1/(8h), where L = 3/2 + h + 1/(16h); the grid comes near it.
    assert found["barrier_mean_endpoints"] == pytest.approx(h + 1 / (16 * h), abs=4 * h / 48**2)
    assert found["barrier_mean_endpoints"] > found["barrier"]
    assert found["path_min"] == 1
    assert found["path_max"] == pytest.approx(1.5 + found["barrier_mean_endpoints"])
    # The trapezoidal rule misses h'' / 12 of the square of the step: 8h/12/24**2.
    assert found["path_length_mean"] == pytest.approx(1.5 + 2 * h / 3 - 8 * h / 12 / 24**2)


def test_a_valley_gives_a_negative_midpoint_and_nothing_is_clipped():
    found = path_statistics(T, 2 - 4 * 0.5 * T * (1 - T))
    assert found["barrier_midpoint"] == pytest.approx(-0.5)
    assert found["barrier"] == found["barrier_mean_endpoints"] == 0  # reached at the ends
    slope = path_statistics(T, 1 + T - 0.1 * np.sin(np.pi * T))
    assert slope["barrier"] == pytest.approx(0, abs=1e-12)
    assert slope["barrier_mean_endpoints"] == pytest.approx(0.5)


def test_definitions_differ_when_the_ends_do():
    values = np.array([0.0, 1.0, 2.0])
    found = path_statistics([0, 0.5, 1], values)
    assert (found["barrier"], found["barrier_mean_endpoints"], found["barrier_midpoint"]) == (0.0, 1.0, 0.0)


def test_a_grid_that_is_not_uniform():
    t = np.array([0, 0.1, 0.15, 0.6, 1])
    values = np.exp(t) + np.array([0, 2, 0, 0, 0])
    found = path_statistics(t, values)
    ends = [math.exp(0), math.exp(1)]
    assert found["barrier"] == pytest.approx(math.exp(0.1) + 2 - (0.9 * ends[0] + 0.1 * ends[1]))
    assert found["barrier_mean_endpoints"] == pytest.approx(math.exp(0.1) + 2 - sum(ends) / 2)
    assert "barrier_midpoint" not in found
    assert found["path_mean"] == pytest.approx(values.mean())
    assert found["path_length_mean"] == pytest.approx(np.trapezoid(values, t))


def test_mean_is_weighted_by_arc_length():
    """On a path that hurries at first, the points of the fast part stand for more length."""
    distance = np.sqrt(T) * 7
    values = 1 - T
    found = path_statistics(T, values, distance)
    assert found["path_length_mean"] == pytest.approx(np.trapezoid(values, distance) / 7)
    # The exact mean over arc length s = sqrt(t) is the integral of 1 - s^2 over [0, 1].
    assert found["path_length_mean"] == pytest.approx(2 / 3, abs=0.01)
    assert found["path_mean"] == pytest.approx(0.5)
    assert found["barrier"] == path_statistics(T, values)["barrier"]


def test_a_path_without_length_weighs_all_points_by_t():
    values = np.arange(25.0)
    assert path_statistics(T, values, np.zeros(25))["path_length_mean"] == pytest.approx(12)


def test_a_diverged_network_makes_the_barrier_nan_or_infinite():
    assert math.isnan(path_statistics([0, 0.5, 1], [1, math.nan, 1])["barrier"])
    assert path_statistics([0, 0.5, 1], [1, math.inf, 1])["barrier"] == math.inf


@pytest.mark.parametrize(
    ("t", "values", "distance"),
    [
        ([0, 1], [1], None),
        ([0, 0.5], [1, 1], None),
        ([0.5, 1], [1, 1], None),
        ([0, 0.7, 0.3, 1], [1] * 4, None),
        ([0], [1], None),
        ([0, 1], [1, 1], [0, 1, 2]),
    ],
)
def test_impossible_arrays_are_refused(t, values, distance):
    with pytest.raises(ValueError, match="t"):
        path_statistics(t, values, distance)


def test_rows_hold_every_statistic_of_every_path_split_and_metric():
    points = [
        PathPoint(
            pair=pair,
            path=path,
            split=split,
            t=t,
            loss=height * 4 * t * (1 - t) + pair[1],
            accuracy=1 - height * t * (1 - t),
            distance=t,
            examples=examples,
        )
        for pair in ((0, 1), (0, 2))
        for path, height in (("unaligned", 0.8), ("aligned", 0.1))
        for split, examples in (("train", 50), ("test", 20))
        for t in (0.5, 0.0, 1.0)  # the order in which they were measured does not matter
    ]
    keys = {f"{path}/0-{n}": f"{path}{n}" for path in ("aligned", "unaligned") for n in (1, 2)}
    rows = path_rows(points, keys)
    assert len(rows) == 8 * 2 * 8
    found = {(r.what, r.path, r.pair, r.split, r.metric): r for r in rows}
    assert len(found) == len(rows)
    loss = found["barrier", "aligned", (0, 2), "test", "loss"]
    assert (loss.value, loss.unit, loss.examples, loss.key) == (pytest.approx(0.1), "nats", 20, "aligned2")
    error = found["barrier_midpoint", "unaligned", (0, 1), "train", "error"]
    assert (error.value, error.unit, error.examples, error.key) == (pytest.approx(0.2), "fraction", 50, "unaligned1")
