"""CKA, SVCCA and Procrustes similarity against their definitions on raw activations, and what does not change them."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from torch import Tensor, nn

from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.covariance_similarity import Similarity, canonical_correlations, similarity
from lmc.evaluation.representation_layers import Layer, layers_of
from lmc.evaluation.representation_similarity import layer_passes, layer_similarities
from lmc.seeding import generator, isolated
from lmc.state import of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation

Array = np.ndarray


def normal(*shape: int, label: str) -> Array:
    return torch.randn(shape, generator=generator(0, label), dtype=torch.float64).numpy()


@pytest.fixture(scope="module")
def views() -> tuple[Array, Array]:
    """(400, 7) and (400, 5) samples of two representations that share three sources; not centred."""
    sources = normal(400, 3, label="sources")
    first, second = (
        sources @ normal(3, units, label=f"mix {units}") + 0.5 * normal(400, units, label=f"noise {units}") + 2
        for units in (7, 5)
    )
    return first, second


def centred(values: Array) -> Array:
    return values - values.mean(0)


def compared(first: Array, second: Array, variance: float = 0.99) -> Similarity:
    """From covariances, as the measures are computed."""
    x, y = (torch.from_numpy(centred(values)) for values in (first, second))
    return similarity(x.T @ x / len(x), y.T @ y / len(y), x.T @ y / len(x), variance=variance)


def cka_of_kernels(first: Array, second: Array) -> float:
    """By centred Gram matrices of the samples: HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))."""
    centring = np.eye(len(first)) - 1 / len(first)
    k, m = (centring @ values @ values.T @ centring for values in (first, second))
    return float((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def svcca_of_samples(first: Array, second: Array, variance: float) -> Array:
    """Correlations of scikit-learn's canonical variates of its principal components."""
    reduced = []
    for values in (first, second):
        held = PCA().fit(values).explained_variance_ratio_.cumsum()
        reduced.append(PCA(int((held < variance - 1e-12).sum()) + 1).fit_transform(values))
    count = min(found.shape[1] for found in reduced)
    variates = CCA(count, max_iter=10_000, tol=1e-12).fit(*reduced).transform(*reduced)
    return np.array([np.corrcoef(*pair)[0, 1] for pair in zip(variates[0].T, variates[1].T, strict=True)])


def procrustes_of_samples(first: Array, second: Array) -> float:
    """1 - d/2 with the smallest squared distance over rotations, found by scipy; missing units are zeros."""
    x, y = (centred(values) / np.linalg.norm(centred(values)) for values in (first, second))
    y = np.pad(y, ((0, 0), (0, x.shape[1] - y.shape[1])))
    rotation, _ = orthogonal_procrustes(x, y)
    return 1 - float(np.linalg.norm(x @ rotation - y) ** 2) / 2


@pytest.mark.parametrize("variance", [0.6, 0.99, 1.0])
def test_the_measures_are_those_of_raw_samples(views: tuple[Array, Array], variance: float) -> None:
    found = compared(*views, variance)
    assert found.cka == pytest.approx(cka_of_kernels(*views))
    assert found.procrustes == pytest.approx(procrustes_of_samples(*views))
    expected = svcca_of_samples(*views, variance)
    assert min(found.components) == len(expected)
    assert found.svcca == pytest.approx(expected.mean(), abs=1e-6)
    assert found.svcca_squared == pytest.approx((expected**2).mean(), abs=1e-6)


def orthogonal(size: int) -> Array:
    return np.linalg.qr(normal(size, size, label="rotation"))[0]


def test_rotations_and_scales_leave_every_measure(views: tuple[Array, Array]) -> None:
    first, second = views
    plain, moved = compared(first, second), compared(3 * first @ orthogonal(7) - 4, 0.2 * second @ orthogonal(5))
    for measure in ("cka", "svcca", "svcca_squared", "procrustes"):
        assert getattr(moved, measure) == pytest.approx(getattr(plain, measure), abs=1e-9)
    own = compared(first, 3 * first @ orthogonal(7) - 4)
    assert (own.cka, own.svcca, own.procrustes) == pytest.approx((1, 1, 1))


def test_invertible_maps_leave_canonical_correlations_alone(views: tuple[Array, Array]) -> None:
    first, second = views
    mapped = first @ (np.eye(7) + 0.4 * normal(7, 7, label="map"))
    plain, moved = compared(first, second, 1.0), compared(mapped, second, 1.0)
    assert moved.svcca == pytest.approx(plain.svcca, abs=1e-9)
    assert abs(moved.cka - plain.cka) > 1e-3
    assert abs(moved.procrustes - plain.procrustes) > 1e-3


