"""How alike the layers of two networks represent images, whatever the basis: CKA, SVCCA and orthogonal Procrustes.

All three are functions of covariances pooled over all images, so that memory does not depend on how many there are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import torch
from torch import Tensor, nn

from lmc.alignment.problem import Problem
from lmc.alignment.similarity.correlation import PairMoments
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.along_curve import observable
from lmc.seeding import generator
from lmc.state import State, to_device
from lmc.symmetry.activations import Probe
from lmc.symmetry.structure import Symmetry

Spatial = Literal["positions", "mean"]
_BYTES = 8
_GIB = 2**30
_CHANGED = 1e-3


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Units that are seen together: a value of the network, behind a nonlinearity.

    Attributes:
        name: of the last group that is seen there, with the place if that does not say which layer it is.
        place: the name of the value in the traced graph.
        groups: the groups of units that are seen in it.
        units: how many units they are.
        positions: samples of one image: positions of the feature map, tokens.
        repeated: how many times the images come one after the other among the samples; 1 where all samples of an image
            are together.
    """

    name: str
    place: str
    groups: tuple[str, ...]
    units: int
    positions: int
    repeated: int


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How alike two networks are at the same layer.

    Attributes:
        cka: linear centred kernel alignment (Kornblith et al. 2019), in [0, 1].
        svcca: mean canonical correlation of the leading principal components (Raghu et al. 2017), in [0, 1].
        svcca_squared: the mean of the squares of these correlations.
        procrustes: 1 - d/2, with d the squared orthogonal Procrustes distance of the centred representations of unit
            norm (Ding et al. 2021), in [0, 1].
        components: how many principal components of each network were kept for the SVCCA.
    """

    cka: float
    svcca: float
    svcca_squared: float
    procrustes: float
    components: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Similarities:
    """How alike the L layers of two networks are.

    Attributes:
        layers: in the order of the network.
        samples: layer for layer, how many samples `equal` is computed from.
        equal: layer for layer, the two networks at the same layer.
        cka: (L, L) float64 on the CPU: the CKA of each layer of the first network (rows) with each of the second.
        by_position: (L, L) bool: where positions are samples; elsewhere the mean over the positions of each image is.
    """

    layers: Sequence[Layer]
    samples: Sequence[int]
    equal: Sequence[Similarity]
    cka: Tensor
    by_position: Tensor

    @property
    def found(self) -> float:
        """Share of the layers of the first network that are most like the same layer of the second, by their CKA.

        Kornblith et al.'s sanity check (section 6.1): of two networks that differ in the seed, it should be all.
        """
        return (self.cka.argmax(1) == torch.arange(len(self.cka))).double().mean().item()


def linear_cka(fixed: Tensor, moving: Tensor, cross: Tensor) -> float:
    """Return the linear CKA ||Sxy||_F^2 / (||Sxx||_F ||Syy||_F) (Kornblith et al. 2019, eq. 5); 0 if one is constant.

    Args:
        fixed: (p, p) covariance Sxx of the first representation, or sums of products.
        moving: (q, q) Syy of the second.
        cross: (p, q) Sxy.
    """
    norm = torch.linalg.matrix_norm(fixed) * torch.linalg.matrix_norm(moving)
    return (torch.linalg.matrix_norm(cross).square() / norm).item() if norm > 0 else 0.0


def procrustes_similarity(fixed: Tensor, moving: Tensor, cross: Tensor) -> float:
    """Return ||Sxy||_* / sqrt(tr Sxx tr Syy), the nuclear norm in shares of its bound; 0 if one is constant.

    It is 1 - d/2 with the squared distance d = min_Q ||X Q - Y||_F^2 over orthogonal Q, of centred X and Y of Frobenius
    norm 1 (Ding et al. 2021, eq. 3; with zeros for missing units where p and q differ). Arguments as for `linear_cka`.
    """
    norm = (fixed.trace() * moving.trace()).sqrt()
    return (torch.linalg.matrix_norm(cross, "nuc") / norm).clamp(max=1).item() if norm > 0 else 0.0


def canonical_correlations(
    fixed: Tensor, moving: Tensor, cross: Tensor, variance: float = 0.99
) -> tuple[Tensor, tuple[int, int]]:
    """Return the canonical correlations of the leading principal components of two representations (SVCCA).

    Of each representation the fewest principal components that hold the share `variance` of its variance are kept
    (Raghu et al. 2017, section 2); 1 keeps all that are not constant to working precision, which is plain CCA.

    Args:
        fixed, moving, cross: as for `linear_cka`.
        variance: in (0, 1].

    Returns:
        (k,) float64 with k the smaller number of components, largest first; and the numbers of components kept.
    """
    ours, theirs = _whitening(fixed, variance), _whitening(moving, variance)
    kept = (ours.shape[1], theirs.shape[1])
    if not min(kept):
        return cross.new_zeros(0), kept
    return torch.linalg.svdvals(ours.T @ cross @ theirs).clamp(max=1), kept


def _whitening(covariance: Tensor, variance: float) -> Tensor:
    """(p, k) the leading principal directions, divided by the standard deviation along them."""
    rising, vectors = torch.linalg.eigh(covariance)
    values: Tensor = rising.flip(-1)
    live = values > len(values) * torch.finfo(values.dtype).eps * values[0]
    held = values.clamp(min=0).cumsum(0)
    # A component is needed while those before it hold less than the share.
    needed = live & ((held - values.clamp(min=0)) < variance * held[-1])
    leading: Tensor = vectors.flip(-1)[:, needed]
    return leading * values[needed].rsqrt()


def similarity(fixed: Tensor, moving: Tensor, cross: Tensor, *, variance: float = 0.99) -> Similarity:
    """Return all similarities of two representations; arguments as for `canonical_correlations`."""
    correlations, components = canonical_correlations(fixed, moving, cross, variance)
    found = correlations if len(correlations) else cross.new_zeros(1)
    return Similarity(
        cka=linear_cka(fixed, moving, cross),
        svcca=found.mean().item(),
        svcca_squared=found.square().mean().item(),
        procrustes=procrustes_similarity(fixed, moving, cross),
        components=components,
    )


def layers_of(model: nn.Module, symmetry: Symmetry, network: State, dataset: Dataset) -> list[Layer]:
    """Return the layers whose units are compared, in the order of the network.

    A value of the network behind a nonlinearity is a layer, with the units of all groups that are seen in it (the
    channels of a dense connection). Units that are seen with other numbers of samples than the others (packed queries,
    keys and values) are a layer of their own.

    Args:
        model: the architecture; never changed.
        symmetry: of the architecture.
        network: tensors of the architecture.
        dataset: gives the shape and the device of the images.

    Raises:
        UserError: no unit can be observed.
    """
    device = dataset.train.images.device
    probe = Probe(model, symmetry, "post", observable(symmetry))
    state = to_device(network, device)
    noise = torch.randn(3, *dataset.input_shape, generator=generator(0, "layers")).to(device)
    seen: dict[tuple[str, int], list[tuple[str, Tensor, Tensor]]] = {}
    for (group, place, (same,)), (_, _, (other,)) in zip(
        probe([state], noise[[0, 1]]), probe([state], noise[[0, 2]]), strict=True
    ):
        seen.setdefault((place, same.shape[1] // 2), []).append((group, same, other))
    last = [found[-1][0] for found in seen.values()]
    layers = []
    for (place, positions), found in seen.items():
        group = found[-1][0]
        layers.append(
            Layer(
                name=group if last.count(group) == 1 else f"{group} ({place})",
                place=place,
                groups=tuple(name for name, *_ in found),
                units=sum(len(values) for _, values, _ in found),
                positions=positions,
                repeated=_repeated(*(torch.cat(values) for values in list(zip(*found, strict=True))[1:])),
            )
        )
    return layers


def _repeated(same: Tensor, other: Tensor) -> int:
    """How often the images come one after the other among the samples of two batches that differ in the second image.

    The samples of the first image are those that stay: the smallest number for which all of them do.

    Args:
        same: (units, 2 positions) of the images 0 and 1.
        other: (units, 2 positions) of the images 0 and 2.
    """
    change = (same - other).abs().amax(0)
    changed = change > _CHANGED * change.max()
    positions = len(changed) // 2
    for times in (n for n in range(1, positions + 1) if positions % n == 0):
        if not changed.reshape(times, 2, -1)[:, 0].any():
            return times
    raise ValueError("the outputs of an image depend on the other images of its batch")


class _Block:
    """The covariances of some layers of one network with some of the other, from the same kind of samples."""

    def __init__(self, rows: Sequence[int], columns: Sequence[int], layers: Sequence[Layer], spatial: Spatial) -> None:
        self.rows, self.columns, self.spatial = rows, columns, spatial
        self._layers = layers
        self._cross: PairMoments | None = None
        self.own: dict[tuple[int, int], PairMoments] = {}

    def add(self, values: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        """Merge a batch: the number of a layer -> (units, images, positions) of both networks."""
        shaped = {
            number: [self._samples(of_network) for of_network in values[number]]
            for number in sorted({*self.rows, *self.columns})
        }
        for number in self.rows:
            for side, samples in enumerate(shaped[number]):
                own = self.own.setdefault((number, side), PairMoments.none(len(samples), samples.device))
                own.add(samples, samples)
        ours = torch.cat([shaped[number][0] for number in self.rows])
        theirs = torch.cat([shaped[number][1] for number in self.columns])
        if self._cross is None:
            self._cross = _no_moments(len(ours), len(theirs), ours.device)
        self._cross.add(ours, theirs)

    def _samples(self, values: Tensor) -> Tensor:
        return values.mean(2) if self.spatial == "mean" else values.flatten(1)

    @property
    def count(self) -> int:
        """How many samples there were."""
        return self._cross.count if self._cross is not None else 0

    def cross(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield the number of a layer of the first and of the second network, and their sums of products."""
        if self._cross is not None:
            rows = torch.split(self._cross.products, [self._layers[number].units for number in self.rows])
            for row, of_row in zip(self.rows, rows, strict=True):
                columns = torch.split(of_row, [self._layers[number].units for number in self.columns], dim=1)
                yield from ((row, column, found) for column, found in zip(self.columns, columns, strict=True))


