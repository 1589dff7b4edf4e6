"""Paths against numpy, scipy and numerical integration."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import BPoly
from torch import nn

from lmc.curve.bezier import Bezier
from lmc.curve.fitted import BENDS_FILE, Fitted
from lmc.curve.linear import Linear
from lmc.curve.polygonal_chain import PolygonalChain
from lmc.curve.trained import TrainedCurve
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, save
from lmc.training.recipe import Training

Ends = tuple[State, State]
Settings = Callable[..., Training]
BENDING = ("0.weight", "1.weight", "1.bias", "4.weight", "4.bias")
GRID = [0.0, 0.1, 1 / 3, 0.5, 0.75, 0.9, 1.0]


def _curves(settings: Settings) -> list[Fitted]:
    return [kind(training=settings(), bends=bends) for kind in (Bezier, PolygonalChain) for bends in (1, 2, 5)]


def _bends(folder: Path, fixed: State, bends: int) -> list[State]:
    """Random inner points, written as a fit writes them."""
    rng = generator(0, "bends")
    points = [{name: torch.randn(fixed[name].shape, generator=rng) for name in BENDING} for _ in range(bends)]
    save({f"bend{i}.{name}": t for i, point in enumerate(points, 1) for name, t in point.items()}, folder / BENDS_FILE)
    return points


def _same_bytes(first: State, second: State) -> bool:
    if first.keys() != second.keys():
        return False
    return all(t.numpy().tobytes() == second[name].numpy().tobytes() for name, t in first.items())


def _stacked(ends: Ends, points: Sequence[State], name: str) -> np.ndarray:
    return np.stack([state[name].double().numpy() for state in (ends[0], *points, ends[1])])


def test_every_path_has_its_endpoints_bit_for_bit(ends: Ends, settings: Settings, tmp_path: Path) -> None:
    for curve in (Linear(), *_curves(settings)):
        assert isinstance(curve, TrainedCurve) == (curve.training is not None)
        if isinstance(curve, Fitted):
            _bends(tmp_path, ends[0], curve.bends)
        path = curve.path(*ends, tmp_path)
        assert _same_bytes(path.state(0), ends[0])
        assert _same_bytes(path.state(1.0), ends[1])
        assert not _same_bytes(path.state(0.5), ends[0])
        path.state(0)["4.bias"].fill_(7)  # a fresh copy
        assert _same_bytes(path.state(0), ends[0])


def test_a_line_is_the_convex_combination(ends: Ends) -> None:
    path = Linear().path(*ends, None)
    for t in GRID[1:-1]:
        state = path.state(t)
        for name, tensor in ends[0].items():
            if tensor.is_floating_point():
                expected = (1 - t) * tensor.double() + t * ends[1][name].double()
                torch.testing.assert_close(state[name].double(), expected, rtol=1e-6, atol=1e-7)
        assert state["1.num_batches_tracked"] == 10


@pytest.mark.parametrize("bends", [1, 2, 5])
def test_a_bezier_curve_is_scipys(ends: Ends, settings: Settings, tmp_path: Path, bends: int) -> None:
    points = _bends(tmp_path, ends[0], bends)
    path = Bezier(training=settings(), bends=bends).path(*ends, tmp_path)
    for name in BENDING:
        reference = BPoly(_stacked(ends, points, name)[:, None], [0, 1])
        for t in GRID:
            np.testing.assert_allclose(path.state(t)[name].double().numpy(), reference(t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bends", [1, 2, 5])
def test_a_polygonal_chain_is_numpys_interpolation(ends: Ends, settings: Settings, tmp_path: Path, bends: int) -> None:
    points = _bends(tmp_path, ends[0], bends)
    path = PolygonalChain(training=settings(), bends=bends).path(*ends, tmp_path)
    knots = np.linspace(0, 1, bends + 2)
    for name in BENDING:
        controls = _stacked(ends, points, name).reshape(bends + 2, -1)
        for t in [*GRID, *knots]:
            expected = [np.interp(t, knots, column) for column in controls.T]
            found = path.state(float(t))[name].double().numpy().ravel()
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_chain_with_one_bend_goes_through_it(ends: Ends, settings: Settings, tmp_path: Path) -> None:
    (point,) = _bends(tmp_path, ends[0], 1)
    state = PolygonalChain(training=settings(), bends=1).path(*ends, tmp_path).state(0.5)
    assert all(torch.equal(state[name], point[name]) for name in BENDING)


def test_what_does_not_bend_stays_on_the_line(ends: Ends, settings: Settings, tmp_path: Path) -> None:
    line = Linear().path(*ends, None).state(0.3)
    for curve in _curves(settings):
        _bends(tmp_path, ends[0], curve.bends)
        state = curve.path(*ends, tmp_path).state(0.3)
        assert state.keys() == line.keys()
        for name in line.keys() - set(BENDING):
            assert torch.equal(state[name], line[name])


def test_a_line_is_as_long_as_its_ends_are_apart(ends: Ends) -> None:
    parameters = [name for name in ends[0] if not name.startswith("1.running") and "num_batches" not in name]
    squares = sum(float((ends[1][n].double() - ends[0][n].double()).square().sum()) for n in parameters)
    found = Linear().path(*ends, None).distance(GRID)
    np.testing.assert_allclose(found, np.array(GRID) * np.sqrt(squares), rtol=1e-12)


def test_arc_lengths_are_those_of_a_fine_polyline(ends: Ends, settings: Settings, tmp_path: Path) -> None:
    knots = np.linspace(0, 1, 3001)
    for curve in _curves(settings):
        points = _bends(tmp_path, ends[0], curve.bends)
        controls = np.concatenate([_stacked(ends, points, n).reshape(curve.bends + 2, -1) for n in BENDING], axis=1)
        way = np.stack([curve.weights(float(t)) for t in knots]) @ controls
        travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
        found = curve.path(*ends, tmp_path).distance([0.9, 0.0, 0.2, 1.0, 0.2])  # any order, any number
        np.testing.assert_allclose(found, np.interp([0.9, 0.0, 0.2, 1.0, 0.2], knots, travelled), rtol=2e-6)


def test_a_bezier_curve_with_a_cusp_has_its_length(settings: Settings) -> None:
    # In one dimension with control points 0, 1, 0: out to 1/2 and back, where phi' vanishes.
    gram = np.array([[1.0, -1.0], [-1.0, 1.0]])
    found = Bezier(training=settings(), bends=1).arc_length(gram, [0.0, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(found, [0.0, 0.375, 0.5, 1.0], rtol=1e-3)


def test_equal_ends_have_no_distance(ends: Ends, settings: Settings, tmp_path: Path) -> None:
    assert Linear().path(ends[0], ends[0], None).distance(GRID) == [0.0] * len(GRID)
    save({f"bend1.{name}": ends[0][name] for name in BENDING}, tmp_path / BENDS_FILE)
    assert Bezier(training=settings()).path(ends[0], ends[0], tmp_path).distance(GRID) == [0.0] * len(GRID)


def test_wrong_inputs_are_refused(
    ends: Ends, settings: Settings, convnet: nn.Module, dataset: object, tmp_path: Path
) -> None:
    short = {name: t for name, t in ends[1].items() if name != "4.bias"}
    for curve in (Linear(), Bezier(training=settings())):
        with pytest.raises(UserError, match=r"the moving network has no tensor '4\.bias'"):
            curve.path(ends[0], short, tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        Bezier(training=settings()).path(*ends, tmp_path)
    _bends(tmp_path, ends[0], 2)
    with pytest.raises(UserError, match=r"has 1 bends; set curve\.bends"):
        Bezier(training=settings(), bends=1).path(*ends, tmp_path)
    with pytest.raises(UserError, match="bend 3"):
        Bezier(training=settings(), bends=3).path(*ends, tmp_path)
    with pytest.raises(ValueError, match="needs the folder"):
        Bezier(training=settings()).path(*ends, None)