def test_constant_and_dependent_units_count_for_nothing(views: tuple[Array, Array]) -> None:
    first, second = views
    more = np.concatenate([first, np.full((400, 2), 3.0), first[:, :1] + first[:, 1:2]], axis=1)
    found, plain = compared(more, second, 1.0), compared(first, second, 1.0)
    assert found.components == plain.components == (7, 5)
    assert found.svcca == pytest.approx(plain.svcca)
    nothing = compared(np.ones((400, 3)), second)
    assert nothing == Similarity(cka=0, svcca=0, svcca_squared=0, procrustes=0, components=(0, nothing.components[1]))


def test_no_more_components_are_kept_than_are_needed() -> None:
    covariance = torch.diag(torch.tensor([1.0, 6.0, 3.0], dtype=torch.float64))
    for variance, kept in ((0.5, 1), (0.6, 1), (0.61, 2), (0.9, 2), (0.95, 3), (1.0, 3)):
        assert canonical_correlations(covariance, covariance, covariance, variance)[1] == (kept, kept)


class Small(nn.Module):
    """Two convolutions and a linear layer: 16, 16 and 1 positions; the second follows the first."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with isolated(seed, "small"):
            self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
            self.third, self.last = nn.Linear(3 * 16, 6), nn.Linear(6, 2)

    def layers(self, x: Tensor) -> list[Tensor]:
        first = torch.relu(self.first(x))
        second = torch.relu(self.second(first))
        return [first, second, torch.relu(self.third(second.flatten(1)))]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x)[-1])


def raw(network: nn.Module, inputs: Tensor, spatial: str) -> list[Array]:
    """(samples, units) of every layer of `Small`, in float64."""
    with torch.no_grad():
        values = [layer.double() for layer in network.layers(inputs)]
    if spatial == "mean":
        return [value.flatten(2).mean(2).numpy() if value.ndim > 2 else value.numpy() for value in values]
    return [value.movedim(1, -1).flatten(0, -2).numpy() for value in values]


@pytest.fixture
def nets() -> tuple[nn.Module, nn.Module]:
    return Small(1), Small(2)


def found_of(nets: tuple[nn.Module, nn.Module], dataset: Dataset, **settings: object):
    symmetry = discover(nets[0], dataset.normalise(dataset.train.images[:2]))
    states = (of_model(nets[0]), of_model(nets[1]))
    return layer_similarities(nets[0], symmetry, states, dataset, **settings)


@pytest.mark.parametrize("spatial", ["positions", "mean"])
def test_layers_of_networks_are_compared_as_their_raw_activations_are(
    nets: tuple[nn.Module, nn.Module], dataset: Dataset, spatial: str
) -> None:
    seen: list[dict[str, float]] = []
    found = found_of(
        nets, dataset, examples=90, batch_size=40, spatial=spatial, on_batch=lambda step: seen.append(dict(step))
    )
    inputs = dataset.normalise(dataset.train.images[:90])
    means = [raw(net, inputs, "mean") for net in nets]
    ours, theirs = [raw(net, inputs, spatial) for net in nets]
    for row in range(3):
        for column in range(3):
            alike = len(ours[row]) == len(theirs[column])
            pair = (ours[row], theirs[column]) if alike else (means[0][row], means[1][column])
            assert found.cka[row, column].item() == pytest.approx(cka_of_kernels(*pair), abs=1e-5)
            assert found.by_position[row, column] == (spatial == "positions" and alike)
        equal, expected = found.equal[row], compared(ours[row], theirs[row])
        assert (equal.svcca, equal.procrustes) == pytest.approx((expected.svcca, expected.procrustes), abs=1e-4)
        assert found.samples[row] == len(ours[row])
    assert [(layer.units, layer.positions) for layer in found.layers] == [(4, 16), (3, 16), (6, 1)]
    assert [step["images"] for step in seen] == [40, 80, 90]
    assert found.found == np.mean(found.cka.numpy().argmax(1) == np.arange(3))


def test_passes_and_batches_change_nothing(nets: tuple[nn.Module, nn.Module], dataset: Dataset) -> None:
    seen: list[dict[str, float]] = []
    plain = found_of(nets, dataset)
    often = found_of(nets, dataset, batch_size=31, memory=1e-9, on_batch=lambda step: seen.append(dict(step)))
    torch.testing.assert_close(often.cka, plain.cka, atol=1e-6, rtol=0)
    for one, other in zip(often.equal, plain.equal, strict=True):
        assert (one.cka, one.svcca, one.procrustes) == pytest.approx(
            (other.cka, other.svcca, other.procrustes), abs=1e-6
        )
    assert {step["pass"] for step in seen} == {1, 2, 3}


def test_permuted_units_of_either_network_change_nothing(nets: tuple[nn.Module, nn.Module], dataset: Dataset) -> None:
    symmetry = discover(nets[0], dataset.normalise(dataset.train.images[:2]))
    states = [of_model(net) for net in nets]
    permutation = Permutation.random(symmetry, generator(0, "permutation"))
    plain = layer_similarities(nets[0], symmetry, (states[0], states[1]), dataset)
    for networks in ((permutation.apply(states[0]), states[1]), (states[0], permutation.apply(states[1]))):
        moved = layer_similarities(nets[0], symmetry, networks, dataset)
        torch.testing.assert_close(moved.cka, plain.cka, atol=1e-6, rtol=0)
        for one, other in zip(moved.equal, plain.equal, strict=True):
            assert (one.svcca, one.procrustes) == pytest.approx((other.svcca, other.procrustes), abs=1e-5)
    own = layer_similarities(nets[0], symmetry, (states[0], permutation.apply(states[0])), dataset)
    for equal in own.equal:
        assert (equal.cka, equal.svcca, equal.procrustes) == pytest.approx((1, 1, 1), abs=1e-6)
    assert own.found == 1


class Tokens(nn.Module):
    """The same hidden units at four tokens, which come before the images; then seen twice, side by side."""

    def __init__(self, seed: int, *, tokens_first: bool) -> None:
        super().__init__()
        self.tokens_first = tokens_first
        with isolated(seed, "tokens"):
            self.enter, self.leave = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1).unflatten(1, (4, 4))  # images, tokens, 4
        tokens = tokens.transpose(0, 1) if self.tokens_first else tokens
        return self.leave(torch.relu(self.enter(tokens))).mean(0 if self.tokens_first else 1)


def test_the_mean_over_positions_is_that_of_an_image_wherever_the_images_are(dataset: Dataset) -> None:
    found = {}
    for first in (True, False):
        nets = Tokens(1, tokens_first=first), Tokens(2, tokens_first=first)
        (layer,) = layers_of(nets[0], discover(nets[0], torch.zeros(2, 1, 4, 4)), of_model(nets[0]), dataset)
        assert (layer.positions, layer.repeated) == (4, 4 if first else 1)
        found[first] = found_of(nets, dataset, spatial="mean", batch_size=50).equal[0]
    assert found[True].cka == pytest.approx(found[False].cka, abs=1e-6)
    assert found[True].svcca == pytest.approx(found[False].svcca, abs=1e-5)


class Dense(nn.Module):
    """A layer that sees the units of two groups side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.leave = nn.Linear(16, 3), nn.Linear(16, 4), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.leave(torch.relu(torch.cat([self.one(x), self.two(x)], 1)))


