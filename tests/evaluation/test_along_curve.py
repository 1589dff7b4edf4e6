"""Correlations along a path against numpy, on paths whose units are known to agree or not."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from lmc.alignment.activation_matching import ActivationMatching
from lmc.alignment.problem import Problem
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.along_curve import UnitCorrelations, correlations_along, observable, rematch
from lmc.evaluation.matching import matched_correlation
from lmc.state import State, interpolate, of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.structure import Symmetry

Seeded = Callable[..., nn.Module]


def plain(state: State, weights: object) -> State:
    return dict(state)


@pytest.fixture
def symmetry(dataset: Dataset, seeded: Seeded) -> Symmetry:
    """One group of 12 hidden units."""
    return discover(seeded(0), dataset.normalise(dataset.train.images[:2]))


def hidden(state: State, dataset: Dataset, examples: int) -> np.ndarray:
    """(examples, 12) activations of the two-layer network, in float64 without torch."""
    inputs = dataset.normalise(dataset.train.images[:examples]).flatten(1).numpy().astype(np.float64)
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    return np.maximum(inputs @ weights["1.weight"].T + weights["1.bias"], 0)


def correlated(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(12, 12) by numpy.corrcoef, 0 where a unit is constant."""
    found = np.zeros((ours.shape[1], theirs.shape[1]))
    for i, j in itertools.product(range(ours.shape[1]), range(theirs.shape[1])):
        if np.ptp(ours[:, i]) > 0 and np.ptp(theirs[:, j]) > 0:
            found[i, j] = np.corrcoef(ours[:, i], theirs[:, j])[0, 1]
    return found


def only(found: UnitCorrelations) -> np.ndarray:
    (values,) = found.units.values()
    return values.numpy()


def test_every_unit_has_the_correlation_of_numpy(
    dataset: Dataset, seeded: Seeded, symmetry: Symmetry, line: type
) -> None:
    fixed, moving = of_model(seeded(1)), of_model(seeded(2))
    seen: list[dict[str, float]] = []
    found = correlations_along(
        seeded(0), symmetry, line(fixed, moving), plain, dataset, (0.25, 0.5), examples=100, batch_size=30,
        on_point=lambda step: seen.append(dict(step)),
    )  # fmt: skip
    for point, t in zip(found, (0.25, 0.5), strict=True):
        between = hidden(interpolate(fixed, moving, t), dataset, 100)
        for side, end in ((point.fixed, fixed), (point.moving, moving)):
            expected = correlated(hidden(end, dataset, 100), between).diagonal()
            np.testing.assert_allclose(only(side), expected, atol=1e-5)
            assert side.total == pytest.approx(expected.mean(), abs=1e-6)
            assert list(side.groups.values()) == pytest.approx([expected.mean()], abs=1e-6)
        assert point.t == t
    assert [step["t"] for step in seen] == [0.25, 0.5]
    assert [step["moving"] for step in seen] == [point.moving.total for point in found]


def test_at_an_end_all_live_units_correlate_fully_with_it(
    dataset: Dataset, seeded: Seeded, symmetry: Symmetry, line: type
) -> None:
    fixed, moving = of_model(seeded(1)), of_model(seeded(2))
    fixed["1.bias"][3] = -100.0  # never active: dead
    start, end = correlations_along(seeded(0), symmetry, line(fixed, moving), plain, dataset, (0, 1))
    (live,) = start.fixed.live.values()
    assert not live[3]
    np.testing.assert_allclose(only(start.fixed)[live.numpy()], 1, atol=1e-6)
    assert only(start.fixed)[3] == 0
    (all_live,) = end.moving.live.values()
    np.testing.assert_allclose(only(end.moving)[all_live.numpy()], 1, atol=1e-6)
    # What the ends are to each other does not depend on the side from which it is looked at.
    np.testing.assert_allclose(only(start.moving), only(end.fixed), atol=1e-9)
    assert start.moving.total < 0.9
    inputs = [images for images, _ in dataset.batches(dataset.train, 500)]
    neighbour = matched_correlation(seeded(0), symmetry, (fixed, moving), inputs)
    assert start.moving.total == pytest.approx(neighbour, abs=1e-6)


def test_a_permuted_copy_is_fully_correlated_all_along_once_it_is_aligned(
    dataset: Dataset, seeded: Seeded, symmetry: Symmetry, line: type
) -> None:
    own = of_model(seeded(1))
    moved = Permutation.random(symmetry, torch.Generator().manual_seed(1))
    points = (0, 0.3, 0.5, 1)
    apart = line(own, moved.apply(own))
    together = line(own, moved.inverse().apply(moved.apply(own)))
    for point in correlations_along(seeded(0), symmetry, together, plain, dataset, points):
        for side in (point.fixed, point.moving):
            (live,) = side.live.values()
            assert live.sum() > 6
            np.testing.assert_allclose(only(side)[live.numpy()], 1, atol=1e-6)
    unaligned = correlations_along(seeded(0), symmetry, apart, plain, dataset, points)
    assert unaligned[-1].fixed.total < 0.8
    assert unaligned[2].moving.total < 0.95


def test_rematching_the_aligned_midpoint_gains_nothing(
    dataset: Dataset, seeded: Seeded, symmetry: Symmetry, line: type
) -> None:
    own = of_model(seeded(1))
    for side in rematch(seeded(0), symmetry, line(own, own), plain, dataset):
        assert side.gain == pytest.approx(0, abs=1e-9)
        assert side.total(side.moved) == 0
        assert side.units == dict.fromkeys(symmetry.groups, 12)


