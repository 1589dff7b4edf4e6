"""Planes on problems whose loss, axes and coordinates are known in closed form."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmc.analysis.base import Setting, Subject
from lmc.analysis.plane import Plane, spread
from lmc.analysis.span import Span, nearest_convex
from lmc.curve.bezier import Bezier
from lmc.curve.linear import Linear
from lmc.errors import UserError
from lmc.evaluation.measure import measure
from lmc.seeding import generator, isolated
from lmc.state import State, interpolate, of_model
from lmc.training.schedule.constant import Constant
from lmc.training.sgd import SGD
from tests.analysis.subjects import data, subject

MIDDLE = [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]


class Bowl(nn.Module):
    """Two parameters and the loss (a - 1)^2 + 3 (b + 0.5)^2 + 0.01, whatever the image: cross-entropy of two logits."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2))

    def forward(self, inputs: Tensor) -> Tensor:
        a, b = self.place.double()
        # log(1 + exp(s)) = loss with s = log(exp(loss) - 1): class 0 has the logit 0, class 1 the logit s.
        logit = torch.log(torch.expm1((a - 1) ** 2 + 3 * (b + 0.5) ** 2 + 0.01)).float()
        return torch.stack([torch.zeros(()), logit]).expand(len(inputs), 2)


def bowl(a: float, b: float) -> float:
    return (a - 1) ** 2 + 3 * (b + 0.5) ** 2 + 0.01


class Bent:
    """A path through given networks, by hand: quadratic Bezier with the control point `control`."""

    def __init__(self, fixed: State, moving: State, control: State) -> None:
        self.fixed, self.moving, self.control = fixed, moving, control

    def state(self, t: float) -> State:
        state = interpolate(self.fixed, self.moving, t)
        for name, control in self.control.items():
            ends = (1 - t) ** 2 * self.fixed[name] + t**2 * self.moving[name]
            state[name] = ends + 2 * t * (1 - t) * control
        return state

    def distance(self, grid: Sequence[float]) -> list[float]:
        raise AssertionError("not needed")


def bowls(*places: tuple[float, float]) -> list[State]:
    return [{"place": torch.tensor(place)} for place in places]


def read(folder: Path) -> list[dict[str, Any]]:
    with (folder / "plane.csv").open(newline="") as file:
        return [
            {name: value if name == "split" else float(value) for name, value in entry.items()}
            for entry in csv.DictReader(file)
        ]


def run(plane: Plane, of: Subject, folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any], list[Any]]:
    folder.mkdir(exist_ok=True)
    steps: list[Mapping[str, float]] = []
    findings = plane(of, folder, steps.append)
    assert len(steps) == plane.steps(of)
    assert {path.name for path in folder.iterdir()} == set(plane.files)
    return read(folder), json.loads((folder / "plane.json").read_text()), findings


@pytest.fixture
def normed() -> tuple[nn.Module, list[State]]:
    """A network with BatchNorm, a parameter under two names, and a frozen one; four of its kind, different in all."""
    with isolated(0, "model"):
        model = nn.Sequential(
            nn.Flatten(), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 5), nn.Linear(5, 5)
        )
    model[5].weight = model[4].weight
    model[1].bias.requires_grad_(False)
    states = []
    for seed in range(4):
        rng = generator(seed, "state")
        state = of_model(model)
        for name, tensor in state.items():
            if not tensor.is_floating_point():
                state[name] = torch.tensor(seed)
            else:
                state[name] = torch.rand(tensor.shape, generator=rng) + 0.5 * ("var" in name)
        state["5.weight"] = state["4.weight"].clone()
        states.append(state)
    return model, states


