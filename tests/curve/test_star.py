"""The hub of a star: in closed form for a quadratic loss, and its gradient against plain autograd."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc.curve.base import JointCurve
from lmc.curve.points import BENDS_FILE
from lmc.curve.star import Star, StarTrainable
from lmc.curve.trained import TrainedCurve
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, load
from lmc.training.adam import Adam
from lmc.training.loop import HISTORY_FILE
from lmc.training.recipe import Training
from lmc.training.schedule.cosine import Cosine

Ends = tuple[State, State]
Settings = Callable[..., Training]


class Stop(Exception):
    """Ends a run from within."""


def _ignore(record: Mapping[str, float]) -> None:
    """For runs whose records are not looked at."""


def test_the_hub_of_a_quadratic_loss_has_a_closed_form(
    landscape: type, blank: Callable[[int], Dataset], tmp_path: Path
) -> None:
    centre, curvature = torch.tensor([0.3, -0.2]), torch.tensor([[2.0, 0.5], [0.5, 1.0]])

    def bowl(x: Tensor) -> Tensor:
        return 0.5 + 0.5 * (x - centre) @ curvature @ (x - centre)

    places = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.6, 1.0]])
    networks = [{"point": place} for place in places]
    training = Adam(schedule=Cosine(), epochs=5, batch_size=2, learning_rate=0.05, precision="float32")
    star = Star(training=training)
    star.fit_jointly(landscape(bowl, 2), networks, blank(800), seed=0, folder=tmp_path, on_epoch=_ignore)
    hub = load(tmp_path / BENDS_FILE)["bend1.point"]
    # E_t (1 - t) ((1 - t) h + t m - c) = h / 3 + m / 6 - c / 2 = 0, m the mean of the networks.
    expected = 1.5 * centre - 0.5 * places.mean(0)
    assert float((hub - expected).norm()) < 0.05
    assert float((places.mean(0) - expected).norm()) > 0.5  # where it started


@pytest.mark.parametrize("decay", [None, 0.3])
def test_the_gradient_is_that_of_plain_autograd(
    convnet: nn.Module, ends: Ends, dataset: Dataset, decay: float | None
) -> None:
    third = {name: t + 1 if t.is_floating_point() else t for name, t in ends[0].items()}
    networks = [*ends, third]
    star = StarTrainable(convnet, networks, decay=decay, channels_last=False)
    images, labels = dataset.normalise(dataset.train.images[:16]), dataset.train.labels[:16]
    t, trained = 0.3, [name for name, p in convnet.named_parameters() if p.requires_grad]
    sampled = star.at(2, t)
    cross_entropy(torch.func.functional_call(convnet, sampled, images), labels).backward()  # type: ignore[no-untyped-call]
    (leaf,) = star.parameters()
    hub = {name: torch.stack([n[name] for n in networks]).mean(0).requires_grad_() for name in trained}
    state = {name: (1 - t) * hub[name] + t * third[name] for name in trained}
    rest = {name: tensor for name, tensor in sampled.items() if name not in trained}
    loss = cross_entropy(torch.func.functional_call(convnet, {**rest, **state}, images), labels)
    penalty = 0.5 * (decay or 0.0) * sum(tensor.square().sum() for tensor in state.values())
    (loss + penalty).backward()
    assert leaf.grad is not None
    expected = torch.cat([hub[name].grad.flatten() for name in trained])  # type: ignore[union-attr]
    torch.testing.assert_close(leaf.grad[0], expected, rtol=1e-4, atol=1e-6)


def test_networks_and_places_are_drawn_uniformly(landscape: type) -> None:
    networks = [{"point": torch.tensor([math.cos(a), math.sin(a)])} for a in (0.1, 2.2, 4.3)]
    star = StarTrainable(landscape(torch.sum, 2), networks, decay=None, channels_last=False)
    middle = torch.stack([network["point"] for network in networks]).mean(0)
    rays = torch.stack([network["point"] for network in networks]) - middle
    rng = generator(0, "draw")
    drawn = torch.stack([star.state(rng)["point"].detach() for _ in range(900)]) - middle
    number = (torch.nn.functional.normalize(drawn, dim=1) @ torch.nn.functional.normalize(rays, dim=1).T).argmax(1)
    counts = torch.bincount(number, minlength=3)
    assert float(((counts - 300) ** 2 / 300).sum()) < 13.8  # chi-squared with 2 degrees of freedom at 0.1 %
    t = (drawn.norm(dim=1) / rays.norm(dim=1)[number]).sort().values
    assert float((t - (torch.arange(900) + 0.5) / 900).abs().max()) < 1.95 / math.sqrt(900)


def test_a_fit_continues_bit_for_bit_and_paths_lead_over_the_hub(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    networks = [*ends, {name: t + 1 if t.is_floating_point() else t for name, t in ends[0].items()}]

    def run(name: str, stop: int | None = None) -> bytes:
        def on_epoch(record: Mapping[str, float]) -> None:
            if record["epoch"] == stop:
                raise Stop

        star = Star(training=settings(epochs=2))
        star.fit_jointly(convnet, networks, dataset, seed=0, folder=tmp_path / name, on_epoch=on_epoch)
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == [BENDS_FILE, HISTORY_FILE]
        return (tmp_path / name / BENDS_FILE).read_bytes()

    whole = run("whole")
    with pytest.raises(Stop):
        run("broken", stop=1)
    assert whole == run("broken")
    star = Star(training=settings())
    assert isinstance(star, JointCurve)
    assert not isinstance(star, TrainedCurve)
    hub = load(tmp_path / "whole" / BENDS_FILE)
    for fixed, moving in ((networks[0], networks[1]), (networks[2], networks[1])):
        path = star.path(fixed, moving, tmp_path / "whole")
        for t, end in enumerate((fixed, moving)):
            state = path.state(t)
            assert all(state[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in end.items())
        assert torch.equal(path.state(0.5)["4.weight"], hub["bend1.4.weight"])


def test_a_star_needs_networks_of_one_architecture(
    convnet: nn.Module, ends: Ends, dataset: Dataset, settings: Settings, tmp_path: Path
) -> None:
    short = {name: t for name, t in ends[1].items() if name != "4.bias"}
    for networks, says in (([ends[0]], "at least 2"), ([ends[0], short], r"network 1 of the star has no tensor")):
        with pytest.raises(UserError, match=says):
            Star(training=settings()).fit_jointly(convnet, networks, dataset, seed=0, folder=tmp_path, on_epoch=_ignore)
    assert not list(tmp_path.iterdir())
