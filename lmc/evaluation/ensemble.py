"""Ensembles of networks by averaged predictions, and how far predicted probabilities can be trusted."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc.curve.base import Path
from lmc.dataset.images import Dataset, Images
from lmc.errors import UserError
from lmc.state import State, to_device
from lmc.statistics.base import Correction
from lmc.statistics.forward import evaluating
from lmc.statistics.moments import wide

BINS = 15
"""Bins of the calibration error (Guo et al. 2017, section 5)."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """How good predicted probabilities are on a set of examples.

    Attributes:
        loss: mean of -log p(label), in nats.
        accuracy: fraction of examples whose most probable class is the label.
        calibration_error: expected calibration error, `expected_calibration_error` with `BINS` bins.
        brier: mean over examples of the sum over classes of (p - one-hot label)^2 (Brier 1950); in [0, 2].
        members: how many networks were averaged.
        examples: how many examples there were.
    """

    loss: float
    accuracy: float
    calibration_error: float
    brier: float
    members: int
    examples: int


@dataclass(frozen=True, kw_only=True)
class PathEnsemble:
    """An ensemble of points of a path, and what it is to be compared with, on one split.

    Attributes:
        points: where on the path the members lie.
        path: their ensemble.
        ends: the ensemble of the two endpoints.
        singles: each member alone, in the order of `points`; the endpoints are the first and the last.
    """

    points: tuple[float, ...]
    path: Prediction
    ends: Prediction
    singles: tuple[Prediction, ...]


def probabilities(
    model: nn.Module, state: Mapping[str, Tensor], dataset: Dataset, images: Images, batch_size: int = 500
) -> Tensor:
    """Return the softmax of the network with tensors `state`: (N, classes) float64, on the device of `images`.

    In evaluation mode and in float32; the softmax of the logits is taken in float64, so that no probability is lost
    whose logarithm counts. Memory: 8 * N * classes bytes (10,000 images of 200 classes: 16 MB).

    Args:
        model: the architecture; put back as it was.
        state: its tensors.
        dataset: says how images are normalised.
        images: the work is done on their device.
        batch_size: images in a batch; does not change a result.

    Raises:
        UserError: there is no image.
    """
    if not len(images):
        raise UserError(f"dataset {dataset.name}: there is no image to predict")
    device = images.images.device
    with evaluating(model, to_device(state, device)) as network, torch.inference_mode():
        batches = dataset.batches(images, batch_size)
        return torch.cat([wide(network(inputs)).softmax(1) for inputs, _ in batches])


def assess(predicted: Tensor, labels: Tensor, members: int = 1) -> Prediction:
    """Return how good `predicted` is.

    Args:
        predicted: (N, classes) float64 probabilities, rows that sum to 1.
        labels: (N,) int64 on the same device.
        members: of how many networks `predicted` is the average.
    """
    labels = labels.to(predicted.device)
    right = predicted.gather(1, labels[:, None]).squeeze(1)
    # sum_k (p_k - y_k)^2 = sum_k p_k^2 - 2 p_label + 1
    brier = predicted.square().sum(1) - 2 * right + 1
    return Prediction(
        loss=-right.log().mean().item(),
        accuracy=(predicted.argmax(1) == labels).double().mean().item(),
        calibration_error=expected_calibration_error(predicted, labels),
        brier=brier.mean().item(),
        members=members,
        examples=len(labels),
    )


def expected_calibration_error(predicted: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Return sum_b |B_b| / N * |acc(B_b) - conf(B_b)| over bins of equal width (Guo et al. 2017, Eq. 3).

    An example is in bin b of (b / bins, (b + 1) / bins] by its confidence, the probability of its most probable class;
    acc is the fraction of the bin that is classified correctly and conf the mean confidence there.

    Args:
        predicted: (N, classes) float64 probabilities.
        labels: (N,) int64 on the same device.
        bins: how many.

    Returns:
        In [0, 1]; NaN where a probability is.

    Raises:
        ValueError: no bin.
    """
    if bins < 1:
        raise ValueError(f"{bins} bins; at least one is needed")
    confidence, chosen = predicted.max(1)
    if not confidence.isfinite().all():
        return math.nan
    edges = torch.arange(1, bins, dtype=torch.float64, device=predicted.device) / bins
    of = torch.bucketize(confidence, edges)  # right edges belong to their bins
    gaps = torch.zeros(bins, dtype=torch.float64, device=predicted.device)
    gaps.index_add_(0, of, (chosen == labels).double() - confidence)
    return gaps.abs().sum().item() / len(labels)