def test_every_point_of_a_bowl_has_its_loss(tmp_path):
    """Networks (0, 0), (3, 4) and one beside them: axes (0.6, 0.8) and (-0.8, 0.6), by hand."""
    fixed, moving, control = bowls((0.0, 0.0), (3.0, 4.0), (-1.3, 4.9))
    of = subject(Bowl(), [fixed, moving], Bent(fixed, moving, control))
    rows, geometry, findings = run(Plane(grid=[5, 3], margin=0.1), of, tmp_path)
    # The middle is (3, 4) / 4 + (-1.3, 4.9) / 2 = (0.1, 3.45); <(0.1, 3.45), (0.6, 0.8)> = 2.82, the rest is 1.99.
    places = [(place["x"], place["y"]) for place in geometry["networks"]]
    assert np.allclose(places, [(0, 0), (5, 0), (2.82, 1.99)], atol=1e-6)
    assert geometry["through"] == "middle"
    assert geometry["grid"] == [5, 3]
    xs, ys = np.linspace(-0.5, 5.5, 5), np.linspace(-0.199, 2.189, 3)
    assert np.allclose([row["x"] for row in rows], np.tile(np.repeat(xs, 2), 3), atol=1e-6)
    assert np.allclose([row["y"] for row in rows], np.repeat(ys, 10), atol=1e-6)
    assert [row["split"] for row in rows] == ["train", "test"] * 15
    expected = [bowl(0.6 * row["x"] - 0.8 * row["y"], 0.8 * row["x"] + 0.6 * row["y"]) for row in rows]
    assert np.allclose([row["loss"] for row in rows], expected, rtol=1e-5)
    assert [row["accuracy"] for row in rows] == [float(loss < math.log(2)) for loss in expected]
    assert {(row["split"], row["examples"]) for row in rows} == {("train", 4), ("test", 3)}
    found = {(f.what, f.metric, f.split): f.value for f in findings}
    assert found["plane_minimum", "loss", "test"] == pytest.approx(min(expected), rel=1e-5)
    assert found["plane_maximum", "loss", "train"] == pytest.approx(max(expected), rel=1e-5)
    assert found["plane_maximum", "error", "train"] == 1


def test_the_curve_is_where_its_formula_has_it(tmp_path):
    """(3, 4, 0) at the end and a control point; the plane holds all of a quadratic curve."""
    fixed, moving, control = bowls((0.0, 0.0), (3.0, 4.0), (-1.3, 4.9))
    of = subject(Bowl(), [fixed, moving], Bent(fixed, moving, control))
    _, geometry, findings = run(Plane(grid=3), of, tmp_path)
    trace = geometry["curve"]
    t = np.array([place["t"] for place in trace])
    assert t[0] == 0
    assert t[-1] == 1
    assert 0.5 in t
    a, b = 3 * t**2 - 2.6 * t * (1 - t), 4 * t**2 + 9.8 * t * (1 - t)
    assert np.allclose([place["x"] for place in trace], 0.6 * a + 0.8 * b, atol=1e-5)
    assert np.allclose([place["y"] for place in trace], -0.8 * a + 0.6 * b, atol=1e-5)
    assert max(place["distance"] for place in trace) < 1e-5
    (off,) = [f.value for f in findings if f.what == "plane_curve"]
    assert off < 1e-6


def test_what_lies_beside_the_plane_has_its_distance():
    model = nn.Linear(3, 1, bias=False)
    ends = [{"weight": torch.tensor([row])} for row in ([0.0, 0, 0], [2.0, 0, 0], [0.0, 3, 0])]
    span = Span(model, ends, ends, np.eye(3).tolist(), "abc")
    place = span.place({"weight": torch.tensor([[1.0, -2.0, 0.75]])})
    assert (place.x, place.y, place.distance) == pytest.approx((1.0, -2.0, 0.75))


def test_the_axes_are_those_of_gram_and_schmidt(normed):
    """numpy's QR of the two differences: Q the axes, R the coordinates, up to signs."""
    model, states = normed
    span = Span(model, states[:3], states[:3], np.eye(3).tolist(), "abc")
    names = [name for name, _ in model.named_parameters()]
    first, second, third = (np.concatenate([s[n].double().numpy().ravel() for n in names]) for s in states[:3])
    q, r = np.linalg.qr(np.stack([second - first, third - first], 1))
    q, r = q * np.sign(np.diag(r)), r * np.sign(np.diag(r))[:, None]
    assert np.allclose(span.corners, [(0, 0), (r[0, 0], 0), (r[0, 1], r[1, 1])], rtol=1e-6)
    assert np.allclose(q.T @ q, np.eye(2))
    at = span.state(0.7, -1.9)
    flat = np.concatenate([at[n].double().numpy().ravel() for n in names])
    assert np.allclose(flat, first + q @ [0.7, -1.9], atol=1e-5)


def test_the_three_networks_come_back_bit_for_bit(normed):
    model, states = normed
    span = Span(model, states[:3], states, np.eye(4)[:3].tolist(), "abc")
    for corner, state in zip(span.corners, states, strict=False):
        back = span.state(*corner)
        assert back.keys() == state.keys()
        floating = [name for name, tensor in state.items() if tensor.is_floating_point()]
        assert all(torch.equal(back[name], state[name]) for name in floating)
        assert back["2.num_batches_tracked"] == 0  # of the first end
    fixed, moving = states[:2]
    middle = interpolate(fixed, moving, 0.5)
    for name in ("1.weight", "4.weight", "5.weight"):
        middle[name] = states[2][name if name == "1.weight" else "4.weight"]
    span = Span(model, [fixed, moving, middle], [fixed, moving], MIDDLE, "abc")
    for corner, state in zip(span.corners, (fixed, moving, middle), strict=True):
        back = span.state(*corner)
        assert all(torch.equal(back[name], state[name]) for name in state if state[name].is_floating_point())


