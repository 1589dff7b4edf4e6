"""What is trained: the inner points, their gradient against plain autograd, and the sampled networks."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lmc.curve.bends import BendsTrainable
from lmc.curve.bezier import Bezier
from lmc.curve.polygonal_chain import PolygonalChain
from lmc.dataset.images import Dataset
from lmc.seeding import generator
from lmc.state import State, interpolate
from lmc.training.recipe import Training

Ends = tuple[State, State]
Settings = Callable[..., Training]
BENDING = ("0.weight", "1.weight", "1.bias", "4.weight", "4.bias")


@pytest.fixture
def make(convnet: nn.Module, ends: Ends, settings: Settings) -> Callable[..., BendsTrainable]:
    def build(bends: int, decay: float | None = None, *, channels_last: bool = False, chain: bool = False):
        curve = (PolygonalChain if chain else Bezier)(training=settings(), bends=bends)
        return BendsTrainable(
            convnet, *ends, weights=curve.weights, bends=bends, decay=decay, channels_last=channels_last
        )

    return build


def _perturb(trainable: BendsTrainable) -> None:
    """Move the inner points off the line."""
    (leaf,) = trainable.parameters()
    with torch.no_grad():
        leaf.add_(0.1 * torch.randn(leaf.shape, generator=generator(0, "perturb")))


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("bends", [1, 4])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_starts_on_the_straight_line(
    make: Callable[..., BendsTrainable], ends: Ends, bends: int, channels_last: bool, chain: bool
) -> None:
    trainable = make(bends, channels_last=channels_last, chain=chain)
    for t in (0.0, 0.2, 0.5, 0.83, 1.0):
        state, line = trainable.at(t), interpolate(*ends, t)
        assert state.keys() == line.keys()
        for name, tensor in line.items():
            torch.testing.assert_close(state[name].detach(), tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("decay", [None, 0.0, 0.3])
@pytest.mark.parametrize("bends", [1, 3])
def test_the_gradient_is_that_of_plain_autograd(
    make: Callable[..., BendsTrainable],
    convnet: nn.Module,
    ends: Ends,
    dataset: Dataset,
    bends: int,
    decay: float | None,
    channels_last: bool,
) -> None:
    trainable = make(bends, decay, channels_last=channels_last)
    _perturb(trainable)
    points = trainable.points()
    images, labels = dataset.normalise(dataset.train.images[:16]), dataset.train.labels[:16]
    t = 0.3
    cross_entropy(functional_call(convnet, trainable.at(t), images), labels).backward()  # type: ignore[no-untyped-call]
    (leaf,) = trainable.parameters()
    assert leaf.grad is not None
    with torch.no_grad():
        leaf.copy_(leaf.grad)
    found = trainable.points()

    # The same by the book: one leaf a tensor, Bernstein polynomials, the penalty as a term of the loss.
    leaves = [{name: tensor.clone().requires_grad_() for name, tensor in point.items()} for point in points]
    n = bends + 1
    bernstein = [math.comb(n, i) * (1 - t) ** (n - i) * t**i for i in range(n + 1)]
    state: dict[str, Tensor] = interpolate(*ends, t)
    for name in BENDING:
        controls = [ends[0][name], *(point[name] for point in leaves), ends[1][name]]
        state[name] = torch.stack([b * c for b, c in zip(bernstein, controls, strict=True)]).sum(0)
    penalty = 0.5 * (decay or 0.0) * sum((state[name].square().sum() for name in BENDING), torch.zeros(()))
    (cross_entropy(functional_call(convnet, state, images), labels) + penalty).backward()  # type: ignore[no-untyped-call]
    for mine, reference in zip(found, leaves, strict=True):
        assert set(mine) == set(BENDING)
        for name, tensor in mine.items():
            torch.testing.assert_close(tensor, reference[name].grad, rtol=1e-4, atol=1e-6)


def test_a_network_is_drawn_uniformly_and_reproducibly(make: Callable[..., BendsTrainable], ends: Ends) -> None:
    trainable = make(1)
    low, high = ends[0]["scale"], ends[1]["scale"]  # a buffer on the line tells which t was drawn

    def drawn(seed: int) -> Tensor:
        rng = generator(seed, "draw")
        return torch.stack([(trainable.state(rng)["scale"] - low) / (high - low) for _ in range(2000)])

    first = drawn(0)
    assert torch.equal(first, drawn(0))
    assert not torch.equal(first, drawn(1))
    ordered = first.sort().values
    uniform = (torch.arange(2000) + 0.5) / 2000
    assert float((ordered - uniform).abs().max()) < 1.95 / math.sqrt(2000)  # Kolmogorov-Smirnov at 0.1 %


def test_buffers_are_throw_away(make: Callable[..., BendsTrainable], ends: Ends) -> None:
    before = {name: tensor.clone() for name, tensor in ends[0].items()}
    trainable = make(2)
    with torch.no_grad():
        for name, tensor in trainable.at(0.4).items():
            if name not in BENDING:
                tensor.fill_(77)
    assert float(trainable.at(0.4)["1.running_mean"][0]) != 77
    assert all(torch.equal(tensor, before[name]) for name, tensor in ends[0].items())


def test_a_planted_curve_is_recovered(make: Callable[..., BendsTrainable], ends: Ends, settings: Settings) -> None:
    # The target is a cubic with other inner points; the mean squared distance to it is least at those points.
    trainable, target = make(2), make(2)
    _perturb(target)
    optimizer = torch.optim.Adam(trainable.parameters(), lr=0.02)
    rng = generator(0, "planted")
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.02 * (1 - step / 400)
        t = float(torch.rand((), generator=rng))
        mine, theirs = trainable.at(t), target.at(t)
        optimizer.zero_grad()
        torch.stack([(mine[name] - theirs[name].detach()).square().sum() for name in BENDING]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    (found,), (planted,) = trainable.parameters(), target.parameters()
    assert float((found - planted).detach().abs().max()) < 0.01


def test_tied_weights_bend_together(settings: Settings) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    moving = {name: tensor + 1 for name, tensor in state.items()}
    curve = Bezier(training=settings())
    trainable = BendsTrainable(model, state, moving, weights=curve.weights, bends=1, decay=None, channels_last=False)
    _perturb(trainable)
    sampled, (point,) = trainable.at(0.5), trainable.points()
    assert sampled["0.weight"] is sampled["1.weight"]
    assert torch.equal(point["0.weight"], point["1.weight"])
    assert trainable.parameters()[0].shape == (1, 9 + 3 + 3)