def test_rematching_finds_what_a_permuted_network_hides(
    dataset: Dataset, seeded: Seeded, symmetry: Symmetry, line: type
) -> None:
    """At t = 1 the network is the permuted copy: the end at 0 gets it back, the end at 1 changes nothing."""
    own = of_model(seeded(1))
    moved = Permutation.random(symmetry, torch.Generator().manual_seed(1))
    steps: list[dict[str, float]] = []
    fixed, moving = rematch(
        seeded(0), symmetry, line(own, moved.apply(own)), plain, dataset, 1.0, on_end=lambda s: steps.append(dict(s))
    )
    live = np.ptp(hidden(own, dataset, 120), axis=0) > 0
    assert fixed.total(fixed.after) == pytest.approx(live.mean(), abs=1e-6)
    assert fixed.total(fixed.before) < 0.5
    (p,) = moved.values()
    assert live.all()  # else a dead unit could stand anywhere
    assert fixed.total(fixed.moved) == pytest.approx((p != torch.arange(12)).double().mean().item())
    assert moving.total(moving.moved) == 0
    assert [step["gain"] for step in steps] == [fixed.gain, moving.gain]


def test_rematching_is_the_activation_matching_and_its_numbers_are_those_of_numpy(
    dataset: Dataset, seeded: Seeded, symmetry: Symmetry, line: type
) -> None:
    fixed, moving = of_model(seeded(1)), of_model(seeded(2))
    found = rematch(seeded(0), symmetry, line(fixed, moving), plain, dataset, examples=100, batch_size=30)
    middle = interpolate(fixed, moving, 0.5)
    problem = Problem(
        seeded(0), symmetry, 0, torch.device("cpu"), lambda size: (x for x, _ in dataset.batches(dataset.train, size))
    )
    for side, end in zip(found, (fixed, moving), strict=True):
        expected = ActivationMatching(images=100)(end, middle, problem)
        (p,) = expected.permutation.values()
        table = correlated(hidden(end, dataset, 100), hidden(middle, dataset, 100))
        assert side.total(side.before) == pytest.approx(table.diagonal().mean(), abs=1e-6)
        assert side.total(side.after) == pytest.approx(table[np.arange(12), p.numpy()].mean(), abs=1e-6)
        assert side.total(side.after) == pytest.approx(expected.objective, abs=1e-9)
        assert side.total(side.moved) == pytest.approx((p != torch.arange(12)).double().mean().item())
        assert side.gain >= 0


def test_the_correction_is_made_at_the_ends_too(
    dataset: Dataset, seeded: Seeded, symmetry: Symmetry, line: type
) -> None:
    states = [of_model(seeded(seed)) for seed in (1, 2, 3)]
    asked = set()

    def replaced(state: State, weights: tuple[float, float]) -> State:
        asked.add(tuple(weights))
        return states[2]

    (point,) = correlations_along(seeded(0), symmetry, line(states[0], states[1]), replaced, dataset, (0.25,))
    (live,) = point.fixed.live.values()
    np.testing.assert_allclose(only(point.fixed)[live.numpy()], 1, atol=1e-6)
    assert asked == {(1, 0), (0.75, 0.25), (0, 1)}


class Residual(nn.Module):
    """A stream of 5 units that appears behind two ReLUs, and 4 units between."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.enter, self.inner, self.back, self.leave = (
            nn.Linear(*sides) for sides in ((16, 5), (5, 4), (4, 5), (5, 3))
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *_, second = self.places(x)
        return self.leave(second)

    def places(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        first = torch.relu(self.enter(x.flatten(1)))
        inner = torch.relu(self.inner(first))
        return first, inner, torch.relu(first + self.back(inner))


def test_places_are_averaged_inside_a_group_and_units_over_all_groups(dataset: Dataset, line: type) -> None:
    one, other = Residual(0), Residual(1)
    inputs = dataset.normalise(dataset.train.images)
    symmetry = discover(one, inputs[:2])
    with torch.no_grad():
        tables = [
            correlated(ours.double().numpy(), theirs.double().numpy())
            for ours, theirs in zip(one.places(inputs), other.places(inputs), strict=True)
        ]
    first, inner, second = (table.diagonal() for table in tables)
    expected = {5: (first + second) / 2, 4: inner}
    path = line(of_model(one), of_model(other))
    (point,) = correlations_along(one, symmetry, path, plain, dataset, (1,))
    assert {len(values) for values in point.fixed.units.values()} == {5, 4}
    for values in point.fixed.units.values():
        np.testing.assert_allclose(values.numpy(), expected[len(values)], atol=1e-5)
    total = np.concatenate(list(expected.values())).mean()
    assert point.fixed.total == pytest.approx(total, abs=1e-6)
    assert point.fixed.total != pytest.approx(np.mean(list(point.fixed.groups.values())), abs=1e-3)
    again, _ = rematch(one, symmetry, path, plain, dataset, 1.0)
    assert again.total(again.before) == pytest.approx(total, abs=1e-6)
    best = max(
        sum((tables[0] + tables[2])[i, j] / 2 for i, j in enumerate(p)) for p in itertools.permutations(range(5))
    )
    (stream,) = (name for name, units in again.units.items() if units == 5)
    assert again.after[stream] == pytest.approx(best / 5, abs=1e-6)


def test_a_network_without_observable_units_is_refused(dataset: Dataset) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    symmetry = discover(net, dataset.normalise(dataset.train.images[:2]))
    with pytest.raises(UserError, match="nothing to correlate") as caught:
        observable(symmetry)
    assert "\n" not in str(caught.value)
