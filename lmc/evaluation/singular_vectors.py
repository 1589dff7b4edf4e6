"""How far the singular vectors of two networks' layers point the same way (Ito, Yamada, Kumagai 2025).

With the decompositions A = sum_i s_i u_i v_i^T and B = sum_j s'_j u'_j v'_j^T of a layer, and permutations P of its
rows and Q of its columns, <A, P B Q^T> = sum_ij s_i s'_j (u_i^T P u'_j)(v_i^T Q v'_j) (their theorem 4.1). As no
permutation changes a singular value, it can bring layers together only by turning singular vectors towards each other.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc.evaluation.matching import l2_reduction
from lmc.statistics.moments import wide
from lmc.symmetry.structure import Symmetry

_RESOLUTION = torch.finfo(torch.float32).eps

Pair = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Aligned:
    """What the singular vectors of two matrices have in common.

    Attributes:
        product: sum_ij (u_i^T u'_j)(v_i^T v'_j) over the pairs that are counted.
        count: how many pairs of singular vectors of each matrix are counted; the smaller number of both.
    """

    product: float
    count: int

    def __add__(self, other: "Aligned") -> "Aligned":
        """Return what several layers have in common."""
        return Aligned(self.product + other.product, self.count + other.count)

    @property
    def ratio(self) -> float:
        """R, in [-1, 1]; 0 where nothing is counted."""
        return self.product / self.count if self.count else 0.0


@dataclass(frozen=True, kw_only=True)
class LayerVectors:
    """One weight matrix of two networks, before and after they were brought together.

    Attributes:
        layer: the name of the tensor.
        shape: (rows, columns) of the matrix.
        before: for each gamma, of the networks as they were trained.
        after: for each gamma, of the networks in one frame.
        l2_reduction: (||A - B|| - ||A' - B'||) / ||A - B||; None if the networks are not only permuted.
        l2_limit: the largest reduction that any orthogonal matrices P and Q could reach, permutations among them: then
            only the singular values differ (Mirsky 1960); None as above.
    """

    layer: str
    shape: tuple[int, int]
    before: tuple[Aligned, ...]
    after: tuple[Aligned, ...]
    l2_reduction: float | None
    l2_limit: float | None


@dataclass(frozen=True, kw_only=True)
class NetworkVectors:
    """All weight matrices of two networks.

    Attributes:
        layers: in the order of the state dict.
        before: for each gamma R of all layers together: the sum of the products over the sum of the counts.
        after: the same of the networks in one frame.
        l2_reduction: over all trainable tensors; None if the networks are not only permuted.
    """

    layers: tuple[LayerVectors, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    l2_reduction: float | None


def weight_matrices(model: nn.Module, symmetry: Symmetry) -> dict[str, int]:
    """Return the names of the tensors that are matrices of a layer, and the dimension that is their rows.

    Those are the trainable tensors along a dimension of which an operator of the traced network sums (linear layers,
    convolutions, packed projections of attention, tied embeddings that are read so), whatever their names are. Tables
    of positions, class tokens, scales and shifts are only added or multiplied, and do not count; nor do tensors that a
    layer computes its matrix from (weight standardisation). Rows are the units that a layer makes: the first of its
    dimensions along which nothing is summed (of a transposed convolution, the second of the tensor); all others,
    positions in the kernel included, are columns. The maps of a layer that are several in one tensor (grouped
    convolutions, packed queries, keys and values) are one matrix. Of tensors that bear several names, the first counts.
    """
    found: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        made = [dim for dim in range(parameter.ndim) if (name, dim) not in symmetry.reading]
        if 0 < len(made) < parameter.ndim:
            found[name] = made[0]
    return found


def as_matrix(tensor: Tensor, rows: int) -> Tensor:
    """Return a tensor as a float64 matrix (m, n) whose rows are its dimension `rows`."""
    return wide(tensor.movedim(rows, 0).flatten(1))


@dataclass(frozen=True)
class Decomposition:
    """The singular vectors of a matrix, largest singular value first.

    Attributes:
        left: (m, k), k = min(m, n).
        values: (k,).
        right: (k, n).
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "Decomposition":
        """Return the decomposition of a float64 matrix (m, n)."""
        return cls(*torch.linalg.svd(matrix, full_matrices=False))

    def count(self, gamma: float) -> int:
        """Return how many singular values are at least `gamma` times the largest, and not zero.

        Zero is what the float32 resolution of the matrix cannot tell from it, max(m, n) eps of the largest: the vectors
        of such values are arbitrary, each side on its own. The bound has the same tolerance, so that no rounding parts
        equal values, whose vectors have a meaning only together.
        """
        resolution = max(len(self.left), self.right.shape[1]) * _RESOLUTION
        shares = self.values / self.values[0]
        return int(((shares >= gamma - resolution) & (shares > resolution)).sum())


