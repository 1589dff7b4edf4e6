"""How many units of one network it takes to predict a unit of another: linear maps with an L1 penalty (Li et al. 2015).

Everything is computed from correlation matrices: the activations themselves are no longer needed, so that neither time
nor memory depends on how many images there were.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

log = logging.getLogger(__name__)

_SWEEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class SparsePrediction:
    """Linear predictions of T standardised targets from n standardised predictors under one L1 penalty.

    Attributes:
        penalty: of the sum of the absolute weights.
        weights: (n, T) float64.
        errors: (T,) mean squared error of each target: 1 - explained variance, as its variance is 1.
        used: (T,) number of predictors with a weight that is not zero.
        gaps: (T,) duality gap: by how much the objective is above its least value, at most.
    """

    penalty: float
    weights: Tensor
    errors: Tensor
    used: Tensor
    gaps: Tensor


def sparse_predictions(
    within: Tensor, between: Tensor, penalties: Sequence[float], *, tolerance: float = 1e-5
) -> Iterator[SparsePrediction]:
    """Yield for each penalty a the map w that minimises E[(y - w^T x)^2] / 2 + a |w|_1, for every target y.

    That is the objective of scikit-learn's `Lasso` on standardised data. In terms of the correlations G of the
    predictors and c of the predictors with the target it is w^T G w / 2 - c^T w + 1/2 + a |w|_1. Solved for all targets
    at once by cyclic coordinate descent, which gives exact zeros; a target is done when its duality gap is at most
    `tolerance`. Penalties are taken from the largest on, each from where the one before has ended.

    Args:
        within: (n, n) float64 correlations of the predictors, ones on the diagonal.
        between: (n, T) float64 correlations of the predictors (rows) with the targets.
        penalties: positive, in shares of a standard deviation; from 1 on nothing is used at all.
        tolerance: the largest duality gap, in shares of the variance of a target.

    Yields:
        The predictions, largest penalty first.
    """
    weights = torch.zeros_like(between)
    for penalty in sorted(penalties, reverse=True):
        weights, gaps = _descend(within, between, weights, penalty, tolerance)
        if len(gaps) and gaps.max() > tolerance:
            log.warning("sparse prediction, penalty %g: duality gap %.1e after %d sweeps", penalty, gaps.max(), _SWEEPS)
        yield SparsePrediction(
            penalty=penalty,
            weights=weights,
            errors=_errors(between, weights, between - within @ weights).clamp(0, 1),
            used=(weights != 0).sum(0),
            gaps=gaps,
        )


def _descend(within: Tensor, between: Tensor, start: Tensor, penalty: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """The weights (n, T) and the duality gaps (T,) that coordinate descent from `start` ends with."""
    weights = start.clone()
    gaps = between.new_zeros(between.shape[1])
    left = torch.arange(between.shape[1] if len(within) else 0, device=between.device)
    sweeps = 0
    while len(left):
        own, targets = weights[:, left], between[:, left]
        rest = targets - within @ own  # computed anew, so that rounding does not add up
        gaps[left] = _gaps(targets, own, rest, penalty)
        kept = gaps[left] > tolerance
        left = left[kept]
        if sweeps == _SWEEPS:
            break
        weights[:, left] = _swept(within, own[:, kept], rest[:, kept], penalty)
        sweeps += 1
    return weights, gaps


def _swept(within: Tensor, weights: Tensor, rest: Tensor, penalty: float) -> Tensor:
    """The weights after every coordinate that could move was put to its optimum once.

    Args:
        within: (n, n) correlations of the predictors.
        weights: (n, T); changed.
        rest: (n, T) correlations of the predictors with what is not yet predicted; changed.
        penalty: of the sum of the absolute weights.
    """
    movable = ((weights != 0) | (rest.abs() > penalty)).any(1).nonzero().flatten().tolist()
    for unit in movable:
        better = functional.softshrink(weights[unit] + rest[unit], penalty)
        rest.addr_(within[unit], better - weights[unit], alpha=-1)
        weights[unit] = better
    return weights


def _errors(between: Tensor, weights: Tensor, rest: Tensor) -> Tensor:
    """(T,) mean squared errors 1 - 2 c^T w + w^T G w, with G w = c - rest."""
    return 1 - (weights * (between + rest)).sum(0)


def _gaps(between: Tensor, weights: Tensor, rest: Tensor, penalty: float) -> Tensor:
    """(T,) duality gaps: the objective less that of the dual at the residual y - w^T x, scaled until it is feasible."""
    errors, unexplained = _errors(between, weights, rest), 1 - (between * weights).sum(0)
    scale = (penalty / rest.abs().amax(0)).clamp(max=1)
    dual = scale * unexplained - scale.square() * errors / 2
    return (errors / 2 + penalty * weights.abs().sum(0) - dual).clamp(min=0)


def least_squares_errors(within: Tensor, between: Tensor) -> Tensor:
    """Return the (T,) errors of ordinary least squares, with as many predictors as there are: the least there can be.

    Args:
        within: (n, n) float64 correlations of the predictors; may be singular.
        between: (n, T) float64 correlations of the predictors with the targets.
    """
    if not len(within):
        return between.new_ones(between.shape[1])
    values, vectors = torch.linalg.eigh(within)
    kept = values > len(values) * torch.finfo(values.dtype).eps * values[-1]
    explained: Tensor = ((vectors[:, kept].T @ between).square() / values[kept, None]).sum(0)
    return (1 - explained).clamp(0, 1)
