"""Features and layers against numpy, on networks for which the answer is known."""

import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lmc.analysis.feature_connectivity import FeatureConnectivity
from lmc.curve.linear import Linear
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.feature_connectivity import ConnectedFeatures, feature_connectivity
from lmc.evaluation.layer_features import Observer
from lmc.seeding import generator, isolated
from lmc.state import State, interpolate, of_model
from tests.analysis.subjects import data, plain, subject

Seeded = Callable[..., nn.Module]


def found(
    model: nn.Module,
    ends: Sequence[State],
    dataset: Dataset,
    points: Sequence[float] = (0.5,),
    correction: Any = plain,
    **settings: Any,
) -> ConnectedFeatures:
    path = Linear().path(ends[0], ends[1], None)
    return feature_connectivity(model, path, correction, dataset, points, **settings)


def arrays(state: State) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy() for name, tensor in state.items()}


def forward(state: State, inputs: np.ndarray) -> list[np.ndarray]:
    """Pre-activations, activations and logits of the two-layer network, without torch."""
    weights = arrays(state)
    pre = inputs @ weights["1.weight"].T + weights["1.bias"]
    post = np.maximum(pre, 0)
    return [pre, post, post @ weights["4.weight"].T + weights["4.bias"]]


def cosine(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


def dist(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.sum((one - other) ** 2) / np.linalg.norm(one) / np.linalg.norm(other))


@pytest.mark.parametrize("t", [0.5, 0.2])
def test_a_two_layer_network_has_the_numbers_of_numpy(dataset: Dataset, seeded: Seeded, t: float):
    ends = [of_model(seeded(seed)) for seed in (1, 2)]
    steps: list[dict[str, float]] = []
    result = found(seeded(0), ends, dataset, (t,), batch_size=50, on_point=lambda step: steps.append(dict(step)))
    inputs = dataset.normalise(dataset.train.images).flatten(1).double().numpy()
    values = [forward(state, inputs) for state in (*ends, interpolate(*ends, t))]
    places = result.angles[t]
    assert [(p.place.layer, p.place.kind) for p in places] == [("1", "pre"), ("1", "post"), ("4", "pre")]
    for place, fixed, moving, between in zip(places, *values, strict=True):
        mixed = (1 - t) * fixed + t * moving
        assert place.examples == len(inputs) == result.examples
        assert place.cosine == pytest.approx(cosine(between, mixed).mean(), abs=1e-6)
        coefficient = (between * mixed).sum(1) / (mixed**2).sum(1)
        assert place.coefficient == pytest.approx(coefficient.mean(), rel=1e-4)
        assert place.ends == pytest.approx(cosine(fixed, moving).mean(), abs=1e-6)
        assert place.fixed == pytest.approx(cosine(between, fixed).mean(), abs=1e-6)
        assert place.moving == pytest.approx(cosine(between, moving).mean(), abs=1e-6)
    assert places[0].cosine == pytest.approx(1, abs=1e-6)  # linear in the weights: the images are the same
    assert places[1].cosine < 0.99
    assert [step["t"] for step in steps] == [t]
    first, second = result.layers
    assert (first.layer, second.layer) == ("1", "4")
    assert first.commutativity == pytest.approx(0, abs=1e-9)
    (a, b), (h, k) = [arrays(state)["4.weight"] for state in ends], [values[end][1] for end in (0, 1)]
    own, crossed = h @ a.T + k @ b.T, k @ a.T + h @ b.T
    assert second.commutativity == pytest.approx(dist(own, crossed), rel=1e-5)
    assert second.cosine == pytest.approx(cosine(own.ravel(), crossed.ravel()), abs=1e-6)
    assert np.linalg.norm(own - crossed) == pytest.approx(np.linalg.norm((h - k) @ (a - b).T))
    assert second.weights == pytest.approx(dist(a, b), rel=1e-5)
    assert second.features == pytest.approx(dist(h, k), rel=1e-5)
    assert second.outputs == pytest.approx(dist(h @ a.T, k @ b.T), rel=1e-5)


def test_equal_networks_are_connected_and_commute(dataset: Dataset, seeded: Seeded):
    own = of_model(seeded(1, norm=True))
    result = found(seeded(0, norm=True), [own, own], dataset, (0.25, 0.5))
    for angles in result.angles.values():
        for place in angles:
            values = (place.cosine, place.coefficient, place.ends, place.fixed, place.moving)
            assert values == pytest.approx((1, 1, 1, 1, 1), abs=1e-6)
    for layer in result.layers:
        assert (layer.commutativity, layer.weights, layer.features, layer.outputs) == (0, 0, 0, 0)


class Chain(nn.Module):
    """Two linear layers and nothing between."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with isolated(seed, "chain"):
            self.one, self.two = nn.Linear(16, 4, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x.flatten(1)))


def test_a_linear_network_connects_exactly_where_it_commutes(dataset: Dataset):
    """f_1/2 - (f_0 + f_1) / 2 = -(W_0 - W_1)(H_0 - H_1) / 4: zero if the rows of the one are normal to the other."""
    ends = [of_model(Chain(seed)) for seed in (1, 2)]
    apart = found(Chain(0), ends, dataset)
    assert apart.layers[1].commutativity > 0.1
    assert apart.angles[0.5][1].cosine < 0.99
    # The second layers differ along the last unit alone, the first layers not at all there.
    together = [dict(state) for state in ends]
    together[1]["two.weight"] = ends[0]["two.weight"].clone()
    together[1]["two.weight"][:, 3] += 2.0
    together[1]["one.weight"] = ends[1]["one.weight"].clone()
    together[1]["one.weight"][3] = ends[0]["one.weight"][3]
    result = found(Chain(0), together, dataset)
    assert result.layers[1].commutativity == pytest.approx(0, abs=1e-10)
    assert min(result.layers[1].weights, result.layers[1].features) > 0.1
    assert result.angles[0.5][1].cosine == pytest.approx(1, abs=1e-6)
    assert result.angles[0.5][1].coefficient == pytest.approx(1, abs=1e-5)


def test_networks_that_switch_alike_and_commute_are_connected(dataset: Dataset, seeded: Seeded):
    """Theorem 1 of Zhou et al.: units that are always on, and second layers that are the same."""
    ends = [of_model(seeded(seed)) for seed in (1, 2)]
    for state in ends:
        state["1.bias"] = torch.full((12,), 100.0)
        state["4.weight"] = ends[0]["4.weight"]
    result = found(seeded(0), ends, dataset)
    assert [place.cosine for place in result.angles[0.5]] == pytest.approx([1, 1, 1], abs=1e-6)
    assert result.layers[1].commutativity == pytest.approx(0, abs=1e-10)


def test_scaled_features_keep_their_cosine_and_show_in_the_coefficient(dataset: Dataset, seeded: Seeded):
    own = of_model(seeded(1))

    def correction(state: State, weights: Sequence[float]) -> State:
        inner = 0 < weights[1] < 1
        return {**state, "4.weight": (1 + inner) * state["4.weight"], "4.bias": (1 + inner) * state["4.bias"]}

    *_, last = found(seeded(0), [own, own], dataset, correction=correction).angles[0.5]
    assert (last.cosine, last.coefficient) == pytest.approx((1, 2), abs=1e-5)


def test_examples_without_features_do_not_count(dataset: Dataset, seeded: Seeded):
    ends = [of_model(seeded(seed)) for seed in (1, 2)]
    ends[1] = {**ends[1], "1.bias": torch.full((12,), -1000.0)}
    _, post, last = found(seeded(0), ends, dataset).angles[0.5]
    assert post.examples == 0
    assert math.isnan(post.cosine)
    assert last.examples == 120
    fewer = found(seeded(0), ends, dataset, examples=30)
    assert fewer.examples == 30


def test_batches_change_nothing(dataset: Dataset, seeded: Seeded):
    ends = [of_model(seeded(seed, norm=True)) for seed in (1, 2)]
    one, other = (found(seeded(0, norm=True), ends, dataset, batch_size=size) for size in (120, 7))
    for ours, theirs in zip(one.angles[0.5], other.angles[0.5], strict=True):
        assert (ours.cosine, ours.coefficient) == pytest.approx((theirs.cosine, theirs.coefficient), rel=1e-5)
    for mine, yours in zip(one.layers, other.layers, strict=True):
        assert mine.commutativity == pytest.approx(yours.commutativity, rel=1e-5, abs=1e-10)


class Odd(nn.Module):
    """Examples last, examples inside positions, a tied matrix, a standardised one, and a product in place."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with isolated(seed, "odd"):
            self.one = nn.Conv2d(1, 6, 2, stride=2)
            self.two, self.mixed = nn.Linear(6, 6), nn.Parameter(torch.randn(6, 6))
            self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu_(self.one(x)).flatten(2).permute(2, 0, 1)  # (positions, examples, 6)
        x = self.two(x.reshape(-1, 6))  # examples inside positions
        x = functional.gelu(x @ (self.mixed - self.mixed.mean(0)))
        x = functional.linear(x, self.two.weight).reshape(4, -1, 6)
        return torch.addmm(self.out.bias, x.mean(0), self.out.weight.T)


def test_examples_are_found_wherever_they_lie_and_matrices_whatever_is_done_to_them(dataset: Dataset):
    ends = [of_model(Odd(seed)) for seed in (1, 2)]
    result = found(Odd(0), ends, dataset, batch_size=50)
    places = [(p.place.layer, p.place.kind, p.place.dim, p.place.outer) for p in result.angles[0.5]]
    assert places == [
        *(("one", "pre", 0, 1), ("one", "post", 0, 1), ("two", "pre", 0, 4), ("mixed", "pre", 0, 4)),
        *(("mixed", "post", 0, 4), ("two#2", "pre", 0, 4), ("out", "pre", 0, 1)),
    ]
    inputs = dataset.normalise(dataset.train.images)
    # By hand: the values of one example at a time.
    for end, state in enumerate(ends):
        net = Odd(0)
        net.load_state_dict(state)
        with torch.no_grad():
            ends[end] = {**state, "features": torch.relu(net.one(inputs)).flatten(2).transpose(1, 2)}
    h, k = (state["features"].double().numpy() for state in ends)
    a, b = (state["two.weight"].double().numpy() for state in ends)
    by_name = {layer.layer: layer for layer in result.layers}
    assert by_name["two"].commutativity == pytest.approx(dist(h @ a.T + k @ b.T, k @ a.T + h @ b.T), rel=1e-4)
    middle = interpolate(*[{n: t for n, t in s.items() if n != "features"} for s in ends], 0.5)
    net = Odd(0)
    net.load_state_dict(middle)
    with torch.no_grad():
        m = torch.relu(net.one(inputs)).flatten(2).transpose(1, 2).double().numpy()
    two = result.angles[0.5][2]
    mixed = (h @ a.T + ends[0]["two.bias"].numpy() + k @ b.T + ends[1]["two.bias"].numpy()) / 2
    between = m @ middle["two.weight"].double().numpy().T + middle["two.bias"].numpy()
    expected = cosine(between.reshape(120, -1), mixed.reshape(120, -1)).mean()
    assert two.cosine == pytest.approx(expected, abs=1e-6)
    weights = [m - m.mean(0) for m in (state["mixed"].double().numpy() for state in ends)]
    assert by_name["mixed"].weights == pytest.approx(dist(*weights), rel=1e-5)
    assert by_name["out"].weights == pytest.approx(dist(*(s["out.weight"].double().numpy() for s in ends)), rel=1e-5)


class Mixing(nn.Module):
    """What one example has depends on the others."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.one(x.flatten(1)).cumsum(0))


class Nothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * self.scale


@pytest.mark.parametrize(
    ("model", "count", "message"),
    [
        (Mixing(), 5, "cannot be told apart"),
        (Nothing(), 5, "no layer with a learned matrix"),
        (Chain(0), 2, "at least 3"),
    ],
)
def test_what_has_no_features_is_refused(model: nn.Module, count: int, message: str):
    images = torch.randn(count, 1, 4, 4, generator=generator(0, "images"))
    with pytest.raises(UserError, match=message) as caught:
        Observer(model, of_model(model), images)
    assert "\n" not in str(caught.value)


def test_the_option_writes_every_place_and_layer(seeded: Seeded, tmp_path: FilePath):
    ends = [of_model(seeded(seed)) for seed in (1, 2)]
    of = subject(seeded(0), ends, Linear().path(*ends, None), data((1, 4, 4), 3, train=20))
    option = FeatureConnectivity(grid=5, images=15)
    option.check(of)
    steps: list[Any] = []
    findings = option(of, tmp_path, steps.append)
    assert len(steps) == option.steps(of) == 3
    with (tmp_path / "features.csv").open() as file:
        features = list(csv.DictReader(file))
    assert [float(row["t"]) for row in features] == [t for t in (0.25, 0.5, 0.75) for _ in range(3)]
    assert {row["examples"] for row in features} == {"15"}
    with (tmp_path / "commutativity.csv").open() as file:
        layers = list(csv.DictReader(file))
    whole = {(f.what, f.metric): f.value for f in findings if not f.more}
    middle = [float(row["cosine"]) for row in features if row["t"] == "0.5"]
    assert whole["features", "cosine"] == pytest.approx(np.mean(middle))
    assert whole["layers", "commutativity"] == pytest.approx(float(layers[1]["commutativity"]))  # not the first layer
    assert all(math.isfinite(f.value) for f in findings)
    with pytest.raises(UserError, match="grid of 4"):
        FeatureConnectivity(grid=4)
