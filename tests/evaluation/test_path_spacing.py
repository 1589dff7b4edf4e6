"""Points of a path at equal distances along it."""

import numpy as np
import pytest
import torch
import yaml

from lmc.config import build, conf_dir, identity
from lmc.curve.linear import Linear
from lmc.curve.spherical import Spherical
from lmc.evaluation.path import PathEvaluation, along_length
from lmc.state import of_model
from lmc.statistics.none import NoCorrection


class Accelerating:
    """A path whose length is t squared, three times."""

    def distance(self, grid):
        return [3 * t**2 for t in grid]


class Waiting:
    """A path that goes from 0 to 1/4, stands still, and goes on from 3/4."""

    def distance(self, grid):
        return np.interp(grid, [0, 0.25, 0.75, 1], [0, 1, 1, 2]).tolist()


def test_fractions_of_the_length_are_found():
    fractions = PathEvaluation(grid=11).points
    np.testing.assert_allclose(along_length(Accelerating(), fractions), np.sqrt(fractions), atol=1e-11)
    assert along_length(Accelerating(), (0.0, 0.5, 1.0))[::2] == (0.0, 1.0)
    found = along_length(Waiting(), (0.0, 0.25, 0.5, 0.75, 1.0))
    assert found[1] == pytest.approx(0.125)
    assert found[3] == pytest.approx(0.875)
    assert 0.25 - 1e-9 <= found[2] <= 0.75 + 1e-9


def test_the_points_of_a_measured_path_are_equally_far_apart(seeded, dataset):
    # Weights that turn and grow: the arc is not travelled at one speed.
    model, fixed, moving = seeded(9), of_model(seeded(0)), of_model(seeded(1))
    moving = {name: 3 * tensor for name, tensor in moving.items()}
    path, evaluation = Spherical(per="network").path(fixed, moving, None), PathEvaluation(grid=5, spacing="length")
    none = NoCorrection().bind(None, None, (), None)
    raw = [point for point in evaluation.measure(model, path, none, dataset) if point.split == "test"]
    steps = np.diff([point.distance for point in raw])
    assert steps == pytest.approx([steps.mean()] * 4, rel=1e-6)
    assert (raw[0].t, raw[-1].t) == (0, 1)
    assert np.ptp(np.diff([point.t for point in raw])) > 0.01
    plain = PathEvaluation(grid=5).measure(model, path, none, dataset)
    assert [point.t for point in plain if point.split == "test"] == [0, 0.25, 0.5, 0.75, 1]


def test_on_a_line_and_without_length_it_is_t():
    fixed, moving = {"w": torch.zeros(3)}, {"w": torch.ones(3)}
    fractions = (0.0, 0.3, 0.5, 1.0)
    assert along_length(Linear().path(fixed, moving, None), fractions) == pytest.approx(fractions, abs=1e-11)
    assert along_length(Linear().path(fixed, dict(fixed), None), fractions) == fractions


def test_it_is_part_of_the_key_only_if_chosen():
    with open(f"{conf_dir()}/evaluation/path.yaml", encoding="utf-8") as file:
        node = yaml.safe_load(file)
    assert "spacing" not in identity(node, "evaluation")
    assert identity({**node, "spacing": "length"}, "evaluation")["spacing"] == "length"
    assert build({**node, "spacing": "length"}, "evaluation").spacing == "length"
