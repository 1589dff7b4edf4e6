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
from lmc.evaluation.covariance_similarity import Similarity, similarity
from lmc.evaluation.representation_layers import Layer, layers_of
from lmc.state import State, to_device
from lmc.symmetry.activations import Probe
from lmc.symmetry.structure import Symmetry

Spatial = Literal["positions", "mean"]
_BYTES = 8
_GIB = 2**30


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