def _no_moments(rows: int, columns: int, device: torch.device) -> PairMoments:
    ours, theirs = (torch.zeros(units, dtype=torch.float64, device=device) for units in (rows, columns))
    return PairMoments(0, (ours, theirs), (ours, theirs), ours.new_zeros(rows, columns))


def layer_passes(layers: Sequence[Layer], spatial: Spatial, memory: float) -> list[list[int]]:
    """Split the layers of the first network into passes over the images, such that their covariances fit into memory.

    Args:
        layers: of both networks.
        spatial: as for `layer_similarities`.
        memory: GiB of covariances; every pass holds at least one layer.

    Returns:
        The numbers of the layers of each pass.
    """
    passes: list[list[int]] = [[]]
    taken = 0.0
    for number, layer in enumerate(layers):
        columns = sum(other.units for other in layers)
        if spatial == "positions":
            columns += sum(other.units for other in layers if other.positions == layer.positions)
        room = _BYTES * layer.units * (columns + 4 * layer.units)
        if passes[-1] and taken + room > memory * _GIB:
            passes.append([])
            taken = 0.0
        passes[-1].append(number)
        taken += room
    return passes


def layer_similarities(
    model: nn.Module,
    symmetry: Symmetry,
    networks: tuple[State, State],
    dataset: Dataset,
    *,
    examples: int | None = 10_000,
    batch_size: int = 200,
    spatial: Spatial = "positions",
    variance: float = 0.99,
    memory: float = 4.0,
    on_batch: Callable[[Mapping[str, float]], None] | None = None,
) -> Similarities:
    """Return how alike the layers of two networks are, from as few passes over the images as memory allows.

    Args:
        model: the architecture; never changed.
        symmetry: of the architecture: which values of the network are layers, see `layers_of`.
        networks: the two, each in its own frame.
        dataset: its first training images, without augmentation, are shown to the networks, on its device.
        examples: at most so many images; None: all.
        batch_size: images in a batch; changes nothing but rounding. The activations of one batch are held.
        spatial: "positions": all positions of all images are samples; between layers with different numbers of
            positions the mean over the positions of each image is. "mean": it always is. Two layers of as many
            positions, but in another order (windows of attention), can only be compared by their mean.
        variance: share of the variance that the principal components of the SVCCA hold, in (0, 1].
        memory: GiB of covariances that are held at a time.
        on_batch: called after every batch with the pass and the images seen in it so far.

    Raises:
        UserError: no unit can be observed, or an activation is not finite.
    """
    device = dataset.train.images.device
    states = [to_device(network, device) for network in networks]
    layers = layers_of(model, symmetry, states[0], dataset)
    probe = Probe(model, symmetry, "post", observable(symmetry))
    problem = Problem(
        model, symmetry, 0, device, lambda size: (images for images, _ in dataset.batches(dataset.train, size))
    )
    result = _Result(layers, variance)
    for number, rows in enumerate(layer_passes(layers, spatial, memory)):
        blocks = list(_blocks(rows, layers, spatial))
        seen = 0
        for images in problem.images(examples, batch_size):
            values = _by_layer(probe(states, images), layers, len(images))
            for block in blocks:
                block.add(values)
            seen += len(images)
            if on_batch is not None:
                on_batch({"pass": number + 1, "images": seen})
        for block in blocks:
            result.add(block)
    return result.finished()