def test_points_at_the_networks_measure_what_the_networks_measure(normed):
    model, states = normed
    fixed, moving = states[:2]
    control = {"1.weight": 2 * states[2]["1.weight"]}
    of = subject(model, [fixed, moving], Bent(fixed, moving, control), data(classes=5, train=40, test=20))
    direct = [of.splits.measure(model, network) for network in (fixed, moving, of.joined.state(0.5))]
    span = Span(model, [fixed, moving, of.joined.state(0.5)], [fixed, moving], MIDDLE, "abc")
    for corner, found in zip(span.corners, direct, strict=True):
        of_split = of.splits.measure(model, span.state(*corner))
        for split in ("train", "test"):
            assert of_split[split].loss == pytest.approx(found[split].loss, rel=1e-6)
            assert of_split[split].accuracy == found[split].accuracy
    # And on the curve itself: buffers and all, as the path has it.
    for t in (0.2, 0.8):
        on_path = of.joined.state(t)
        place = span.place(on_path)
        back = span.state(place.x, place.y)
        assert all(torch.allclose(back[n].float(), on_path[n].float(), atol=1e-5) for n in on_path if "num" not in n)
        assert span.weights(place.x, place.y) == pytest.approx([1 - t, t], abs=1e-6)


def test_corrections_are_handed_convex_weights_and_variances_stay_positive(normed, tmp_path):
    model, states = normed
    seen: list[Sequence[float]] = []

    def correction(merged: State, weights: Sequence[float]) -> State:
        assert merged["2.running_var"].min() > 0
        seen.append(weights)
        return {**merged, "5.bias": merged["5.bias"] + 1.0}

    of = subject(model, states, None, data(classes=5), correction)
    rows, _, _ = run(Plane(through="networks", grid=5, margin=3.0), of, tmp_path)
    assert len(seen) == 25
    assert all(min(weights) >= 0 and sum(weights) == pytest.approx(1) and weights[3] == 0 for weights in seen)
    assert any(0 < max(weights) < 1 for weights in seen)
    corrected = {**states[0], "5.bias": states[0]["5.bias"] + 1.0}
    assert rows[0]["loss"] > 0
    # What is measured is the corrected network: a bias of all classes changes nothing, another network would.
    direct = measure(model, corrected, of.dataset.batches(of.dataset.train, 10)).loss
    assert direct == pytest.approx(measure(model, states[0], of.dataset.batches(of.dataset.train, 10)).loss, rel=1e-5)


def test_the_corrected_network_is_what_is_measured(tmp_path):
    networks = bowls((0.0, 0.0), (2.0, 0.0), (0.0, 2.0))
    of = subject(Bowl(), networks, correction=lambda merged, weights: {"place": torch.tensor([1.0, -0.5])})
    rows, geometry, findings = run(Plane(through="networks", grid=3), of, tmp_path)
    assert [row["loss"] for row in rows] == pytest.approx([0.01] * 18, rel=1e-4)
    assert geometry["curve"] == []
    assert "plane_curve" not in {f.what for f in findings}


@pytest.mark.parametrize("seed", range(20))
def test_the_nearest_convex_weights_are_nearest(seed):
    """Against scipy's minimiser over the simplex."""
    from scipy.optimize import minimize

    count = 2 + seed % 3
    given = np.random.default_rng(seed).normal(size=count)
    given += (1 - given.sum()) / count
    found = nearest_convex(given.tolist())
    best = minimize(
        lambda w: ((w - given) ** 2).sum(), np.full(count, 1 / count), bounds=[(0, 1)] * count, method="SLSQP",
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-14},
    )  # fmt: skip
    assert found == pytest.approx(best.x.tolist(), abs=1e-6)
    assert nearest_convex([0.25, 0.75]) == [0.25, 0.75]


class Stopped(Exception):
    pass


def stop_after(count: int) -> Callable[[Mapping[str, float]], None]:
    left = iter(range(count - 1))

    def on_step(numbers: Mapping[str, float]) -> None:
        if next(left, None) is None:
            raise Stopped

    return on_step


