"""Whether the features of a merged network are those of its ends, mixed likewise (Zhou et al. 2023, LLFC).

Layerwise linear feature connectivity: c f_t = (1 - t) f_0 + t f_1 for the features of every layer, with some c > 0. Two
properties together suffice for it with c = 1: ReLU adds up on the features of both ends, and their layers commute,
W_0 H_0 + W_1 H_1 = W_0 H_1 + W_1 H_0, that is (W_0 - W_1)(H_0 - H_1) = 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lmc.curve.base import Path
from lmc.dataset.images import Dataset
from lmc.evaluation.layer_features import PROBED, Crossing, Features, Observer, Place
from lmc.state import State, to_device
from lmc.statistics.base import Correction
from lmc.statistics.moments import wide


@dataclass(frozen=True, kw_only=True)
class PlaceAngles:
    """How far the features f_t at one place are those of both ends, mixed; means over examples.

    Attributes:
        place: where.
        examples: how many count: an example whose features are zero in one of the networks has no direction there.
        cosine: of f_t with m = (1 - t) f_0 + t f_1; nan where no example counts, as all others.
        coefficient: <f_t, m> / <m, m>, the factor that makes m most like f_t: 1 / c.
        ends: cosine of f_0 and f_1, the control: features that are alike anyway are connected for no other reason.
        fixed: cosine of f_t and f_0.
        moving: cosine of f_t and f_1.
    """

    place: Place
    examples: int
    cosine: float
    coefficient: float
    ends: float
    fixed: float
    moving: float


@dataclass(frozen=True, kw_only=True)
class LayerCommutativity:
    """How nearly the layers of two networks commute with their features.

    With dist(x, y) = ||x - y||^2 / (||x|| ||y||) of vectors, over all examples and positions (Zhou et al.):

    Attributes:
        layer: its name.
        commutativity: dist(W_0 H_0 + W_1 H_1, W_0 H_1 + W_1 H_0), without biases, which cancel in the difference.
        cosine: of the same two vectors.
        weights: dist(W_0, W_1), a control.
        features: dist(H_0, H_1), a control.
        outputs: dist(W_0 H_0, W_1 H_1), a control.
    """

    layer: str
    commutativity: float
    cosine: float
    weights: float
    features: float
    outputs: float


@dataclass(frozen=True, kw_only=True)
class ConnectedFeatures:
    """What was found along a path.

    Attributes:
        angles: for each t, in the order of the network.
        layers: of the two ends, in the order of the network.
        examples: how many images were seen.
    """

    angles: Mapping[float, tuple[PlaceAngles, ...]]
    layers: tuple[LayerCommutativity, ...]
    examples: int


@dataclass
class _Products:
    """Inner products of two vectors that come in parts, in float64."""

    first: float = 0.0
    second: float = 0.0
    both: float = 0.0
    square: float = 0.0

    def add(self, one: Tensor, other: Tensor, difference: Tensor | None = None) -> None:
        """Add a part; `difference` where it is known better than by subtraction."""
        one, other = wide(one), wide(other)
        self.first += one.square().sum().item()
        self.second += other.square().sum().item()
        self.both += (one * other).sum().item()
        self.square += (one - other if difference is None else wide(difference)).square().sum().item()

    @property
    def distance(self) -> float:
        """||x - y||^2 / (||x|| ||y||); 0 of two zero vectors, infinite of one."""
        scale = math.sqrt(self.first * self.second)
        return self.square / scale if scale else math.inf if self.square else 0.0

    @property
    def cosine(self) -> float:
        """The cosine; nan of a zero vector."""
        scale = math.sqrt(self.first * self.second)
        return self.both / scale if scale else math.nan


@dataclass
class _Commuting:
    """The parts of `LayerCommutativity` so far."""

    commutator: _Products = field(default_factory=_Products)
    weights: _Products = field(default_factory=_Products)
    features: _Products = field(default_factory=_Products)
    outputs: _Products = field(default_factory=_Products)

    def add(self, found: Crossing) -> None:
        """Add a batch."""
        (own, foreign), (crossed, other) = ([wide(one) for one in row] for row in found.products)
        self.commutator.add(own + other, foreign + crossed, (own - foreign) - (crossed - other))
        self.features.add(*found.features)
        self.outputs.add(own, other)
        self.weights = _Products()
        self.weights.add(*found.matrices)

    def result(self, layer: str) -> LayerCommutativity:
        """Return the distances over all batches."""
        return LayerCommutativity(
            layer=layer,
            commutativity=self.commutator.distance,
            cosine=self.commutator.cosine,
            weights=self.weights.distance,
            features=self.features.distance,
            outputs=self.outputs.distance,
        )


def feature_connectivity(
    model: nn.Module,
    path: Path,
    correction: Correction,
    dataset: Dataset,
    points: Sequence[float],
    *,
    examples: int | None = None,
    batch_size: int = 100,
    on_point: Callable[[Mapping[str, float]], None] | None = None,
) -> ConnectedFeatures:
    """Compare the features along a path with those of its ends, and let the layers of the ends commute.

    Both ends are corrected as the networks between them are, with the weights (1, 0) and (0, 1). Held are the values of
    three networks on one batch; memory does not grow with the number of images.

    Args:
        model: the architecture; never changed.
        path: gives the network at t.
        correction: what is done to each network, with the weights (1 - t, t).
        dataset: training images without augmentation are shown to the networks, on their device.
        points: values of t, at least one.
        examples: a fixed stratified choice of so many images; None: all.
        batch_size: images in a batch; changes nothing but rounding.
        on_point: called after each point with t and the mean cosine over all places.

    Raises:
        UserError: see `Observer`.
    """
    images = dataset.train.first(examples)
    device = images.images.device
    ends = [_network(path, correction, t, device) for t in (0.0, 1.0)]
    observer = Observer(model, ends[0], dataset.normalise(images.images[:PROBED]))
    commuting = {layer: _Commuting() for layer in observer.layers}
    angles: dict[float, tuple[PlaceAngles, ...]] = {}
    for number, t in enumerate(points):
        networks = [*ends, _network(path, correction, t, device)]
        sums = {place.node: torch.zeros(6, dtype=torch.float64) for place in observer.places}
        for inputs, _ in dataset.batches(images, batch_size):
            for found in observer(networks, inputs):
                if isinstance(found, Features):
                    sums[found.place.node] += _angles(t, *found.values)
                elif number == 0:
                    commuting[found.layer.name].add(found)
        angles[t] = tuple(_means(place, sums[place.node]) for place in observer.places)
        if on_point is not None:
            on_point({"t": t, "cosine": mean([place.cosine for place in angles[t]])})
    layers = tuple(found.result(layer) for layer, found in commuting.items())
    return ConnectedFeatures(angles=angles, layers=layers, examples=len(images))


def mean(values: Sequence[float]) -> float:
    """Return the mean of the values that are finite; nan if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def _angles(t: float, fixed: Tensor, moving: Tensor, between: Tensor) -> Tensor:
    """(6,) float64 on the CPU: how many examples count, and the sums of their cosines and coefficients."""
    fixed, moving, between = wide(fixed), wide(moving), wide(between)
    vectors = torch.stack([fixed, moving, between, (1 - t) * fixed + t * moving], 1)
    gram = (vectors @ vectors.transpose(1, 2)).cpu()
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    count = norms.gt(0).all(1)
    gram, norms = gram[count], norms[count]
    cosines = gram / (norms[:, :, None] * norms[:, None, :])
    coefficient = gram[:, 2, 3] / gram[:, 3, 3]
    ends = (cosines[:, 2, 3], coefficient, cosines[:, 0, 1], cosines[:, 2, 0], cosines[:, 2, 1])
    return torch.stack([torch.ones_like(coefficient), *ends]).sum(1)


def _means(place: Place, sums: Tensor) -> PlaceAngles:
    count = int(sums[0])
    cosine, coefficient, ends, fixed, moving = (sums[1:] / count).tolist() if count else [math.nan] * 5
    return PlaceAngles(
        place=place,
        examples=count,
        cosine=cosine,
        coefficient=coefficient,
        ends=ends,
        fixed=fixed,
        moving=moving,
    )


def _network(path: Path, correction: Correction, t: float, device: torch.device) -> State:
    state = to_device(correction(path.state(t), (1 - t, t)), device)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