def _blocks(rows: Sequence[int], layers: Sequence[Layer], spatial: Spatial) -> Iterator[_Block]:
    """The comparisons of the layers `rows` with all: by positions where these are as many, by their mean elsewhere."""
    everything = range(len(layers))
    counts = {layer.positions for layer in layers}
    if spatial == "mean" or len(counts) > 1:
        yield _Block(rows, everything, layers, "mean")
    if spatial == "positions":
        for _, chosen in groupby(sorted(rows, key=lambda n: layers[n].positions), key=lambda n: layers[n].positions):
            same = list(chosen)
            columns = [n for n in everything if layers[n].positions == layers[same[0]].positions]
            yield _Block(same, columns, layers, "positions")


def _by_layer(
    observed: Iterable[tuple[str, str, list[Tensor]]], layers: Sequence[Layer], images: int
) -> dict[int, tuple[Tensor, Tensor]]:
    """The number of each layer -> (units, images, positions) of both networks, positions in the same order."""
    numbers = {(layer.place, layer.positions): number for number, layer in enumerate(layers)}
    parts: dict[int, list[list[Tensor]]] = {}
    for _, place, values in observed:
        parts.setdefault(numbers[place, values[0].shape[1] // images], []).append(values)
    found = {}
    for number, groups in parts.items():
        shape = (layers[number].repeated, images, -1)
        first, second = (
            torch.unflatten(torch.cat(of_network), 1, shape).transpose(1, 2).flatten(2)
            for of_network in zip(*groups, strict=True)
        )
        found[number] = (first, second)
    return found


class _Result:
    """What is known when some passes have been made."""

    def __init__(self, layers: Sequence[Layer], variance: float) -> None:
        self._layers, self._variance = layers, variance
        self._norms: dict[tuple[Spatial, int, int], float] = {}
        self._shared: dict[tuple[Spatial, int, int], float] = {}
        self._equal: dict[int, tuple[int, Similarity]] = {}

    def add(self, block: _Block) -> None:
        """Take what is needed from the covariances of a block."""
        for (number, side), own in block.own.items():
            self._norms[block.spatial, number, side] = torch.linalg.matrix_norm(own.products / own.count).item()
        for row, column, products in block.cross():
            cross = products / block.count
            self._shared[block.spatial, row, column] = torch.linalg.matrix_norm(cross).square().item()
            if not math.isfinite(self._shared[block.spatial, row, column]):
                raise UserError(
                    f"activations of layers {self._layers[row].name!r} or {self._layers[column].name!r} are not finite "
                    "and cannot be compared; train again"
                )
            if row == column:  # of two blocks, the one by positions comes last
                fixed, moving = (block.own[row, side].products / block.count for side in (0, 1))
                self._equal[row] = (block.count, similarity(fixed, moving, cross, variance=self._variance))

    def finished(self) -> Similarities:
        """Return the similarities when all passes have been made."""
        count = len(self._layers)
        cka, by_position = torch.zeros(count, count, dtype=torch.float64), torch.zeros(count, count, dtype=torch.bool)
        for (spatial, row, column), shared in self._shared.items():
            norm = self._norms[spatial, row, 0] * self._norms[spatial, column, 1]
            cka[row, column] = shared / norm if norm > 0 else 0.0
            by_position[row, column] = spatial == "positions"
        return Similarities(
            layers=self._layers,
            samples=[self._equal[number][0] for number in range(count)],
            equal=[self._equal[number][1] for number in range(count)],
            cka=cka.clamp(max=1),
            by_position=by_position,
        )
