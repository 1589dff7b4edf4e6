"""Layers of networks, mixtures of two networks by hand, and the barriers that come of them."""

import csv
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lmc.analysis.layer_barrier import LayerBarrier
from lmc.architecture.mlp import MLP
from lmc.architecture.resnet import ResNet
from lmc.curve.linear import Linear
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.layer_barrier import (
    Layer,
    displaced,
    layer_sets,
    layers_of,
    partly_merged,
    random_directions,
    shares,
)
from lmc.evaluation.path import PathEvaluation
from lmc.seeding import generator, isolated
from lmc.state import State, interpolate, of_model
from tests.analysis.subjects import plain, subject

Seeded = Callable[..., nn.Module]


class Tangled(nn.Module):
    """Parameters of its own, a module used twice, a tied weight, norms with and without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(4))
        self.enter = nn.Linear(16, 4)
        self.still = nn.BatchNorm1d(4, affine=False)
        self.inner = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.again = self.inner
        self.head = nn.Linear(4, 4)
        self.head.weight = self.inner.weight
        self.leave = nn.Linear(4, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.still(self.enter(x.flatten(1))) + self.token
        return self.leave(self.head(torch.relu(self.again(torch.relu(self.norm(self.inner(x)))))))


def tangled(seed: int) -> nn.Module:
    with isolated(seed, "tangled"):
        net = Tangled()
        net.still.running_mean.uniform_()
        net.norm.running_var.uniform_(0.5, 2)
    return net


def test_layers_of_a_network_with_tied_tensors_by_hand():
    found = {layer.name: set(layer.tensors) for layer in layers_of(tangled(0))}
    still = {f"still.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    norm = {f"norm.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")}
    inner = {"inner.weight", "inner.bias", "again.weight", "again.bias", "head.weight"}
    assert found == {
        "(network)": {"token"},
        "enter": {"enter.weight", "enter.bias", *still},
        "inner": {*inner, *norm},
        "head": {"head.bias"},
        "leave": {"leave.weight"},
    }
    alone = {layer.name: set(layer.tensors) for layer in layers_of(tangled(0), with_norm=False)}
    assert list(alone) == ["(network)", "enter", "inner", "norm", "head", "leave"]
    assert alone["norm"] == norm
    assert alone["inner"] == inner


@pytest.mark.parametrize("with_norm", [True, False])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_every_tensor_has_one_layer(norm: str, with_norm: bool):
    for model in (
        ResNet(input_shape=(3, 8, 8), classes=3, norm=norm),
        MLP(input_shape=(1, 4, 4), classes=3, width=5, depth=2, norm=norm),
        tangled(0),
    ):
        names = [name for layer in layers_of(model, with_norm=with_norm) for name in layer.tensors]
        assert sorted(names) == sorted(model.state_dict())


def test_a_norm_belongs_to_the_convolution_before_it():
    model = ResNet(input_shape=(3, 8, 8), classes=3, norm="batch")
    state = model.state_dict()
    for layer in layers_of(model)[:-1]:
        sizes = {name: state[name] for name in layer.tensors}
        (weight,) = (tensor for tensor in sizes.values() if tensor.ndim == 4)
        (mean,) = (tensor for name, tensor in sizes.items() if name.endswith("running_mean"))
        assert len(mean) == len(weight)


@pytest.mark.parametrize("t", [0.0, 0.3, 0.5, 1.0])
def test_all_layers_are_the_line_and_none_is_an_end(t: float):
    fixed, moving = of_model(tangled(1)), of_model(tangled(2))
    fixed["norm.num_batches_tracked"] += 7
    everything = [name for layer in layers_of(tangled(0)) for name in layer.tensors]
    line = Linear().path(fixed, moving, None).state(t)
    for rest, end in (("fixed", fixed), ("moving", moving)):
        whole = partly_merged(fixed, moving, everything, t, rest)
        nothing = partly_merged(fixed, moving, [], t, rest)
        assert list(whole) == list(fixed)
        assert all(torch.equal(whole[name], line[name]) for name in line)
        assert all(torch.equal(nothing[name], end[name]) for name in end)
        assert all(nothing[name].data_ptr() != end[name].data_ptr() for name in end)


def test_one_layer_is_merged_with_all_its_names():
    fixed, moving = of_model(tangled(1)), of_model(tangled(2))
    chosen = layers_of(tangled(0))[2]
    found = partly_merged(fixed, moving, chosen.tensors, 0.25, "moving")
    for name, tensor in found.items():
        if name in chosen.tensors and tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * fixed[name] + 0.25 * moving[name])
        elif name not in chosen.tensors:
            assert torch.equal(tensor, moving[name])
    assert not torch.equal(found["inner.weight"], moving["inner.weight"])
    assert torch.equal(found["inner.weight"], found["head.weight"])
    assert torch.equal(found["inner.weight"], found["again.weight"])


def test_a_random_direction_has_the_norm_of_the_difference_and_leaves_buffers():
    model, fixed, moving = tangled(0), of_model(tangled(1)), of_model(tangled(2))
    everything = list(fixed)
    found = random_directions(model, fixed, moving, everything, 3, 1)
    assert set(found) == {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, direction in found.items():
        assert direction.norm().item() == pytest.approx((moving[name] - fixed[name]).norm().item(), rel=1e-5)
    assert torch.equal(found["inner.weight"], found["head.weight"])
    again = random_directions(model, fixed, moving, ["leave.weight"], 3, 1)
    assert set(again) == {"leave.weight"}
    assert torch.equal(again["leave.weight"], found["leave.weight"])
    for seed, number in ((3, 2), (4, 1)):
        other = random_directions(model, fixed, moving, everything, seed, number)
        cosine = nn.functional.cosine_similarity(other["enter.weight"].flatten(), found["enter.weight"].flatten(), 0)
        assert abs(cosine.item()) < 0.6
    moved = displaced(moving, {"leave.weight": found["leave.weight"]}, 0.75)
    torch.testing.assert_close(moved["leave.weight"], moving["leave.weight"] + 0.75 * found["leave.weight"])
    assert all(torch.equal(moved[name], moving[name]) for name in moving if name != "leave.weight")


def test_two_equal_networks_have_directions_of_no_length():
    model, fixed = tangled(0), of_model(tangled(1))
    found = random_directions(model, fixed, dict(fixed), list(fixed), 0, 1)
    assert all(direction.eq(0).all() for direction in found.values())


def test_the_weights_of_the_ends_are_their_shares_of_the_parameters():
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))  # 25 and 12 parameters
    first, second = layers_of(model)
    assert shares(model, [*first.tensors, *second.tensors], 0.25, "fixed") == (0.75, 0.25)
    assert shares(model, [*first.tensors, *second.tensors], 0.25, "moving") == (0.75, 0.25)
    assert shares(model, [], 0.25, "fixed") == (1, 0)
    assert shares(model, [], 0.25, "moving") == (0, 1)
    assert shares(model, second.tensors, 0.25, "fixed") == pytest.approx((1 - 0.25 * 12 / 37, 0.25 * 12 / 37))
    assert shares(model, second.tensors, 0.25, "moving") == pytest.approx((0.75 * 12 / 37, 1 - 0.75 * 12 / 37))


def test_sets_of_layers():
    layers = [Layer(name=name, tensors=()) for name in "abcd"]
    sets = {mode: list(layer_sets(mode, layers, 2)) for mode in ("single", "bottom", "top", "window")}
    assert sets["single"] == [("a", (0,)), ("b", (1,)), ("c", (2,)), ("d", (3,))]
    assert sets["bottom"] == [("a", (0,)), ("b", (0, 1)), ("c", (0, 1, 2)), ("d", (0, 1, 2, 3))]
    assert sets["top"] == [("d", (3,)), ("c", (2, 3)), ("b", (1, 2, 3)), ("a", (0, 1, 2, 3))]
    assert sets["window"] == [("a..b", (0, 1)), ("b..c", (1, 2)), ("c..d", (2, 3))]
    assert list(layer_sets("window", layers, 4)) == [("a..d", (0, 1, 2, 3))]


def scaled(seed: int, seeded: Seeded) -> State:
    """Larger weights, so that there is a barrier."""
    return {name: 3 * tensor if name.endswith("weight") else tensor for name, tensor in of_model(seeded(seed)).items()}


def read(folder: Path) -> list[Mapping[str, str]]:
    with (folder / "layers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_barrier_is_that_of_numpy(dataset: Dataset, seeded: Seeded, tmp_path: Path):
    """The two-layer network written out; each of its layers merged alone, both ends for the rest, at three t."""
    fixed, moving = scaled(1, seeded), scaled(2, seeded)
    option = LayerBarrier(modes=["single", "bottom"], grid=5, random_directions=1)
    of = subject(seeded(0), [fixed, moving], Linear().path(fixed, moving, None), dataset)
    steps: list[Mapping[str, float]] = []
    findings = option(of, tmp_path, steps.append)
    assert len(steps) == option.steps(of) == 2 + 3 + 2 * (2 * 2 * 2 * 3)
    for split in ("train", "test"):
        ends = [_measured(state, dataset, split) for state in (fixed, moving)]
        both = np.mean(ends, axis=0)
        found = {
            (f.metric, *(f.more.get(key) for key in ("mode", "layer", "rest", "direction"))): f.value
            for f in findings
            if f.split == split and f.what == "layer_barrier"
        }
        expected = []
        for layer, (rest, end) in itertools.product(("1", "4"), (("fixed", fixed), ("moving", moving))):
            along = []
            for t in (0.25, 0.5, 0.75):
                own = {name: (1 - t) * fixed[name] + t * moving[name] for name in (f"{layer}.weight", f"{layer}.bias")}
                along.append(np.subtract(_measured({**end, **own}, dataset, split), both))
            loss, error = np.max(along, axis=0)
            assert found["loss", "single", layer, rest, "moving"] == pytest.approx(loss, abs=1e-5)
            assert found["error", "single", layer, rest, "moving"] == pytest.approx(error, abs=1e-12)
            assert found["loss", "single", layer, rest, "random"] != pytest.approx(loss, abs=1e-3)
            expected.append(loss)
        whole = {f.what: f.value for f in findings if f.split == split and not f.more and f.metric == "loss"}
        assert whole["largest_layer_barrier"] == pytest.approx(max(expected), abs=1e-5)
        assert whole["mean_layer_barrier"] == pytest.approx(np.mean(expected), abs=1e-5)
        random = [value for key, value in found.items() if key[:2] == ("loss", "single") and key[-1] == "random"]
        assert whole["mean_random_barrier"] == pytest.approx(np.mean(random))
        assert found["loss", "bottom", "1", "fixed", "moving"] == found["loss", "single", "1", "fixed", "moving"]


@pytest.mark.parametrize("norm", [False, True])
def test_all_layers_together_have_the_barrier_of_the_path(dataset: Dataset, seeded: Seeded, norm: bool, tmp_path: Path):
    fixed, moving = (of_model(seeded(seed, norm=norm)) for seed in (1, 2))
    asked = []

    def correction(state: State, weights: tuple[float, float]) -> State:
        asked.append(tuple(weights))
        return {**state, "1.bias": state["1.bias"] + weights[1]}

    path = Linear().path(fixed, moving, None)
    option = LayerBarrier(modes=["bottom", "top"], random_directions=0)
    findings = option(subject(seeded(0, norm=norm), [fixed, moving], path, dataset, correction), tmp_path, print)
    of_ends_and_middle = asked[:3]
    raw = PathEvaluation(grid=3).measure(seeded(0, norm=norm), path, correction, dataset)
    assert of_ends_and_middle == [(1, 0), (0, 1), (0.5, 0.5)]
    for split in ("train", "test"):
        losses = {point.t: point.loss for point in raw if point.split == split}
        errors = {point.t: 1 - point.accuracy for point in raw if point.split == split}
        for metric, values in (("loss", losses), ("error", errors)):
            barrier = values[0.5] - (values[0] + values[1]) / 2
            mine = [f for f in findings if (f.split, f.metric) == (split, metric)]
            (whole,) = [f.value for f in mine if f.what == "all_layers_barrier"]
            assert whole == pytest.approx(barrier, abs=1e-12)
            sets = {("bottom", "5" if norm else "4"), ("top", "1")}
            last = [f.value for f in mine if (f.more.get("mode"), f.more.get("layer")) in sets]
            assert last == [pytest.approx(barrier, abs=1e-12)] * 4


def test_the_control_is_as_far_from_the_end_as_the_merged_layer(dataset: Dataset, seeded: Seeded, tmp_path: Path):
    fixed, moving = of_model(seeded(1)), of_model(seeded(2))
    seen: list[State] = []

    def correction(state: State, weights: tuple[float, float]) -> State:
        seen.append(dict(state))
        return dict(state)

    of = subject(seeded(0), [fixed, moving], Linear().path(fixed, moving, None), dataset, correction)
    LayerBarrier(modes=["single"], grid=5, random_directions=2)(of, tmp_path, lambda numbers: None)
    rows = [row for row in read(tmp_path) if row["split"] == "train"]
    assert len(seen) == len(rows)
    ends = {"fixed": fixed, "moving": moving}
    randoms = 0
    for row, network in zip(rows, seen, strict=True):
        if row["mode"] == "single" and row["direction"] != "moving":
            end, t = ends[row["rest"]], float(row["t"])
            away = t if row["rest"] == "fixed" else 1 - t
            for name in fixed:
                mine = (network[name] - end[name]).norm().item()
                apart = away * (moving[name] - fixed[name]).norm().item() if name[0] == row["layer"] else 0
                assert mine == pytest.approx(apart, rel=1e-4)
            randoms += 1
    assert randoms == 2 * 2 * 2 * 3


class Stopped(Exception):
    pass


@pytest.mark.parametrize("damage", ["nothing", "half a line", "half a step", "another network"])
def test_a_killed_attempt_goes_on_and_ends_as_an_unbroken_one(
    dataset: Dataset, seeded: Seeded, tmp_path: Path, damage: str
):
    fixed, moving = of_model(seeded(1)), of_model(seeded(2))
    measured = []

    def correction(state: State, weights: tuple[float, float]) -> State:
        measured.append(weights)
        return dict(state)

    of = subject(seeded(0), [fixed, moving], Linear().path(fixed, moving, None), dataset, correction)
    option = LayerBarrier(modes=["single", "top"])
    findings = option(of, tmp_path, lambda numbers: None)
    whole = (tmp_path / "layers.csv").read_bytes()
    different = len(measured)
    assert different < option.steps(of)  # what is the same is measured once
    left = iter(range(7))

    def stop(numbers: object) -> None:
        if next(left, None) is None:
            raise Stopped

    (tmp_path / "layers.csv").unlink()
    with pytest.raises(Stopped):
        option(of, tmp_path, stop)
    content = (tmp_path / "layers.csv").read_bytes()
    assert whole.startswith(content)
    assert content.count(b"\n") == 1 + 2 * 8
    lines = content.splitlines(keepends=True)
    again = {
        "nothing": (content, 8),
        "half a line": (content[:-3], 7),
        "half a step": (b"".join(lines[:-1]), 7),
        "another network": (b"".join([*lines[:5], lines[5].replace(b"all", b"any"), *lines[6:]]), 2),
    }
    text, kept = again[damage]
    (tmp_path / "layers.csv").write_bytes(text)
    measured.clear()
    steps: list[Mapping[str, float]] = []
    assert option(of, tmp_path, steps.append) == findings
    assert len(measured) == different - kept
    assert len(steps) == option.steps(of)
    assert (tmp_path / "layers.csv").read_bytes() == whole
    assert {path.name for path in tmp_path.iterdir()} == {"layers.csv"}


def test_bad_settings_are_refused(dataset: Dataset, seeded: Seeded):
    with pytest.raises(UserError, match="a grid of 4 points"):
        LayerBarrier(grid=4)
    for modes in ([], ["single", "single"]):
        with pytest.raises(UserError, match=r"analysis\.layer_barrier\.modes=.* must name every mode once"):
            LayerBarrier(modes=modes)
    state = of_model(seeded(0))
    of = subject(seeded(0), [state, state], None, dataset, plain)
    with pytest.raises(UserError, match=r"window=3, but the network has 2 layers; give at most 2"):
        LayerBarrier(modes=["window"]).check(of)
    LayerBarrier(modes=["window"], window=2).check(of)
    LayerBarrier(modes=["single"]).check(of)


def test_the_direction_depends_on_the_seed_alone(dataset: Dataset, seeded: Seeded, tmp_path: Path):
    fixed, moving = of_model(seeded(1)), of_model(seeded(2))
    path = Linear().path(fixed, moving, None)
    found = []
    for number, seed in enumerate((0, 0, 1)):
        (tmp_path / str(number)).mkdir()
        of = subject(seeded(0), [fixed, moving], path, dataset, seed=seed)
        found.append(LayerBarrier(modes=["single"])(of, tmp_path / str(number), lambda numbers: None))
        torch.rand(1, generator=generator(0, "elsewhere"))
    assert found[0] == found[1]
    differ = {f.more.get("direction") for f, g in zip(found[0], found[2], strict=True) if f.more and f != g}
    assert differ == {"random"}


def _measured(state: State, dataset: Dataset, split: str) -> tuple[float, float]:
    """Mean loss and error of the two-layer network, in float64 without torch."""
    images = getattr(dataset, split)
    inputs, labels = dataset.normalise(images.images).flatten(1).double().numpy(), images.labels.numpy()
    weights = {name: tensor.double().numpy() for name, tensor in state.items()}
    hidden = np.maximum(inputs @ weights["1.weight"].T + weights["1.bias"], 0)
    logits = hidden @ weights["4.weight"].T + weights["4.bias"]
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
    return losses.mean(), (logits.argmax(1) != labels).mean()


def test_the_line_is_what_interpolate_gives():
    fixed, moving = of_model(tangled(1)), of_model(tangled(2))
    everything = list(fixed)
    found, line = partly_merged(fixed, moving, everything, 0.5, "moving"), interpolate(fixed, moving, 0.5)
    assert all(torch.equal(found[name], line[name]) for name in line)
