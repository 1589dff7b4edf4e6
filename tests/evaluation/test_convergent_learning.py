"""Correlations, matchings, sparse prediction and clusters against numpy, scikit-learn and brute force."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.cluster import SpectralClustering
from sklearn.linear_model import Lasso, LinearRegression
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.clustering import mixing, spectral_clusters
from lmc.evaluation.convergent_learning import NOBODY, UnitCorrelations, observed_groups, partners, unit_correlations
from lmc.evaluation.sparse_prediction import least_squares_errors, sparse_predictions
from lmc.seeding import generator
from lmc.state import State, of_model
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation

Seeded = Callable[..., nn.Module]


def normal(*shape: int, label: str = "normal") -> Tensor:
    return torch.randn(shape, generator=generator(0, label), dtype=torch.float64)


def correlated(rows: np.ndarray) -> np.ndarray:
    """numpy.corrcoef, 0 for constant rows, also with themselves."""
    dead = np.ptp(rows, axis=1) == 0
    filled = np.where(dead[:, None], np.arange(rows.shape[1]), rows)
    found = np.corrcoef(filled)
    found[dead], found[:, dead] = 0, 0
    return found


def hidden(state: State, dataset: Dataset, examples: int) -> np.ndarray:
    """(12, examples) activations of the two-layer network, in float64 without torch."""
    inputs = dataset.normalise(dataset.train.images[:examples]).flatten(1).numpy().astype(np.float64)
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    return np.maximum(inputs @ weights["1.weight"].T + weights["1.bias"], 0).T


def only(model: nn.Module, networks: tuple[State, State], dataset: Dataset, **settings: int) -> UnitCorrelations:
    symmetry = discover(model, dataset.normalise(dataset.train.images[:2]))
    (found,) = unit_correlations(model, symmetry, networks, dataset, **settings)
    return found


@pytest.mark.parametrize("batch_size", [7, 100])
def test_correlations_are_those_of_numpy_and_dead_units_correlate_with_nothing(
    dataset: Dataset, seeded: Seeded, batch_size: int
) -> None:
    fixed, moving = of_model(seeded(1)), of_model(seeded(2))
    fixed["1.bias"][3] = moving["1.bias"][5] = -100.0
    kept = {name: tensor.clone() for name, tensor in fixed.items()}
    found = only(seeded(0), (fixed, moving), dataset, examples=100, batch_size=batch_size)
    expected = correlated(np.concatenate([hidden(state, dataset, 100) for state in (fixed, moving)]))
    for matrix, block in (
        (found.fixed, expected[:12, :12]),
        (found.moving, expected[12:, 12:]),
        (found.between, expected[:12, 12:]),
    ):
        np.testing.assert_allclose(matrix.numpy(), block, atol=1e-5)
    assert [row.logical_not().nonzero().flatten().tolist() for row in found.live] == [[3], [5]]
    joint, second = found.of_live()
    live = np.delete(np.arange(24), [3, 17])
    np.testing.assert_allclose(joint.numpy(), expected[live][:, live], atol=1e-5)
    assert second.tolist() == [False] * 11 + [True] * 11
    assert all(torch.equal(kept[name], tensor) for name, tensor in fixed.items())


class Stream(nn.Module):
    """Five units that are seen behind two ReLUs."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(16, 5), nn.Linear(5, 3)
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator(seed, "stream", number)))

    def places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = torch.relu(self.enter(x.flatten(1)))
        return first, torch.relu(2 * first - 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.places(x)[1])


def test_the_places_of_a_group_are_pooled_with_every_unit_standardised_at_each(dataset: Dataset) -> None:
    nets = [Stream(0), Stream(1)]
    inputs = dataset.normalise(dataset.train.images)
    with torch.no_grad():
        places = [
            torch.cat(of_place, 1).T.double() for of_place in zip(*(net.places(inputs) for net in nets), strict=True)
        ]
    deviations = [place.std(1, keepdim=True, correction=0) for place in places]
    pooled = torch.cat(
        [(p - p.mean(1, keepdim=True)) / d.where(d > 0, 1.0) for p, d in zip(places, deviations, strict=True)], 1
    )
    expected = correlated(pooled.numpy())
    found = only(nets[0], (of_model(nets[0]), of_model(nets[1])), dataset)
    np.testing.assert_allclose(found.between.numpy(), expected[:5, 5:], atol=1e-5)
    np.testing.assert_allclose(found.fixed.numpy(), expected[:5, :5], atol=1e-5)


def test_what_is_asked_for_is_observed_and_what_cannot_be_is_refused(dataset: Dataset, seeded: Seeded) -> None:
    images = dataset.normalise(dataset.train.images[:2])
    model = seeded(0)
    assert observed_groups(model, discover(model, images)) == ["1"]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(UserError, match="nothing to correlate"):
        observed_groups(linear, discover(linear, images))


def of(between: Tensor, live: Tensor | None = None) -> UnitCorrelations:
    n = len(between)
    live = torch.ones(2, n, dtype=torch.bool) if live is None else live
    return UnitCorrelations(group="a", fixed=torch.eye(n), moving=torch.eye(n), between=between, live=live)


