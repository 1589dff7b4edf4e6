"""Ensembles, calibration and Brier score against scikit-learn, numpy and closed forms."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torch import Tensor, nn

from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.ensemble import assess, ensemble, expected_calibration_error, path_ensemble, probabilities
from lmc.evaluation.measure import measure
from lmc.state import State, interpolate, of_model

Seeded = Callable[..., nn.Module]


def drawn(count: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities from almost certain to almost uniform, and labels that follow them somewhat."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * rng.uniform(0.1, 6, size=(count, 1))
    labels = (logits + rng.gumbel(size=logits.shape) * 2).argmax(1)
    return torch.from_numpy(softmax(logits, axis=1)), torch.from_numpy(labels)


def calibration_by_hand(predicted: np.ndarray, labels: np.ndarray, bins: int) -> float:
    """Guo et al. 2017, Eq. 2 and 3, as it is written there."""
    confidence, chosen = predicted.max(1), predicted.argmax(1)
    total = 0.0
    for m in range(1, bins + 1):
        inside = (confidence > (m - 1) / bins) & (confidence <= m / bins)
        if inside.any():
            accuracy = (chosen[inside] == labels[inside]).mean()
            total += inside.sum() / len(labels) * abs(accuracy - confidence[inside].mean())
    return total


def network_probabilities(state: State, dataset: Dataset, images: Tensor) -> np.ndarray:
    """Of the two-layer network in float64, without torch."""
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    inputs = dataset.normalise(images).flatten(1).numpy().astype(np.float64)
    inner = np.maximum(inputs @ weights["1.weight"].T + weights["1.bias"], 0)
    return softmax(inner @ weights["4.weight"].T + weights["4.bias"], axis=1)


def plain(state: State, weights: object) -> State:
    return dict(state)


@pytest.mark.parametrize("bins", [1, 2, 15, 40])
@pytest.mark.parametrize(("count", "classes"), [(1, 2), (23, 2), (1000, 10)])
def test_the_calibration_error_is_that_of_a_plain_loop(count: int, classes: int, bins: int) -> None:
    predicted, labels = drawn(count, classes, seed=bins)
    expected = calibration_by_hand(predicted.numpy(), labels.numpy(), bins)
    assert expected_calibration_error(predicted, labels, bins) == pytest.approx(expected, abs=1e-12)
    assert expected > 0


def test_the_calibration_error_in_closed_form() -> None:
    # Ten examples of confidence 0.8, of which 6 are right: |0.6 - 0.8|; ten sure ones, all right: 0.
    unsure = torch.tensor([[0.8, 0.2]], dtype=torch.float64).repeat(10, 1)
    sure = torch.tensor([[0.0, 1.0]], dtype=torch.float64).repeat(10, 1)
    labels = torch.tensor([0] * 6 + [1] * 4)
    assert expected_calibration_error(unsure, labels) == pytest.approx(0.2)
    both = torch.cat([unsure, sure]), torch.cat([labels, torch.ones(10, dtype=torch.int64)])
    assert expected_calibration_error(*both) == pytest.approx(0.1)
    assert expected_calibration_error(sure, torch.zeros(10, dtype=torch.int64)) == 1
    assert expected_calibration_error(sure, torch.ones(10, dtype=torch.int64)) == 0


def test_opposite_gaps_cancel_inside_a_bin_but_not_between_bins() -> None:
    predicted = torch.tensor([[0.7, 0.3], [0.9, 0.1]], dtype=torch.float64)
    labels = torch.tensor([0, 1])  # gaps +0.3 and -0.9
    assert expected_calibration_error(predicted, labels, bins=1) == pytest.approx(0.3)
    assert expected_calibration_error(predicted, labels, bins=5) == pytest.approx(0.6)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    # With 2 bins, (0, 1/2] and (1/2, 1]: gaps +0.5 and -0.6 lie apart; in one bin they would give 0.05.
    predicted = torch.tensor([[0.5, 0.25, 0.25], [0.6, 0.2, 0.2]], dtype=torch.float64)
    assert expected_calibration_error(predicted, torch.tensor([0, 1]), bins=2) == pytest.approx(0.55)
    with pytest.raises(ValueError, match="0 bins"):
        expected_calibration_error(predicted, torch.tensor([0, 1]), bins=0)


@pytest.mark.parametrize("classes", [2, 7])
def test_the_numbers_are_those_of_scikit_learn(classes: int) -> None:
    predicted, labels = drawn(400, classes)
    found = assess(predicted, labels, members=3)
    p, y = predicted.numpy(), labels.numpy()
    assert found.loss == pytest.approx(log_loss(y, p, labels=range(classes)), rel=1e-9)
    assert found.accuracy == accuracy_score(y, p.argmax(1))
    whole = brier_score_loss(y, p, labels=range(classes), scale_by_half=False)
    assert found.brier == pytest.approx(whole, rel=1e-9)
    assert found.brier == pytest.approx(((p - np.eye(classes)[y]) ** 2).sum(1).mean(), rel=1e-9)
    assert (found.members, found.examples) == (3, 400)


def test_a_single_network_has_the_loss_and_accuracy_of_its_measurement(dataset: Dataset, seeded: Seeded) -> None:
    model, state = seeded(0, norm=True), of_model(seeded(1, norm=True))
    found = ensemble(model, [state], dataset, dataset.test)
    measured = measure(model, state, dataset.batches(dataset.test, 500))
    assert found.loss == pytest.approx(measured.loss, rel=1e-6)
    assert (found.accuracy, found.examples, found.members) == (measured.accuracy, measured.examples, 1)


def test_an_ensemble_averages_probabilities(dataset: Dataset, seeded: Seeded) -> None:
    states = [of_model(seeded(seed)) for seed in range(3)]
    steps: list[dict[str, float]] = []
    found = ensemble(seeded(0), states, dataset, dataset.test, batch_size=10, on_member=lambda s: steps.append(dict(s)))
    each = [network_probabilities(state, dataset, dataset.test.images) for state in states]
    labels = dataset.test.labels.numpy()
    mean = np.mean(each, axis=0)
    assert found.loss == pytest.approx(log_loss(labels, mean, labels=range(3)), rel=1e-5)
    assert found.accuracy == accuracy_score(labels, mean.argmax(1))
    assert found.calibration_error == pytest.approx(calibration_by_hand(mean, labels, 15), abs=1e-5)
    assert found.members == 3
    # -log is convex: the averaged probabilities lose no more than the members do on average (Jensen).
    assert found.loss < np.mean([log_loss(labels, p, labels=range(3)) for p in each])
    assert [step["members"] for step in steps] == [1, 2, 3]
    assert steps[-1]["loss"] == found.loss


def test_the_batch_size_does_not_matter_and_nothing_changes(dataset: Dataset, seeded: Seeded) -> None:
    model, state = seeded(0, norm=True), of_model(seeded(1, norm=True))
    before, kept = of_model(model), {name: tensor.clone() for name, tensor in state.items()}
    whole = probabilities(model, state, dataset, dataset.test)
    parts = probabilities(model, state, dataset, dataset.test, batch_size=7)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-7)
    assert (whole.shape, whole.dtype) == ((47, 3), torch.float64)
    torch.testing.assert_close(whole.sum(1), torch.ones(47, dtype=torch.float64), rtol=1e-12, atol=0)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in of_model(model).items())
    assert all(torch.equal(kept[name], tensor) for name, tensor in state.items())


def test_a_network_beside_itself_is_no_ensemble(dataset: Dataset, seeded: Seeded, line: type) -> None:
    state = of_model(seeded(1))
    found = path_ensemble(seeded(0), line(state, state), plain, dataset, dataset.test, (0, 0.5, 1))
    alone = ensemble(seeded(0), [state], dataset, dataset.test)
    for same in (found.path, found.ends, *found.singles):
        assert same.loss == pytest.approx(alone.loss, rel=1e-9)
        assert same.accuracy == alone.accuracy


def test_a_path_is_compared_with_its_ends(dataset: Dataset, seeded: Seeded, line: type) -> None:
    fixed, moving = of_model(seeded(1)), of_model(seeded(2))
    points = (0.0, 0.3, 1.0)
    seen: list[float] = []
    found = path_ensemble(
        seeded(0), line(fixed, moving), plain, dataset, dataset.test, points, on_point=lambda s: seen.append(s["t"])
    )
    labels = dataset.test.labels.numpy()
    each = [network_probabilities(interpolate(fixed, moving, t), dataset, dataset.test.images) for t in points]
    assert found.path.loss == pytest.approx(log_loss(labels, np.mean(each, axis=0), labels=range(3)), rel=1e-5)
    assert found.ends.loss == pytest.approx(
        log_loss(labels, np.mean([each[0], each[2]], axis=0), labels=range(3)), rel=1e-5
    )
    assert [one.loss for one in found.singles] == pytest.approx(
        [log_loss(labels, p, labels=range(3)) for p in each], rel=1e-5
    )
    assert (found.path.members, found.ends.members, found.singles[0].members) == (3, 2, 1)
    assert seen == list(points)
    assert found.points == points


def test_every_member_is_corrected_with_its_own_weights(dataset: Dataset, seeded: Seeded, line: type) -> None:
    states = [of_model(seeded(seed)) for seed in (1, 2, 3)]
    asked = []

    def replaced(state: State, weights: tuple[float, float]) -> State:
        asked.append(tuple(weights))
        return states[2]

    found = path_ensemble(seeded(0), line(states[0], states[1]), replaced, dataset, dataset.test, (0, 0.25, 1))
    assert asked == [(1, 0), (0.75, 0.25), (0, 1)]
    alone = ensemble(seeded(0), [states[2]], dataset, dataset.test)
    assert found.path.loss == found.ends.loss == pytest.approx(alone.loss, rel=1e-12)


@pytest.mark.parametrize("points", [(), (0.0,), (0.0, 0.5), (0.5, 1.0), (0.0, 0.7, 0.3, 1.0), (0.0, 0.5, 0.5, 1.0)])
def test_points_that_do_not_lead_from_end_to_end_are_refused(
    dataset: Dataset, seeded: Seeded, line: type, points: tuple[float, ...]
) -> None:
    state = of_model(seeded(1))
    with pytest.raises(UserError, match="at least two points, increasing from 0 to 1"):
        path_ensemble(seeded(0), line(state, state), plain, dataset, dataset.test, points)


def test_nothing_to_average_is_refused(dataset: Dataset, seeded: Seeded) -> None:
    with pytest.raises(UserError, match="an ensemble of no network"):
        ensemble(seeded(0), [], dataset, dataset.test)
    with pytest.raises(UserError, match="no image to predict"):
        ensemble(seeded(0), [of_model(seeded(1))], dataset, dataset.test.select(torch.arange(0)))


def test_a_diverged_member_is_shown_as_such(dataset: Dataset, seeded: Seeded) -> None:
    good, bad = of_model(seeded(1)), of_model(seeded(2))
    bad["4.bias"][:] = torch.nan
    found = ensemble(seeded(0), [good, bad], dataset, dataset.test)
    assert math.isnan(found.loss)
    assert math.isnan(found.calibration_error)
    assert math.isnan(found.brier)
