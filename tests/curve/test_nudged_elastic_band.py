"""The band on landscapes whose paths of minimum energy are known, and its parts against numpy and by hand."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc.curve.band import BandTrainable, inserted, missing, nudged, redistributed, tangents
from lmc.curve.bending import Bending
from lmc.curve.nudged_elastic_band import NudgedElasticBand
from lmc.curve.points import BENDS_FILE
from lmc.curve.trained import TrainedCurve
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, load
from lmc.training.loop import HISTORY_FILE
from lmc.training.recipe import Training

Ends = tuple[State, State]
Settings = Callable[..., Training]
STIFF, HEIGHT = 20.0, 0.5


class Stop(Exception):
    """Ends a run from within."""


def _ignore(record: Mapping[str, float]) -> None:
    """For runs whose records are not looked at."""


def _arc(x: Tensor) -> Tensor:
    """A valley along the unit circle, minima at 30 and 150 degrees, between them a saddle of HEIGHT at 90.

    The gradient on the circle is along it, so that the arc is the path of minimum energy, exactly.
    """
    around = (torch.atan2(x[1], x[0]) - math.pi / 2) / (math.pi / 3)
    return 0.5 + STIFF / 2 * (x.norm() - 1) ** 2 + HEIGHT * (1 - around**2) ** 2


def _mueller_brown(x: Tensor) -> Tensor:
    """The potential of Mueller and Brown (1979), in hundredths and shifted: minima -1.467 and -1.082, saddle -0.407."""
    height = x.new_tensor([-2.0, -1.0, -1.7, 0.15])
    a, b, c = (x.new_tensor(row) for row in ([-1, -1, -6.5, 0.7], [0, 0, 11, 0.6], [-10, -10, -6.5, 0.7]))
    u, v = x[0] - x.new_tensor([1, 0, -0.5, -1]), x[1] - x.new_tensor([0, 0.5, 1.5, 1])
    return 2 + (height * (a * u**2 + b * u * v + c * v**2).exp()).sum()


def _point(*coordinates: float) -> State:
    return {"point": torch.tensor(coordinates)}


def test_the_band_comes_to_rest_on_the_path_of_minimum_energy(
    landscape: type, blank: Callable[[int], Dataset], settings: Settings, tmp_path: Path
) -> None:
    model = landscape(_arc, 2)
    ends = [_point(sign * math.cos(math.pi / 6), 0.5) for sign in (1, -1)]
    training = settings(epochs=3, batch_size=2, learning_rate=0.02, momentum=0.0, weight_decay=0.0)
    band = NudgedElasticBand(
        training=training, insertions=(5, 4), lengths=(1, 2), rates=(1, 1), threshold=0.0, insert_examples=2
    )
    band.fit(model, *ends, blank(120), seed=0, folder=tmp_path, on_epoch=_ignore)
    path = band.path(*ends, tmp_path)
    pivots = len(load(tmp_path / BENDS_FILE))
    assert 5 < pivots <= 9
    found = torch.stack([path.state(i / (pivots + 1))["point"] for i in range(pivots + 2)]).double()
    # Each pivot has its share of the length, the segments of the longest chord are as long as these say.
    chords = found.diff(dim=0).norm(dim=1)
    angle = 2 * math.asin(float(chords.max()) / 2)
    # An upwinding tangent is off by half the angle of a segment, which lifts a pivot off the valley by f' tan / k.
    steepest = HEIGHT * 8 / (3 * math.sqrt(3)) / (math.pi / 3)
    assert float((found.norm(dim=1) - 1).abs().max()) < 1.1 * steepest * math.tan(angle / 2) / STIFF
    # The saddle lies on the band but for the sagging of the segments beside it.
    heights = [float(_arc(path.state(t)["point"])) - 0.5 for t in np.linspace(0, 1, 201)]
    sag = 1 - math.cos(angle / 2)
    assert HEIGHT - 1e-3 < max(heights) < HEIGHT + STIFF / 2 * sag**2 + 1e-3
    straight = _arc(torch.tensor([0.0, 0.5])) - 0.5
    assert max(heights) < 0.2 * float(straight)


def test_the_band_finds_the_saddle_of_mueller_and_brown(
    landscape: type, blank: Callable[[int], Dataset], settings: Settings, tmp_path: Path
) -> None:
    model = landscape(_mueller_brown, 2)
    ends = _point(-0.558224, 1.441726), _point(0.623499, 0.028038)
    training = settings(epochs=4, batch_size=2, learning_rate=0.01, momentum=0.5, weight_decay=0.0)
    band = NudgedElasticBand(
        training=training,
        insertions=(7, 3, 3),
        lengths=(2, 1, 1),
        rates=(1, 1, 0.5),
        threshold=0.01,
        insert_examples=2,
    )
    band.fit(model, *ends, blank(160), seed=0, folder=tmp_path, on_epoch=_ignore)
    path = band.path(*ends, tmp_path)
    way = [path.state(t)["point"] for t in np.linspace(0, 1, 401)]
    energies = np.array([float(_mueller_brown(point)) - 2 for point in way])
    top = way[int(energies.argmax())]
    spacing = float(torch.stack(way[:: 400 // 10]).diff(dim=0).norm(dim=1).max())
    # Published: the higher saddle (-0.8220, 0.6243) at -40.66, the minimum on the way at -80.77.
    assert float((top - torch.tensor([-0.8220, 0.6243])).norm()) < spacing / 2
    assert energies.max() == pytest.approx(-0.4066, abs=0.03)
    line = [
        float(_mueller_brown(torch.lerp(ends[0]["point"], ends[1]["point"], t))) - 2 for t in np.linspace(0, 1, 101)
    ]
    assert max(line) > energies.max() + 0.05


def test_springs_space_the_pivots(
    landscape: type, blank: Callable[[int], Dataset], settings: Settings, tmp_path: Path
) -> None:
    model = landscape(_arc, 2)
    ends = [_point(sign * math.cos(math.pi / 6), 0.5) for sign in (1, -1)]
    training = settings(epochs=2, batch_size=2, learning_rate=0.02, momentum=0.0, weight_decay=0.0)
    band = NudgedElasticBand(training=training, insertions=(5,), lengths=(1,), rates=(1,), spring=10.0)
    band.fit(model, *ends, blank(120), seed=0, folder=tmp_path, on_epoch=_ignore)
    points = load(tmp_path / BENDS_FILE)
    found = torch.stack([ends[0]["point"], *(points[f"bend{i}.point"] for i in range(1, 6)), ends[1]["point"]])
    lengths = found.diff(dim=0).norm(dim=1)
    assert float(lengths.max() / lengths.min()) < 1.05
    assert float((found.norm(dim=1) - 1).abs().max()) < 0.1


def test_a_killed_fit_ends_with_the_same_bits(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    def run(name: str, stop: int | None = None, seed: int = 0) -> bytes:
        def on_epoch(record: Mapping[str, float]) -> None:
            seen.append(record)
            if record["epoch"] == stop:
                raise Stop

        seen: list[Mapping[str, float]] = []
        cycles = {"insertions": (1, 1, 2), "lengths": (2, 1, 1), "rates": (1, 0.5, 0.1)}
        band = NudgedElasticBand(training=settings(epochs=4), **cycles, samples=1, threshold=0.0, insert_examples=16)
        band.fit(convnet, *ends, dataset, seed=seed, folder=tmp_path / name, on_epoch=on_epoch)
        files = sorted(path.name for path in (tmp_path / name).iterdir())
        assert files == [BENDS_FILE, HISTORY_FILE]
        assert [json.loads(line) for line in (tmp_path / name / HISTORY_FILE).read_text().splitlines()] == seen
        assert [(record["epoch"], record["stage"]) for record in seen] == [(1, 1), (2, 1), (3, 2), (4, 3)]
        assert seen[2]["learning_rate"] == 0.5 * seen[0]["learning_rate"]
        return (tmp_path / name / BENDS_FILE).read_bytes()

    whole = run("whole")
    assert whole != run("other", seed=1)
    for stop in (1, 2, 3, 4):
        with pytest.raises(Stop):
            run("broken", stop=stop)
    assert whole == run("broken")


def test_the_ends_are_met_bit_for_bit(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    band = NudgedElasticBand(training=settings(epochs=0), insertions=(2,), lengths=(1,), rates=(1,))
    assert isinstance(band, TrainedCurve)
    band.fit(convnet, *ends, dataset, seed=0, folder=tmp_path, on_epoch=_ignore)
    path = band.path(*ends, tmp_path)
    for t in (0, 1):
        state = path.state(t)
        assert all(state[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in ends[t].items())
    torch.testing.assert_close(path.state(0.5)["4.weight"], torch.lerp(ends[0]["4.weight"], ends[1]["4.weight"], 0.5))


def test_a_step_projects_the_gradient_of_plain_autograd(convnet: nn.Module, ends: Ends, dataset: Dataset) -> None:
    bending = Bending(convnet, *ends, channels_last=True)
    first, last = (bending.flatten(end) for end in ends)
    middle = (first + last) / 2 + 0.1 * torch.randn(first.shape, generator=generator(0, "off"))
    band = BandTrainable(bending, torch.stack([first, middle, last]), torch.tensor([0.5, 0.5]), spring=1.0, decay=0.3)
    images, labels = dataset.normalise(dataset.train.images[:16]), dataset.train.labels[:16]

    def network(state: State, images: Tensor) -> Tensor:
        return torch.func.functional_call(convnet, state, images)

    band.descend(network, images, labels, generator(0, "none"))
    (leaf,) = band.parameters()
    point = middle.clone().requires_grad_()
    loss = cross_entropy(network(bending.network(point, 0.5), images), labels) + 0.15 * point.square().sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None
    assert point.grad is not None
    off = (leaf.grad[0] - point.grad).numpy().astype(float)
    along = np.stack([(middle - first).numpy(), (last - middle).numpy()]).astype(float)
    # What was taken away lies in the plane of the two segments, and is not nothing.
    rest = off - along.T @ np.linalg.lstsq(along.T, off, rcond=None)[0]
    assert np.linalg.norm(rest) < 1e-4 * np.linalg.norm(off)
    assert np.linalg.norm(off) > 0


def test_tangents_point_to_the_higher_neighbour() -> None:
    controls = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0]])
    up, down = tangents(controls, torch.tensor([0.0, 1.0, 2.0])), tangents(controls, torch.tensor([2.0, 1.0, 0.0]))
    assert up.tolist() == [[0.0, 1.0]]
    assert down.tolist() == [[1.0, 0.0]]
    # A maximum, 3 above the one and 1 above the other, higher side weighted with the larger difference.
    found = tangents(controls, torch.tensor([0.0, 3.0, 2.0]))[0]
    expected = torch.tensor([1.0 * 1, 3.0 * 2])
    torch.testing.assert_close(found, expected / expected.norm())
    flat = tangents(controls, torch.zeros(3))
    assert float(flat.norm()) == pytest.approx(1)


def test_forces_are_across_the_tangent_and_springs_along_it() -> None:
    controls, energies = torch.tensor([[0.0, 0.0], [1.0, 0.0], [4.0, 0.0]]), torch.tensor([0.0, 1.0, 2.0])
    gradient, shares = torch.tensor([[5.0, 7.0]]), torch.tensor([0.5, 0.5])
    assert nudged(gradient, controls, energies, shares, None).tolist() == [[0.0, 7.0]]
    # The segment after is 1 too long, that before 1 too short: the spring pulls forward by 2 k, downhill is -2 k.
    torch.testing.assert_close(nudged(gradient, controls, energies, shares, 3.0), torch.tensor([[-6.0, 7.0]]))
    at_rest = nudged(gradient, controls, energies, torch.tensor([0.25, 0.75]), 3.0)
    torch.testing.assert_close(at_rest, torch.tensor([[0.0, 7.0]]))


def test_pivots_are_put_where_numpy_interpolates() -> None:
    rng = generator(0, "chain")
    controls, shares = torch.randn(7, 3, generator=rng), torch.rand(6, generator=rng) + 0.1
    shares /= shares.sum()
    lengths = np.linalg.norm(np.diff(controls.numpy().astype(float), axis=0), axis=1)
    ends = np.concatenate([[0], lengths.cumsum()])
    places = shares.numpy().astype(float).cumsum()[:-1] * ends[-1]
    expected = np.stack([np.interp(places, ends, column) for column in controls.numpy().T], axis=1)
    np.testing.assert_allclose(redistributed(controls, shares).numpy(), expected, rtol=1e-4, atol=1e-5)
    same = torch.ones(4, 2)
    assert torch.equal(redistributed(same, torch.full((3,), 1 / 3)), same[1:-1])  # a band without length


def test_pivots_are_missing_where_the_energy_is_highest_above_the_line() -> None:
    energies = np.array([[0, 1, 1, 2], [2, 2.5, 5.0, 2], [2, 1, 0, 0], [0, 0.9, 0.3, 0]], dtype=float)
    # The excesses are 1/3, 3, below 0, 0.9; the pivots range over 2.
    assert missing(energies, 3, 0.0) == [
        (0, pytest.approx(1 / 3)),
        (1, pytest.approx(2 / 3)),
        (3, pytest.approx(1 / 3)),
    ]
    assert missing(energies, 2, 0.0) == [(1, pytest.approx(2 / 3)), (3, pytest.approx(1 / 3))]
    assert missing(energies, 3, 0.5) == [(1, pytest.approx(2 / 3))]
    assert missing(energies, 0, 0.0) == []
    controls, shares = inserted(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0.25, 0.75]), [(1, 0.25)])
    assert controls.tolist() == [[0.0], [1.0], [1.5], [3.0]]
    assert shares.tolist() == [0.25, 0.1875, 0.5625]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"insertions": (3, 2)}, "give each cycle one of each"),
        ({"insertions": (), "lengths": (), "rates": ()}, "needs at least 1"),
        ({"insertions": (0,), "lengths": (1,), "rates": (1,)}, "needs at least 1"),
    ],
)
def test_bands_that_cannot_be_are_refused(settings: Settings, wrong: dict[str, tuple[float, ...]], says: str) -> None:
    with pytest.raises(UserError, match=says):
        NudgedElasticBand(training=settings(), **wrong)
    with pytest.raises(UserError, match="warmup_epochs"):
        NudgedElasticBand(training=settings(epochs=14, warmup_epochs=2.0))
