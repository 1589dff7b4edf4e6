"""How alike two representations are, by their covariances alone: CKA, SVCCA and orthogonal Procrustes."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