def aligned(first: Decomposition, second: Decomposition, gamma: float) -> Aligned:
    """Return what the singular vectors of two matrices of one shape have in common, of those that `gamma` leaves.

    The sum over all pairs is <U V^T, U' V'^T>. U V^T does not depend on the signs of the vectors, nor on the basis of
    those with one and the same singular value: both sides turn together.

    By the Cauchy-Schwarz inequality the sum is at most the root of the product of both numbers of vectors, and at most
    the smaller of them: it is reached if the planes of one lie in those of the other, and their pairs agree.
    """
    ours, theirs = first.count(gamma), second.count(gamma)
    left = first.left[:, :ours].T @ second.left[:, :theirs]
    right = first.right[:ours] @ second.right[:theirs].T
    return Aligned((left * right).sum().item(), min(ours, theirs))


def compare_singular_vectors(
    model: nn.Module,
    symmetry: Symmetry,
    before: Pair,
    after: Pair,
    gammas: Sequence[float],
    *,
    on_layer: Callable[[Mapping[str, float]], None] | None = None,
) -> NetworkVectors:
    """Return R of two networks before and after they were brought together (Ito et al. 2025, section 4).

    R = sum_l sum_ij (u_li^T u'_lj)(v_li^T v'_lj) / sum_l n_l, over all weight matrices l (see `weight_matrices`). With
    gamma > 0 only pairs of vectors count whose singular value is at least gamma times the largest of their own matrix.
    n_l is the smaller of both networks' numbers of pairs that count, so that R is at most 1, and 1 for equal networks.

    One decomposition of each matrix in float64: of an (m, n) matrix about 10 max(m, n) min(m, n)^2 operations, one
    layer at a time.

    Args:
        model: the architecture; says which tensors bear several names.
        symmetry: says which tensors are matrices.
        before: the networks as they were trained.
        after: the same networks in one frame; all tensors on one device.
        gammas: each in [0, 1].
        on_layer: called after each layer with its number and the last R.
    """
    is_permuted = all(_rearranged(old, new, symmetry) for old, new in zip(before, after, strict=True))
    layers = []
    for layer in _layers(weight_matrices(model, symmetry), before, after, gammas, is_permuted):
        layers.append(layer)
        if on_layer is not None:
            on_layer({"layer": len(layers), "after": layer.after[-1].ratio})
    return NetworkVectors(
        layers=tuple(layers),
        before=tuple(_total([layer.before[place] for layer in layers]) for place in range(len(gammas))),
        after=tuple(_total([layer.after[place] for layer in layers]) for place in range(len(gammas))),
        l2_reduction=l2_reduction(before, after, symmetry.parameters) if is_permuted else None,
    )


def _layers(
    matrices: Mapping[str, int], before: Pair, after: Pair, gammas: Sequence[float], is_permuted: bool
) -> Iterator[LayerVectors]:
    for name, rows in matrices.items():
        old, new = ([as_matrix(state[name], rows) for state in pair] for pair in (before, after))
        was = [Decomposition.of(matrix) for matrix in old]
        now = [
            found if torch.equal(one, two) else Decomposition.of(two)
            for found, one, two in zip(was, old, new, strict=True)
        ]
        apart = torch.dist(old[0], old[1]).item()
        least = torch.dist(was[0].values, was[1].values).item()
        yield LayerVectors(
            layer=name,
            shape=(old[0].shape[0], old[0].shape[1]),
            before=tuple(aligned(was[0], was[1], gamma) for gamma in gammas),
            after=tuple(aligned(now[0], now[1], gamma) for gamma in gammas),
            l2_reduction=l2_reduction(before, after, [name]) if is_permuted else None,
            l2_limit=((apart - least) / apart if apart else 0.0) if is_permuted else None,
        )


def _total(layers: Sequence[Aligned]) -> float:
    return sum(layers, start=Aligned(0.0, 0)).ratio


def _rearranged(before: Mapping[str, Tensor], after: Mapping[str, Tensor], symmetry: Symmetry) -> bool:
    """Whether the trainable tensors hold the same numbers, in whatever order: a permutation may have moved them."""
    return all(
        torch.equal(before[name], after[name])
        or torch.equal(before[name].flatten().sort().values, after[name].flatten().sort().values)
        for name in symmetry.parameters
    )
