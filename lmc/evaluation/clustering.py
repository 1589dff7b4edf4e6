"""Groups of units that answer alike, whichever of two networks they belong to: spectral clustering (Li et al. 2015)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import hypergeom
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

_STARTS = 10


@dataclass(frozen=True)
class Mixing:
    """How far clusters of the units of two networks consist of both.

    Attributes:
        clusters: how many clusters have a unit.
        mixed: share of all units that belong to the network with fewer units in their cluster; 1/2 if every cluster
            has as many units of each.
        by_chance: the same, expected if the units of both were dealt at random to clusters of these sizes (exact).
        alone: share of all units whose cluster has units of one network only.
    """

    clusters: int
    mixed: float
    by_chance: float
    alone: float


def spectral_clusters(affinity: Tensor, counts: Sequence[int], generator: torch.Generator) -> list[Tensor]:
    """Cluster units by normalised cuts (Shi and Malik 2000), once for each number of clusters.

    The eigenvectors of the normalised Laplacian I - D^-1/2 W D^-1/2 with the k smallest eigenvalues, rows divided by
    the root of their degree, are clustered by k-means (the best of 10 starts). That is what scikit-learn's
    `SpectralClustering` does with a precomputed affinity; here one eigendecomposition serves all counts.

    Args:
        affinity: W, (units, units) symmetric, not negative; the diagonal does not count.
        counts: numbers of clusters, at most the number of units each.
        generator: from which the starts of k-means are drawn.

    Returns:
        For each count (units,) int64 numbers of clusters, on the CPU; some clusters stay empty where there are fewer
        different units than clusters.
    """
    weights = affinity.to(torch.float64).clone().fill_diagonal_(0)
    degrees = weights.sum(1)
    scale = torch.where(degrees > 0, degrees.rsqrt(), 1.0)
    vectors = torch.linalg.eigh(weights * scale[:, None] * scale).eigenvectors.flip(1) * scale[:, None]
    places = vectors.cpu().numpy()
    return [_k_means(places[:, :count], count, generator) for count in counts]


def _k_means(places: NDArray[np.float64], count: int, generator: torch.Generator) -> Tensor:
    seed = int(torch.randint(2**31, (), generator=generator))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different places than clusters: some stay empty
        labels = KMeans(count, n_init=_STARTS, random_state=seed).fit(places).labels_
    return torch.from_numpy(labels.astype(np.int64))


def mixing(labels: Tensor, second: Tensor) -> Mixing:
    """Return how far clusters consist of units of both networks.

    Args:
        labels: (units,) the cluster of each unit, at least one unit.
        second: (units,) bool, which of the units belong to the second network.
    """
    sizes = torch.bincount(labels)
    theirs = torch.bincount(labels[second], minlength=len(sizes))
    fewer = torch.minimum(theirs, sizes - theirs)
    units = len(labels)
    chance = sum(_fewer_by_chance(units, int(second.sum()), size) for size in sizes.tolist())
    return Mixing(
        clusters=int((sizes > 0).sum()),
        mixed=fewer.sum().item() / units,
        by_chance=chance / units,
        alone=sizes[fewer == 0].sum().item() / units,
    )


def _fewer_by_chance(units: int, of_second: int, size: int) -> float:
    """The expected number of units of the network with fewer of them among `size` units drawn without replacement."""
    counts = np.arange(size + 1)
    return float((hypergeom(units, of_second, size).pmf(counts) * np.minimum(counts, size - counts)).sum())
