"""Fitting a curve from end to end."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lmc.curve.base import Path as Path_
from lmc.curve.bezier import Bezier
from lmc.curve.fitted import BENDS_FILE, Fitted
from lmc.curve.linear import Linear
from lmc.curve.polygonal_chain import PolygonalChain
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, load, of_model
from lmc.training.loop import HISTORY_FILE, fit
from lmc.training.network import NetworkTrainable
from lmc.training.recipe import Training

Ends = tuple[State, State]
Settings = Callable[..., Training]
KINDS = [Bezier, PolygonalChain]


class Stop(Exception):
    """Ends a run from within."""


def _ignore(record: Mapping[str, float]) -> None:
    """For runs whose records are not looked at."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bends", [1, 3])
def test_a_fit_leaves_bends_and_history_and_nothing_else(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path, kind: type[Fitted], bends: int
) -> None:
    seen: list[Mapping[str, float]] = []
    before = {name: tensor.clone() for name, tensor in ends[0].items()}
    own = of_model(convnet)
    curve = kind(training=settings(), bends=bends)
    curve.fit(convnet, *ends, dataset, seed=0, folder=tmp_path, on_epoch=seen.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == [BENDS_FILE, HISTORY_FILE]
    assert [json.loads(line) for line in (tmp_path / HISTORY_FILE).read_text().splitlines()] == seen
    assert len(seen) == 3
    assert "validation_loss" not in seen[0]
    with safe_open(str(tmp_path / BENDS_FILE), framework="pt") as file:
        names = set(file.keys())
    trained = [name for name, p in convnet.named_parameters() if p.requires_grad]
    assert names == {f"bend{i}.{name}" for i in range(1, bends + 1) for name in trained}
    assert all(torch.equal(tensor, before[name]) for name, tensor in ends[0].items())
    assert all(torch.equal(tensor, own[name]) for name, tensor in convnet.state_dict().items())
    curve.path(*ends, tmp_path).state(0.5)


def test_without_epochs_the_path_is_the_line(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    for kind in KINDS:
        curve = kind(training=settings(epochs=0), bends=2)
        curve.fit(convnet, *ends, dataset, seed=0, folder=tmp_path, on_epoch=_ignore)
        path, line = curve.path(*ends, tmp_path), Linear().path(*ends, None)
        for t in (0.0, 0.3, 0.5, 1.0):
            for name, tensor in line.state(t).items():
                torch.testing.assert_close(path.state(t)[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decay_on_sample", [False, True])
def test_a_fit_is_reproducible_and_continues_bit_for_bit(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path, decay_on_sample: bool
) -> None:
    def run(name: str, seed: int = 0, stop: int | None = None, **changed: object) -> bytes:
        def on_epoch(record: Mapping[str, float]) -> None:
            if record["epoch"] == stop:
                raise Stop

        curve = Bezier(training=settings(precision="auto", **changed), bends=2, decay_on_sample=decay_on_sample)
        curve.fit(convnet, *ends, dataset, seed=seed, folder=tmp_path / name, on_epoch=on_epoch)
        return (tmp_path / name / BENDS_FILE).read_bytes()

    whole = run("whole")
    assert whole == run("again")
    assert whole != run("other", seed=1)
    assert whole != run("decay", weight_decay=0.5)
    for stop in (1, 2):
        with pytest.raises(Stop):
            run("broken", stop=stop)
    assert whole == run("broken")


def test_where_decay_is_applied_matters(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    found = []
    for on_sample in (False, True):
        curve = Bezier(training=settings(weight_decay=0.1), decay_on_sample=on_sample)
        curve.fit(convnet, *ends, dataset, seed=0, folder=tmp_path / str(on_sample), on_epoch=_ignore)
        found.append(load(tmp_path / str(on_sample) / BENDS_FILE)["bend1.4.weight"])
    assert not torch.allclose(*found, rtol=1e-3)


def test_a_fitted_curve_has_less_loss_than_the_line(dataset: Dataset, settings: Settings, tmp_path: Path) -> None:
    # A network and its copy with the hidden units in the opposite order: as good, but with a barrier between them.
    mlp = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 3))
    rng = generator(0, "start")
    start = {name: 0.4 * torch.randn(t.shape, generator=rng) for name, t in mlp.state_dict().items()}
    training = settings(epochs=30, weight_decay=0.0, checkpoint_every=30)
    trainable = NetworkTrainable(mlp, start)
    fit(mlp, trainable, dataset, training, seed=0, folder=tmp_path / "end", on_epoch=_ignore)
    fixed = trainable.final_state()
    moving = {name: tensor.flip(0) if name.startswith("1.") else tensor for name, tensor in fixed.items()}
    moving["3.weight"] = fixed["3.weight"].flip(1)
    images = dataset.normalise(dataset.train.images)

    def worst(path: Path_) -> float:
        states = [path.state(t) for t in torch.linspace(0, 1, 11).tolist()]
        return max(float(cross_entropy(functional_call(mlp, s, images), dataset.train.labels)) for s in states)

    ends, line = worst(Linear().path(fixed, fixed, None)), worst(Linear().path(fixed, moving, None))
    assert line > 10 * ends
    for kind in KINDS:
        curve = kind(training=training, bends=1)
        curve.fit(mlp, fixed, moving, dataset, seed=0, folder=tmp_path / kind.__name__, on_epoch=_ignore)
        assert worst(curve.path(fixed, moving, tmp_path / kind.__name__)) < line / 4


def test_networks_of_another_architecture_are_refused(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    other = {name: tensor for name, tensor in ends[1].items() if not name.startswith("4.")}
    with pytest.raises(UserError, match="the moving network has no tensor"):
        Bezier(training=settings()).fit(convnet, ends[0], other, dataset, seed=0, folder=tmp_path, on_epoch=_ignore)