def test_all_groups_of_a_value_are_one_layer(dataset: Dataset) -> None:
    with isolated(0, "dense"):
        net = Dense()
    (layer,) = layers_of(net, discover(net, torch.zeros(2, 1, 4, 4)), of_model(net), dataset)
    assert (layer.units, layer.name) == (7, "two")
    assert set(layer.groups) == {"one", "two"}


def layer(units: int, positions: int = 1) -> Layer:
    return Layer(name="", place="", groups=(), units=units, positions=positions, repeated=1)


def test_layers_are_split_into_passes_by_the_memory_that_they_need() -> None:
    layers = [layer(1000), layer(1000), layer(1000, 4)]
    assert layer_passes(layers, "mean", 4.0) == [[0, 1, 2]]
    mean = 8 * 1000 * (3000 + 4000) / 2**30
    assert layer_passes(layers, "mean", 2.01 * mean) == [[0, 1], [2]]
    assert layer_passes(layers, "positions", 2.01 * mean) == [[0], [1], [2]]
    assert layer_passes(layers, "mean", 1e-9) == [[0], [1], [2]]


def test_a_network_without_observable_units_is_refused_and_so_are_activations_that_are_not_finite(
    dataset: Dataset, nets: tuple[nn.Module, nn.Module]
) -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(UserError, match="nothing to correlate"):
        layers_of(linear, discover(linear, torch.zeros(2, 1, 4, 4)), of_model(linear), dataset)
    with torch.no_grad():
        nets[1].first.bias.fill_(torch.inf)
    with pytest.raises(UserError, match="not finite") as caught:
        found_of(nets, dataset)
    assert "\n" not in str(caught.value)