def test_both_matchings_are_those_of_brute_force() -> None:
    between = (normal(6, 6) / 3).clamp(-1, 1)
    found = partners(of(between))
    best = max(itertools.permutations(range(6)), key=lambda p: sum(between[i, j].item() for i, j in enumerate(p)))
    assert found.match.tolist() == list(best)
    np.testing.assert_allclose(found.matched, between[range(6), best])
    for side, table in enumerate((between, between.T)):
        assert found.best[side].tolist() == [max(range(6), key=row.__getitem__) for row in table.tolist()]
        assert found.highest[side].tolist() == [max(row) for row in table.tolist()]
        assert found.chosen[1 - side].tolist() == [found.best[side].tolist().count(unit) for unit in range(6)]
    assert found.highest[0].sum() >= found.matched.sum()


def test_dead_units_choose_nobody_and_are_not_chosen() -> None:
    between = -normal(4, 4).abs() / 9  # all negative: the 0 of a dead unit would be the highest
    live = torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]]).bool()
    found = partners(of(between * live[0][:, None] * live[1], live))
    assert found.best[0, 2] == found.best[1, 0] == NOBODY
    assert found.highest[0, 2] == found.highest[1, 0] == 0
    assert (found.highest[0][live[0]] < 0).all()
    assert found.chosen[0, 2] == found.chosen[1, 0] == 0
    assert found.chosen.sum(1).tolist() == [3, 3]
    nothing = partners(of(torch.zeros(4, 4), torch.zeros(2, 4, dtype=torch.bool)))
    assert nothing.best.unique().tolist() == [NOBODY]
    assert nothing.match.tolist() == [0, 1, 2, 3]


def test_a_permuted_copy_is_matched_one_to_one_and_predicted_from_single_units(
    dataset: Dataset, seeded: Seeded
) -> None:
    own = of_model(seeded(1))
    symmetry = discover(seeded(0), dataset.normalise(dataset.train.images[:2]))
    moved = Permutation.random(symmetry, generator(1, "permutation"))
    found = only(seeded(0), (own, moved.apply(own)), dataset)
    pairs = partners(found)
    (p,) = moved.values()
    assert pairs.match.tolist() == p.argsort().tolist()
    np.testing.assert_allclose(pairs.matched, 1, atol=1e-6)
    assert pairs.best[0].tolist() == pairs.match.tolist()
    assert pairs.chosen.unique().tolist() == [1]
    (alone,) = sparse_predictions(found.moving, found.between.T, [0.2], tolerance=1e-12)
    assert (alone.used == 1).all()
    np.testing.assert_allclose(alone.errors, 0.2**2, atol=1e-6)  # the weight is 1 - 0.2


def standardised(values: Tensor) -> Tensor:
    centred = values - values.mean(1, keepdim=True)
    return centred / centred.std(1, keepdim=True, correction=0)


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    """(9, 300) predictors that depend on each other and (5, 300) targets, standardised."""
    sources = normal(12, 300, label="sources")
    mixed = normal(14, 12, label="mixture") @ sources + 0.3 * normal(14, 300, label="noise")
    return standardised(mixed[:9].relu()), standardised(mixed[9:].relu())


