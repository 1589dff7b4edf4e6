"""Simplices: volumes against Cayley and Menger, points drawn uniformly, gradients against plain autograd."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc.config import build
from lmc.curve.bending import Bending
from lmc.curve.complex import VertexTrainable, draw, gram_of, log_volumes, next_vertex
from lmc.curve.points import BENDS_FILE
from lmc.curve.simplex import Simplex
from lmc.curve.trained import TrainedCurve
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, load
from lmc.training.loop import HISTORY_FILE
from lmc.training.recipe import Training

Ends = tuple[State, State]
Settings = Callable[..., Training]


class Stop(Exception):
    """Ends a run from within."""


def _ignore(record: Mapping[str, float]) -> None:
    """For runs whose records are not looked at."""


def _cayley_menger(vertices: np.ndarray) -> float:
    """The volume of a simplex (k + 1, P) from the distances of its vertices."""
    k = len(vertices) - 1
    squares = ((vertices[:, None] - vertices[None]) ** 2).sum(-1)
    bordered = np.pad(squares, ((1, 0), (1, 0)), constant_values=1.0)
    bordered[0, 0] = 0.0
    square = (-1) ** (k + 1) / (2**k * math.factorial(k) ** 2) * np.linalg.det(bordered)
    return math.sqrt(square)


@pytest.mark.parametrize("shared", [1, 2, 3, 5])
def test_volumes_are_those_of_cayley_and_menger(shared: int) -> None:
    points = torch.randn(shared + 2, 9, generator=generator(shared, "points"), dtype=torch.float64)
    found = log_volumes(gram_of([{"a": p[:4].reshape(2, 2), "b": p[4:]} for p in points])).exp()
    corners = points.numpy()
    for end in (0, 1):
        simplex = np.concatenate([corners[end : end + 1], corners[2:]])
        assert float(found[end]) == pytest.approx(_cayley_menger(simplex), rel=1e-9)
    flat = torch.cat([points[:-1], points[:1]])  # the last vertex upon the fixed network
    if shared > 1:
        assert float(log_volumes(gram_of([{"a": p} for p in flat]))[0]) < -15


def test_points_are_drawn_uniformly_from_both_simplices() -> None:
    volumes, rng = torch.tensor([3.0, 1.0], dtype=torch.float64).log(), generator(0, "draw")
    drawn, places = zip(*(draw(volumes, 2, rng) for _ in range(4000)), strict=True)
    weights, t = np.array(drawn), np.array(places)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert (weights >= 0).all()
    second = weights[:, 1] > 0
    assert ((weights[:, 0] > 0) != second).all()
    assert abs(second.mean() - 0.25) < 3.3 * math.sqrt(0.25 * 0.75 / 4000)
    np.testing.assert_allclose(t, np.where(second, 1 + weights[:, 1], 1 - weights[:, 0]) / 2)
    # A barycentric weight of a uniform point of a triangle has the distribution function 1 - (1 - w)^2.
    for own in (np.where(second, weights[:, 1], weights[:, 0]), weights[:, 2], weights[:, 3]):
        ordered = 1 - (1 - np.sort(own)) ** 2
        assert np.abs(ordered - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / math.sqrt(4000)


def test_the_gradient_is_that_of_plain_autograd(convnet: nn.Module, ends: Ends, dataset: Dataset) -> None:
    bending = Bending(convnet, *ends, channels_last=False)
    flat = [bending.flatten(end) for end in ends]
    shared = 0.3 * torch.randn(2, len(flat[0]), generator=generator(0, "vertices"))
    corners = torch.cat([torch.stack(flat), shared])
    trainable = VertexTrainable(bending, corners, samples=3, volume_weight=0.2)
    images, labels = dataset.normalise(dataset.train.images[:16]), dataset.train.labels[:16]

    def network(state: State, images: Tensor) -> Tensor:
        return torch.func.functional_call(convnet, state, images)

    look = trainable.descend(network, images, labels, generator(0, "draw"))
    (leaf,) = trainable.parameters()
    vertex = corners[-1].clone().requires_grad_()
    rows = torch.cat([corners[:-1], vertex[None]])
    sizes = []
    for end in (0, 1):
        edges = torch.stack([rows[2] - rows[end], rows[3] - rows[end]]).double()
        sizes.append(torch.linalg.det(edges @ edges.T).sqrt() / 2)  # triangles
    rng, losses = generator(0, "draw"), []
    for _ in range(3):
        weights, t = draw(torch.stack(sizes).detach().double().log(), 2, rng)
        losses.append(cross_entropy(network(bending.network(torch.tensor(weights) @ rows, t), images), labels))
    objective = torch.stack(losses).mean() - 0.2 * torch.stack(sizes).sum().log()
    objective.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert vertex.grad is not None
    torch.testing.assert_close(leaf.grad[0], vertex.grad, rtol=1e-3, atol=1e-5)
    assert float(look.objective) == pytest.approx(float(objective.detach()), rel=1e-5)
    assert float(look.loss) == pytest.approx(float(torch.stack(losses).detach().mean()), rel=1e-5)


def test_a_vertex_starts_near_the_mean_where_there_is_volume() -> None:
    corners = torch.tensor([[0.0, 0.0, 0.0], [8.0, 0.0, 0.0]])
    for number in (1, 2):
        mean = corners.mean(0)
        corners = next_vertex(corners, generator(number, "vertex"))
        assert float((corners[-1] - mean).norm()) == pytest.approx(0.08, rel=1e-4)
        assert bool(log_volumes(gram_of([{"a": row} for row in corners])).isfinite().all())


def test_the_vertices_settle_where_loss_and_volume_balance(
    landscape: type, blank: Callable[[int], Dataset], settings: Settings, tmp_path: Path
) -> None:
    # One vertex between ends at (-1, 0) and (1, 0), and the bottom at (0, 1).
    def valley(x: Tensor) -> Tensor:
        return 0.5 + 0.5 * x[0] ** 2 + 0.5 * (x[1] - 1) ** 2

    ends = {"point": torch.tensor([-1.0, 0.0])}, {"point": torch.tensor([1.0, 0.0])}
    training = settings(epochs=3, batch_size=2, learning_rate=0.15, momentum=0.0, weight_decay=0.0)
    simplex = Simplex(training=training, vertices=1, samples=5, volume_weight=0.0)
    simplex.fit(landscape(valley, 2), *ends, blank(120), seed=0, folder=tmp_path, on_epoch=_ignore)
    found = load(tmp_path / BENDS_FILE)["bend1.point"]
    # E_t t (t v_y - 1) = v_y / 3 - 1 / 2 = 0 along either segment, and v_x = 0 by symmetry.
    assert float((found - torch.tensor([0.0, 1.5])).norm()) < 0.25
    larger = Simplex(training=training, vertices=1, samples=5, volume_weight=2.0)
    larger.fit(landscape(valley, 2), *ends, blank(120), seed=0, folder=tmp_path, on_epoch=_ignore)
    # The length of both segments is 2 sqrt(1 + y^2): y / 3 - 1 / 2 = 2 y / (1 + y^2), whose largest root is 3.2.
    root = max(np.roots([1 / 3, -1 / 2, 1 / 3 - 2, -1 / 2]).real)
    assert float(load(tmp_path / BENDS_FILE)["bend1.point"][1]) == pytest.approx(root, abs=0.3)


def test_a_fit_continues_bit_for_bit_and_meets_its_ends(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    def simplex(**changed: object) -> Simplex:
        return Simplex(training=settings(epochs=3, batch_size=32), vertices=2, samples=2, **changed)  # type: ignore[arg-type]

    def run(name: str, stop: int | None = None, seed: int = 0) -> bytes:
        def on_epoch(record: Mapping[str, float]) -> None:
            if record["epoch"] == stop:
                raise Stop

        simplex().fit(convnet, *ends, dataset, seed=seed, folder=tmp_path / name, on_epoch=on_epoch)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [BENDS_FILE, HISTORY_FILE]
        return (tmp_path / name / BENDS_FILE).read_bytes()

    whole = run("whole")
    assert whole != run("other", seed=1)
    for stop in (1, 2, 3):
        with pytest.raises(Stop):
            run("broken", stop=stop)
    assert whole == run("broken")
    records = [json.loads(line) for line in (tmp_path / "whole" / HISTORY_FILE).read_text().splitlines()]
    assert [(record["epoch"], record["stage"]) for record in records] == [(1, 1), (2, 1), (3, 2)]

    assert isinstance(simplex(), TrainedCurve)
    path, saved = simplex().path(*ends, tmp_path / "whole"), load(tmp_path / "whole" / BENDS_FILE)
    for t in (0, 1):
        state = path.state(t)
        assert all(state[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in ends[t].items())
    middle = (saved["bend1.4.weight"] + saved["bend2.4.weight"]) / 2
    torch.testing.assert_close(path.state(0.5)["4.weight"], middle)

    networks = simplex().networks(*ends, tmp_path / "whole", count=5, seed=0)
    for state in networks:
        assert state.keys() == ends[0].keys()
        corners = torch.stack([*(end["4.weight"] for end in ends), saved["bend1.4.weight"], saved["bend2.4.weight"]])
        weights, rest, *_ = np.linalg.lstsq(
            corners.flatten(1).double().T.numpy(), state["4.weight"].double().flatten().numpy(), rcond=None
        )
        assert weights.sum() == pytest.approx(1, abs=1e-4)
        assert weights.min() > -1e-4
        assert float(rest.sum()) < 1e-8
    again = simplex().networks(*ends, tmp_path / "whole", count=5, seed=0)
    assert all(torch.equal(a["4.bias"], b["4.bias"]) for a, b in zip(networks, again, strict=True))
    with pytest.raises(UserError, match=r"set curve\.vertices to match"):
        Simplex(training=settings(), vertices=1).path(*ends, tmp_path / "whole")


def test_simplices_that_cannot_be_are_refused(
    landscape: type, blank: Callable[[int], Dataset], settings: Settings, tmp_path: Path
) -> None:
    node = {"_target_": "lmc.curve.simplex.Simplex", "training": {"_target_": "lmc.training.sgd.SGD"}}
    node["training"] |= {"schedule": {"_target_": "lmc.training.schedule.constant.Constant"}}  # type: ignore[operator]
    for wrong in ({"vertices": 0}, {"volume_weight": -1e-6}, {"samples": 0}):
        with pytest.raises(UserError, match=rf"curve\.{next(iter(wrong))}"):
            build({**node, **wrong}, "curve")
    for wrong in ({"vertices": 0}, {"volume_weight": -1e-6}):
        with pytest.raises(UserError, match=rf"curve\.{next(iter(wrong))}"):
            Simplex(training=settings(), **wrong)  # type: ignore[arg-type]
    model, ends = landscape(torch.sum, 2), [{"point": torch.tensor([x, 0.0])} for x in (0.0, 1.0)]
    with pytest.raises(UserError, match="no volume among 2 parameters"):
        Simplex(training=settings(), vertices=3).fit(model, *ends, blank(4), seed=0, folder=tmp_path, on_epoch=_ignore)
    with pytest.raises(UserError, match="are equal"):
        Simplex(training=settings()).fit(
            model, ends[0], dict(ends[0]), blank(4), seed=0, folder=tmp_path, on_epoch=_ignore
        )
    assert not list(tmp_path.iterdir())