def ensemble(
    model: nn.Module,
    states: Sequence[Mapping[str, Tensor]],
    dataset: Dataset,
    images: Images,
    batch_size: int = 500,
    on_member: Callable[[Mapping[str, float]], None] | None = None,
) -> Prediction:
    """Return how good the averaged predictions of `states` are: the mean of their probabilities, not of their logits.

    One pass over the images for each network; two tables of `probabilities` are in memory.

    Args:
        model, dataset, images, batch_size: as in `probabilities`.
        states: the networks, corrected already where that is wanted.
        on_member: called after each network with the loss and accuracy of the ensemble up to there.

    Raises:
        UserError: there is no network, or no image.
    """
    if not states:
        raise UserError("an ensemble of no network predicts nothing; give at least one")
    average = _Average()
    for count, state in enumerate(states, 1):
        average.add(probabilities(model, state, dataset, images, batch_size))
        if on_member is not None:
            so_far = average.assess(images.labels)
            on_member({"members": count, "loss": so_far.loss, "accuracy": so_far.accuracy})
    return average.assess(images.labels)


def path_ensemble(
    model: nn.Module,
    path: Path,
    correction: Correction,
    dataset: Dataset,
    images: Images,
    points: Sequence[float],
    *,
    batch_size: int = 500,
    on_point: Callable[[Mapping[str, float]], None] | None = None,
) -> PathEnsemble:
    """Return the ensemble of networks along `path`, beside that of its ends and each of them alone.

    Every network is corrected as for a measurement of the path, the ends too, and predicts once.

    Args:
        model, dataset, images, batch_size: as in `probabilities`.
        path: gives the network at t.
        correction: what is done to each network before it predicts, with the weights (1 - t, t).
        points: the members' t, increasing from 0 to 1: `lmc.evaluation.path.equal_grid` for equal steps of t,
            `lmc.evaluation.path.along_length` for equal steps of length.
        on_point: called after each with t, and the loss and accuracy of the network there.

    Raises:
        UserError: `points` does not increase from 0 to 1, or there is no image.
    """
    if len(points) < 2 or points[0] != 0 or points[-1] != 1 or _falls(points):
        raise UserError(f"an ensemble on a path at {list(points)}: give at least two points, increasing from 0 to 1")
    singles: list[Prediction] = []
    whole, ends = (_Average() for _ in range(2))
    for t in points:
        member: State = correction(path.state(t), (1 - t, t))
        predicted = probabilities(model, member, dataset, images, batch_size)
        singles.append(assess(predicted, images.labels))
        if t in (0, 1):
            ends.add(predicted)
        whole.add(predicted)
        if on_point is not None:
            on_point({"t": t, "loss": singles[-1].loss, "accuracy": singles[-1].accuracy})
    return PathEnsemble(
        points=tuple(points), path=whole.assess(images.labels), ends=ends.assess(images.labels), singles=tuple(singles)
    )


def _falls(points: Sequence[float]) -> bool:
    return any(first >= second for first, second in itertools.pairwise(points))


class _Average:
    """The mean of tables of probabilities that come one by one."""

    def __init__(self) -> None:
        self._total, self._members = torch.zeros(()), 0

    def add(self, predicted: Tensor) -> None:
        self._total = self._total.to(predicted) + predicted
        self._members += 1

    def assess(self, labels: Tensor) -> Prediction:
        return assess(self._total / self._members, labels, self._members)