def test_sparse_predictions_are_those_of_the_lasso_on_raw_data(samples: tuple[Tensor, Tensor]) -> None:
    predictors, targets = samples
    within, between = predictors @ predictors.T / 300, predictors @ targets.T / 300
    kept = within.clone(), between.clone()
    penalties = [0.03, 0.3, 0.003]
    solved = list(sparse_predictions(within, between, penalties, tolerance=1e-13))
    assert [found.penalty for found in solved] == [0.3, 0.03, 0.003]
    for found in solved:
        for target, weights, error, used in zip(targets, found.weights.T, found.errors, found.used, strict=True):
            lasso = Lasso(found.penalty, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(predictors.T, target)
            np.testing.assert_allclose(weights, lasso.coef_, atol=1e-6)
            residual = target.numpy() - lasso.predict(predictors.T)
            assert error.item() == pytest.approx((residual**2).mean(), abs=1e-6)
            assert used == np.count_nonzero(lasso.coef_)
    assert torch.equal(kept[0], within)
    assert torch.equal(kept[1], between)


def test_solutions_meet_the_optimality_conditions_and_the_gap_bounds_the_objective(
    samples: tuple[Tensor, Tensor],
) -> None:
    predictors, targets = samples
    within, between = predictors @ predictors.T / 300, predictors @ targets.T / 300

    def objective(weights: Tensor, penalty: float) -> Tensor:
        residual = targets - weights.T @ predictors
        return residual.square().mean(1) / 2 + penalty * weights.abs().sum(0)

    for exact, rough in zip(
        *(sparse_predictions(within, between, [0.2, 0.05], tolerance=tolerance) for tolerance in (1e-13, 1e-3)),
        strict=True,
    ):
        slope = between - within @ exact.weights
        active = exact.weights != 0
        np.testing.assert_allclose(slope[active], exact.penalty * exact.weights[active].sign(), atol=1e-6)
        assert (slope[~active].abs() <= exact.penalty + 1e-6).all()
        above = objective(rough.weights, rough.penalty) - objective(exact.weights, exact.penalty)
        assert (above <= rough.gaps + 1e-9).all()
        assert (rough.gaps <= 1e-3).all()


def test_more_units_predict_better_up_to_least_squares(samples: tuple[Tensor, Tensor]) -> None:
    predictors, targets = samples
    within, between = predictors @ predictors.T / 300, predictors @ targets.T / 300
    found = list(sparse_predictions(within, between, [1.0, 0.3, 0.1, 0.03, 1e-4], tolerance=1e-10))
    assert found[0].used.sum() == 0
    np.testing.assert_allclose(found[0].errors, 1)
    errors = torch.stack([one.errors for one in found])
    assert (errors.diff(dim=0) <= 1e-9).all()
    least = least_squares_errors(within, between)
    fitted = LinearRegression().fit(predictors.T, targets.T)
    expected = ((targets.T.numpy() - fitted.predict(predictors.T)) ** 2).mean(0)
    np.testing.assert_allclose(least, expected, atol=1e-9)
    np.testing.assert_allclose(errors[-1], least, atol=1e-4)


def test_predictors_may_be_the_same_or_missing() -> None:
    target = standardised(normal(1, 50))
    twins = torch.ones(2, 2, dtype=torch.float64)
    shared = torch.full((2, 1), 0.6, dtype=torch.float64)
    assert least_squares_errors(twins, shared).item() == pytest.approx(1 - 0.36)
    (found,) = sparse_predictions(twins, shared, [0.1], tolerance=1e-12)
    assert found.errors.item() == pytest.approx(1 - 0.36 + 0.1**2)  # the weights add up to 0.6 - 0.1
    none = target.new_zeros(0, 3)
    (found,) = sparse_predictions(target.new_zeros(0, 0), none, [0.1])
    assert found.errors.tolist() == [1, 1, 1]
    assert least_squares_errors(target.new_zeros(0, 0), none).tolist() == [1, 1, 1]


def planted(noise: float = 0.05) -> tuple[Tensor, Tensor]:
    """|correlation| of 40 units in 4 blocks of 10, shuffled, and their blocks."""
    blocks = torch.arange(4).repeat_interleave(10)[torch.randperm(40, generator=generator(0, "shuffle"))]
    rows = normal(4, 400, label="blocks")[blocks] + 0.7 * normal(40, 400, label="own")
    return torch.corrcoef(rows).abs() + noise, blocks


def test_planted_blocks_are_found_and_are_those_of_scikit_learn() -> None:
    affinity, blocks = planted()
    four, seven = spectral_clusters(affinity, [4, 7], generator(0, "clusters"))
    assert adjusted_rand_score(blocks, four) == 1
    assert len(seven.unique()) == 7
    theirs = SpectralClustering(4, affinity="precomputed", random_state=0).fit(affinity.numpy()).labels_
    assert adjusted_rand_score(theirs, four) == 1
    again = spectral_clusters(affinity, [4, 7], generator(0, "clusters"))
    assert all(torch.equal(one, other) for one, other in zip(again, (four, seven), strict=True))


def test_clusters_do_not_depend_on_the_order_of_the_units_or_the_diagonal() -> None:
    affinity, _ = planted()
    order = torch.randperm(40, generator=generator(1, "order"))
    (plain,) = spectral_clusters(affinity, [4], generator(0, "clusters"))
    (moved,) = spectral_clusters((affinity + torch.eye(40))[order][:, order], [4], generator(0, "clusters"))
    assert adjusted_rand_score(plain[order], moved) == 1


def test_units_without_neighbours_and_equal_units_are_clustered_too() -> None:
    affinity = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3), torch.ones(1, 1)).double()
    (labels,) = spectral_clusters(affinity, [3], generator(0, "clusters"))
    assert adjusted_rand_score([0, 0, 0, 1, 1, 1, 2], labels) == 1
    (labels,) = spectral_clusters(torch.ones(6, 6), [5], generator(0, "clusters"))
    assert len(labels) == 6


def test_how_mixed_clusters_are_is_counted_and_chance_is_exact() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    second = torch.tensor([0, 0, 1, 1, 1, 1, 0, 1]).bool()
    found = mixing(labels, second)
    assert (found.clusters, found.mixed, found.alone) == (3, (1 + 0 + 1) / 8, 3 / 8)
    dealt = [
        sum(min(own, size - own) for own, size in _counts(labels, chosen))
        for chosen in itertools.combinations(range(8), 5)
    ]
    assert found.by_chance == pytest.approx(np.mean(dealt) / 8)
    whole = mixing(torch.zeros(8, dtype=torch.int64), second)
    assert whole.mixed == whole.by_chance == 3 / 8


def _counts(labels: Tensor, chosen: tuple[int, ...]) -> list[tuple[int, int]]:
    return [
        (sum(unit in chosen for unit in own), len(own))
        for own in ((labels == k).nonzero().flatten().tolist() for k in range(3))
    ]