@pytest.mark.parametrize("damage", ["nothing", "half a line", "half a point", "a wrong line", "another plane"])
def test_a_killed_plane_goes_on_and_ends_as_an_unbroken_one(normed, tmp_path, damage):
    model, states = normed
    plane, dataset = Plane(through="networks", grid=5), data(classes=5)
    measured = []

    def correction(merged: State, weights: Sequence[float]) -> State:
        measured.append(weights)
        return dict(merged)

    of = subject(model, states, None, dataset, correction)
    _, _, findings = run(plane, of, tmp_path / "whole")
    folder = tmp_path / "broken"
    folder.mkdir()
    with pytest.raises(Stopped):
        plane(of, folder, stop_after(9))
    file = folder / "plane.csv"
    content = file.read_bytes()
    assert content.count(b"\n") == 1 + 2 * 9
    lines = content.splitlines(keepends=True)
    again = {
        "nothing": (content, 16),
        "half a line": (content[:-7], 17),
        "half a point": (b"".join(lines[:-1]), 17),
        "a wrong line": (b"".join([*lines[:5], b"\0\0,abc\r\n", *lines[6:]]), 23),
        "another plane": (content.replace(b"train", b"trains"), 25),
    }
    left, remaining = again[damage]
    file.write_bytes(left)
    measured.clear()
    _, _, resumed = run(plane, of, folder)
    assert len(measured) == remaining
    for name in plane.files:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed == findings


def test_a_point_that_overflows_is_kept_raw_and_left_out_of_the_extremes(tmp_path):
    networks = bowls((0.0, 0.0), (2e19, 0.0), (0.0, 2e19))  # their squares overflow float32
    of = subject(Bowl(), networks)
    rows, _, findings = run(Plane(through="networks", grid=3), of, tmp_path)
    assert any(not math.isfinite(row["loss"]) for row in rows)
    assert all(math.isfinite(finding.value) for finding in findings)


def test_a_plane_changes_nothing_that_it_is_given(normed, tmp_path):
    model, states = normed
    before = [of_model(model), *({n: t.clone() for n, t in state.items()} for state in states)]
    run(Plane(through="networks", grid=3), subject(model, states, None, data(classes=5)), tmp_path)
    after = [of_model(model), *states]
    assert all(torch.equal(b[n], a[n]) for b, a in zip(before, after, strict=True) for n in b)


def test_the_grid_goes_beyond_what_is_on_it():
    assert spread([0.0, 4.0, 1.0], 5, 0.5) == [-2.0, 0.0, 2.0, 4.0, 6.0]
    assert spread([0.0, 4.0], 3, 0.0) == [0.0, 2.0, 4.0]


@pytest.mark.parametrize("grid", [1, 20, [21], [21, 4], [3, 3, 3], [1, 3]])
def test_a_grid_without_a_middle_is_refused(grid):
    with pytest.raises(UserError, match=r"analysis\.plane\.grid=.* is no grid with a middle; give one odd number"):
        Plane(grid=grid)


def test_three_networks_on_a_line_are_refused(tmp_path):
    line = bowls((0.0, 0.0), (1.0, 2.0), (2.0, 4.0))
    with pytest.raises(UserError, match="no plane: network 0, network 1 and network 2 lie on one line") as refused:
        Plane(through="networks")(subject(Bowl(), line), tmp_path, lambda numbers: None)
    assert "\n" not in str(refused.value)
    twice = bowls((1.0, 1.0), (1.0, 1.0), (2.0, 4.0))
    with pytest.raises(UserError, match="lie on one line"):
        Plane(through="networks")(subject(Bowl(), twice), tmp_path, lambda numbers: None)
    path = Linear().path(line[0], line[1], None)
    with pytest.raises(UserError, match="the middle of their curve lie on one line"):
        Plane()(subject(Bowl(), line[:2], path), tmp_path, lambda numbers: None)
    assert not (tmp_path / "plane.csv").exists()


def test_what_has_no_plane_is_refused_before_training():
    pair = bowls((0.0, 0.0), (1.0, 2.0))
    with pytest.raises(UserError, match=r"needs three networks, and there are 2; give more seeds"):
        Plane(through="networks").check(subject(Bowl(), pair))
    with pytest.raises(UserError, match=r"needs a curve that bends.*set curve=bezier"):
        Plane().check(subject(Bowl(), pair, curve=Linear()))
    bent: Setting = subject(Bowl(), pair, curve=Bezier(training=SGD(schedule=Constant())))
    Plane().check(bent)
    assert not Plane().together
    assert Plane(through="networks").together
