"""Spherical interpolation against scipy and numerical integration."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp
from torch import nn

from lmc.curve.linear import Linear
from lmc.curve.spherical import Spherical
from lmc.curve.trained import TrainedCurve
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State

Ends = tuple[State, State]
TURNING = ("0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias", "scale")
GRID = [0.0, 0.1, 1 / 3, 0.5, 0.75, 1.0]


def _flat(state: State) -> np.ndarray:
    return np.concatenate([state[name].double().numpy().ravel() for name in TURNING])


def _slerp(first: np.ndarray, second: np.ndarray, t: float) -> np.ndarray:
    """scipy's arc, which knows unit vectors alone: in the plane of the two, stretched so that the ends are met."""
    arc = geometric_slerp(first / np.linalg.norm(first), second / np.linalg.norm(second), [0, t, 1])
    weights = np.linalg.lstsq(arc[[0, 2]].T, arc[1], rcond=None)[0]
    return weights[0] * first + weights[1] * second


def test_each_tensor_is_scipys(ends: Ends) -> None:
    path = Spherical(per="tensor").path(*ends, None)
    for t in GRID:
        state = path.state(t)
        for name in TURNING[:-1]:  # the scale is the same in both
            first, second = (end[name].double().numpy().ravel() for end in ends)
            expected = _slerp(first, second, t)
            np.testing.assert_allclose(state[name].double().numpy().ravel(), expected, rtol=1e-5, atol=1e-6)


def test_the_whole_network_is_scipys(ends: Ends) -> None:
    path = Spherical(per="network").path(*ends, None)
    for t in GRID:
        expected = _slerp(_flat(ends[0]), _flat(ends[1]), t)
        np.testing.assert_allclose(_flat(path.state(t)), expected, rtol=1e-5, atol=1e-6)


def test_unit_vectors_stay_on_the_sphere_at_a_constant_speed() -> None:
    rng = generator(0, "unit")
    drawn = torch.randn(2, 5, generator=rng, dtype=torch.float64)  # scipy wants the length to be 1 to 9 digits
    fixed, moving = ({"w": row / row.norm()} for row in drawn)
    path = Spherical().path(fixed, moving, None)
    arc = geometric_slerp(fixed["w"].numpy(), moving["w"].numpy(), GRID)
    np.testing.assert_allclose(np.stack([path.state(t)["w"].numpy() for t in GRID]), arc, atol=1e-12)
    angle = np.arccos(float(fixed["w"] @ moving["w"]))
    np.testing.assert_allclose(path.distance(GRID), angle * np.array(GRID), rtol=1e-9)


@pytest.mark.parametrize("per", ["tensor", "network"])
def test_the_ends_are_met_bit_for_bit_and_what_is_no_parameter_lies_on_the_line(ends: Ends, per: str) -> None:
    curve = Spherical(per=per)  # type: ignore[arg-type] # one of the two
    assert not isinstance(curve, TrainedCurve)
    path, line = curve.path(*ends, None), Linear().path(*ends, None)
    for t in (0, 1):
        state = path.state(t)
        assert all(state[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in ends[t].items())
        state["4.bias"].fill_(7)  # a fresh copy
        assert path.state(t)["4.bias"][0] == ends[t]["4.bias"][0]
    for name in ends[0].keys() - set(TURNING):
        assert torch.equal(path.state(0.3)[name], line.state(0.3)[name])


@pytest.mark.parametrize("factor", [2.0, 1.0, -1.0, 0.0])
def test_collinear_tensors_take_the_line(factor: float) -> None:
    fixed = {"w": torch.randn(7, generator=generator(0, "w"))}
    moving = {"w": factor * fixed["w"]}
    path, line = Spherical().path(fixed, moving, None), Linear().path(fixed, moving, None)
    for t in GRID:
        assert torch.equal(path.state(t)["w"], line.state(t)["w"])
    np.testing.assert_allclose(path.distance(GRID), line.distance(GRID), rtol=1e-12)


def test_nearly_collinear_tensors_are_close_to_the_line() -> None:
    rng = generator(0, "near")
    first, off = torch.randn(7, generator=rng), torch.randn(7, generator=rng)
    for size in (1e-3, 1e-4, 1e-5, 1e-6, 1e-7):
        fixed, moving = {"w": first}, {"w": first + size * off}
        path, line = Spherical().path(fixed, moving, None), Linear().path(fixed, moving, None)
        bound = size**2 * float(off.square().sum() / first.norm()) + 1e-6
        assert float((path.state(0.4)["w"] - line.state(0.4)["w"]).abs().max()) < bound


@pytest.mark.parametrize("per", ["tensor", "network"])
def test_lengths_are_those_of_a_fine_polyline(ends: Ends, per: str) -> None:
    path = Spherical(per=per).path(*ends, None)  # type: ignore[arg-type] # one of the two
    knots = np.linspace(0, 1, 401)
    way = np.stack([_flat(path.state(float(t))) for t in knots])
    travelled = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(way, axis=0), axis=1))])
    asked = [0.9, 0.0, 0.2, 1.0, 0.2]
    np.testing.assert_allclose(path.distance(asked), np.interp(asked, knots, travelled), rtol=1e-4)


def test_wrong_inputs_are_refused(ends: Ends, convnet: nn.Module, dataset: object, tmp_path: Path) -> None:
    short = {name: t for name, t in ends[1].items() if name != "4.bias"}
    with pytest.raises(UserError, match=r"the moving network has no tensor '4\.bias'"):
        Spherical().path(ends[0], short, None)
