from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from scipy.linalg import polar, sqrtm
from sklearn.cross_decomposition import CCA
from torch import Tensor, nn
from torch.nn import functional

from lmc import seeding
from lmc import state as states
from lmc.alignment.canonical_correlation import CanonicalCorrelation, SingularError, canonical_map
from lmc.alignment.problem import Problem
from lmc.errors import UserError
from lmc.state import State
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation
from lmc.symmetry.transform import LinearMap
from tests.alignment.conftest import outputs


class Residual(nn.Module):
    """A residual stream that is observed at two places; no unit is ever silent."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.enter, self.leave, self.out = nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1), nn.Linear(24, 3)

    def stages(self, x: Tensor) -> dict[str, list[Tensor]]:
        first = torch.tanh(self.norm(self.stem(x)))
        inner = torch.tanh(self.enter(first))
        second = torch.tanh(first + self.leave(inner))
        return {"stem": [first, second], "enter": [inner]}

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.stages(x)["stem"][1].flatten(1))
        return out


def one_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 3))


MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "one layer": (one_layer, (7,)),
    "residual": (Residual, (2, 2, 2)),
}


@cache
def pose(name: str) -> tuple[Problem, State, State]:
    """A problem with 300 images, and two networks drawn at random, in float64."""
    make, shape = MODELS[name]
    networks = []
    for seed in (0, 1):
        with seeding.isolated(seed, "networks"):
            model = make().eval().double()
        networks.append(states.of_model(model))
    images = torch.randn(300, *shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    symmetry = discover(model, torch.zeros(2, *shape, dtype=torch.float64))
    return Problem(model, symmetry, 0, torch.device("cpu"), lambda size: images.split(size)), networks[0], networks[1]


def samples(seed: int, units: int = 5, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of units with some signals in common, well conditioned."""
    draw = np.random.default_rng(seed)
    common = draw.normal(size=(count, units))
    strength = np.linspace(0.3, 3, units)
    sides = [(common * strength + draw.normal(size=(count, units))) @ draw.normal(size=(units, units)) for _ in "xy"]
    return sides[0], sides[1]


def covariances(x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    joint = np.cov(x.T, y.T, bias=True)
    n = x.shape[1]
    return [joint[:n, :n], joint[n:, n:], joint[:n, n:]]


@pytest.mark.parametrize("seed", range(4))
def test_correlations_and_directions_are_those_of_scikit_learn(seed: int) -> None:
    x, y = samples(seed)
    xx, yy, xy = covariances(x, y)
    make, read, correlations = (t.numpy() for t in canonical_map(*map(torch.from_numpy, (xx, yy, xy))))
    reference = CCA(n_components=5, scale=False, max_iter=100_000, tol=1e-14).fit(x, y)
    ours, theirs = reference.transform(x, y)
    expected = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(ours.T, theirs.T, strict=True)])
    assert np.allclose(correlations, expected, atol=1e-6)
    # M takes each of their directions in y to the one in x: M S_yy b = S_xx a, both of unit variance.
    for a, b, correlation in zip(reference.x_rotations_.T, reference.y_rotations_.T, expected, strict=True):
        a, b = a / np.sqrt(a @ xx @ a), b / np.sqrt(b @ yy @ b) * np.sign(correlation)
        assert np.allclose(make @ yy @ b, xx @ a, atol=1e-4 * np.linalg.norm(xx @ a))
    assert np.allclose(make @ read, np.eye(5), atol=1e-9)
    assert np.allclose(make @ yy @ make.T, xx, atol=1e-9 * np.abs(xx).max())


@pytest.mark.parametrize("seed", range(4))
def test_no_other_map_to_the_same_covariance_correlates_more(seed: int) -> None:
    xx, yy, xy = (torch.from_numpy(c) for c in covariances(*samples(seed)))
    _, _, correlations = canonical_map(xx, yy, xy)

    def inverse_root(c: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(c)
        return vectors @ torch.diag(values.rsqrt()) @ vectors.T

    white = inverse_root(xx) @ xy @ inverse_root(yy)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
        assert (rotation.T @ white).trace() <= correlations.sum() + 1e-12
    assert white.trace() < correlations.sum()  # the identity


@pytest.mark.parametrize("seed", range(4))
def test_an_invertible_map_of_activations_is_recovered(seed: int) -> None:
    y = samples(seed)[0]
    planted = np.random.default_rng(seed + 10).normal(size=(5, 5))
    make, read, correlations = canonical_map(*map(torch.from_numpy, covariances(y @ planted.T, y)))
    assert np.allclose(make.numpy(), planted, atol=1e-7)
    assert np.allclose(read.numpy(), np.linalg.inv(planted), atol=1e-6)
    assert np.allclose(correlations.numpy(), 1)


def test_a_planted_map_of_a_layer_is_undone() -> None:
    """One hidden layer by its pre-activations: the mapped network is the fixed one again, its function too."""
    problem, fixed, _ = pose("one layer")
    (group,) = problem.symmetry.groups
    planted = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moving = LinearMap(problem.symmetry, {group: (planted, torch.linalg.inv(planted))}).apply(fixed)
    assert not torch.allclose(outputs(problem, moving), outputs(problem, fixed), atol=1e-2)
    found = CanonicalCorrelation(kind="pre", gamma=0)(fixed, moving, problem)
    mapped = found.transform.apply(moving)
    assert all(torch.allclose(mapped[name], fixed[name], atol=1e-6) for name in fixed)
    assert torch.allclose(outputs(problem, mapped), outputs(problem, fixed), atol=1e-6)
    assert found.objective == pytest.approx(1)


@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("kind", ["pre", "post"])
@pytest.mark.parametrize("name", MODELS)
def test_planted_permutation_is_recovered(name: str, kind: str, scale: str) -> None:
    """Also with a ridge, which is the same in any order of the units."""
    problem, fixed, _ = pose(name)
    hidden = Permutation.random(problem.symmetry, torch.Generator().manual_seed(2))
    found = CanonicalCorrelation(kind=kind, scale=scale)(fixed, hidden.apply(fixed), problem)
    for group, order in hidden.inverse().items():
        make, read = found.transform[group]  # type: ignore[index]
        assert torch.allclose(make, torch.eye(len(order), dtype=make.dtype)[order], atol=1e-6)
        assert torch.allclose(read, make.T, atol=1e-6)
    generator = torch.Generator().manual_seed(3)
    noisy = {n: t + 0.02 * t.std() * torch.randn(t.shape, generator=generator) for n, t in fixed.items() if t.ndim > 1}
    near = CanonicalCorrelation(kind=kind, scale=scale)(fixed, hidden.apply({**fixed, **noisy}), problem)
    for group, order in hidden.inverse().items():
        make = near.transform[group][0]  # type: ignore[index]
        assert make.argmax(1).tolist() == order.tolist()
        assert not torch.allclose(make, torch.eye(len(order), dtype=make.dtype)[order], atol=1e-6)


@pytest.mark.parametrize("scale", ["absolute", "relative"])
@pytest.mark.parametrize("name", MODELS)
def test_the_covariances_are_averaged_over_the_places(name: str, scale: str) -> None:
    problem, fixed, moving = pose(name)
    assert problem.batches is not None
    (images,) = problem.batches(300)
    seen = []
    for state in (fixed, moving):
        model = MODELS[name][0]().eval().double()
        model.load_state_dict(state)
        with torch.no_grad():
            places = {"0": [model[:2](images)]} if name == "one layer" else model.stages(images)
        seen.append({k: [v.transpose(0, 1).flatten(1).numpy() for v in values] for k, values in places.items()})
    found = CanonicalCorrelation(gamma=0.05, scale=scale, batch_size=70)(fixed, moving, problem)
    for group, record in zip(problem.symmetry.groups, found.trace, strict=True):
        pairs = list(zip(seen[0][group], seen[1][group], strict=True))
        xx, yy, xy = (np.mean(parts, 0) for parts in zip(*(covariances(a.T, b.T) for a, b in pairs), strict=True))
        n = len(xx)
        xx, yy = (c + 0.05 * (np.trace(c) / n if scale == "relative" else 1) * np.eye(n) for c in (xx, yy))
        ours, theirs = sqrtm(xx), sqrtm(yy)
        white = np.linalg.inv(ours) @ xy @ np.linalg.inv(theirs)
        expected = ours @ polar(white)[0] @ np.linalg.inv(theirs)
        make, read = found.transform[group]  # type: ignore[index]
        assert np.allclose(make.numpy(), expected, rtol=1e-5, atol=1e-7)
        assert np.allclose(read.numpy(), np.linalg.inv(expected), rtol=1e-5, atol=1e-7)
        assert record["correlation"] == pytest.approx(np.linalg.svd(white)[1].mean(), rel=1e-6)
        assert record["condition"] == pytest.approx(np.linalg.cond(expected), rel=1e-4)
        assert (record["units"], record["places"]) == (n, len(pairs))
    units = sum(record["units"] for record in found.trace)
    weighted = sum(record["units"] * record["correlation"] for record in found.trace)
    assert found.objective == pytest.approx(weighted / units)


def test_mapped_units_correlate_more_than_those_that_stay() -> None:
    problem, fixed, moving = pose("one layer")
    assert problem.batches is not None
    (images,) = problem.batches(300)
    mapped = CanonicalCorrelation(kind="pre", gamma=0)(fixed, moving, problem).transform.apply(moving)
    seen = [(images @ side["0.weight"].T + side["0.bias"]).numpy() for side in (fixed, moving, mapped)]
    still, after = (np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(seen[0].T, s.T, strict=True)]) for s in seen[1:])
    assert after > still + 0.2
    # The definition: the covariance is that of `fixed`.
    assert np.allclose(np.cov(seen[2].T), np.cov(seen[0].T), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_the_units_does_not_matter(name: str) -> None:
    problem, fixed, moving = pose(name)
    shuffle = Permutation.random(problem.symmetry, torch.Generator().manual_seed(3))
    method = CanonicalCorrelation()
    found, again = method(fixed, moving, problem), method(fixed, shuffle.apply(moving), problem)
    assert again.objective == pytest.approx(found.objective)
    for group, order in shuffle.items():
        assert torch.allclose(again.transform[group][0], found.transform[group][0][:, order], atol=1e-7)  # type: ignore[index]
    one, other = found.transform.apply(moving), again.transform.apply(shuffle.apply(moving))
    assert torch.allclose(outputs(problem, one), outputs(problem, other), atol=1e-7)


def test_mapped_variances_stay_positive() -> None:
    """A map has negative entries; a running variance that it made negative would end in NaN."""
    problem, fixed, moving = pose("residual")
    spread = torch.linspace(0.01, 3, 6, dtype=torch.float64)
    moving = {**moving, "norm.running_var": spread}
    found = CanonicalCorrelation()(fixed, moving, problem).transform
    make = found["stem"][0]  # type: ignore[index]
    assert (make @ spread).min() < 0
    mapped = found.apply(moving)
    assert torch.allclose(mapped["norm.running_var"], make.square() @ spread)
    assert outputs(problem, mapped).isfinite().all()


def test_same_answer_again_and_nothing_handed_in_is_changed() -> None:
    problem, fixed, moving = pose("residual")
    before = [{n: t.clone() for n, t in side.items()} for side in (fixed, moving)]
    one, two = (CanonicalCorrelation()(fixed, moving, problem) for _ in range(2))
    assert one.trace == two.trace
    for group in problem.symmetry.groups:
        assert torch.equal(one.transform[group][0], two.transform[group][0])  # type: ignore[index]
    for side, old in zip((fixed, moving), before, strict=True):
        assert all(torch.equal(side[name], old[name]) for name in old)


def test_interrupted_it_returns_the_groups_that_are_done() -> None:
    problem, fixed, moving = pose("residual")
    whole = CanonicalCorrelation()(fixed, moving, problem)

    def stop(record: Mapping[str, float]) -> None:
        if "group" in record:
            raise KeyboardInterrupt

    part = CanonicalCorrelation()(fixed, moving, problem, stop)
    assert whole.complete
    assert not part.complete
    first, second = problem.symmetry.groups
    assert torch.equal(part.transform[first][0], whole.transform[first][0])  # type: ignore[index]
    assert torch.equal(part.transform[second][0], torch.eye(5))  # type: ignore[index]

    def at_once(record: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    still = CanonicalCorrelation()(fixed, moving, problem, at_once)
    assert (still.complete, still.trace) == (False, [])
    assert all(torch.equal(tensor, moving[name]) for name, tensor in still.transform.apply(moving).items())


def test_dependent_units_need_a_ridge() -> None:
    xx, yy, xy = (torch.from_numpy(c) for c in covariances(*samples(0)))
    xx[0] = xx[:, 0] = 0
    with pytest.raises(SingularError):
        canonical_map(xx, yy, xy)
    problem, fixed, moving = pose("one layer")
    dead = {**moving, "0.weight": moving["0.weight"].clone()}
    dead["0.weight"][2] = 0
    with pytest.raises(UserError, match=r"group '0' are linearly dependent.*raise alignment\.gamma from 0"):
        CanonicalCorrelation(gamma=0)(fixed, dead, problem)
    assert all(t.isfinite().all() for t in CanonicalCorrelation()(fixed, dead, problem).transform.apply(dead).values())
    with pytest.raises(UserError, match=r"linearly dependent .*more images"):
        CanonicalCorrelation(gamma=0, images=4)(fixed, moving, problem)


class Words(nn.Module):
    """An embedding, a layer, and an output layer that may be the embedding again."""

    def __init__(self, tied: str) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(9, 4), nn.Linear(4, 4)
        self.out = nn.Linear(4, 9, bias=False)
        if tied == "embedding":
            self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(torch.tanh(self.inner(self.embed(x))))
        return out


class Back(nn.Module):
    """An encoder whose transpose decodes."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.tanh(self.encode(x)), self.encode.weight.T)


class Again(nn.Module):
    """A layer that is used twice reads along one dimension and makes along the other: nothing is in conflict."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.twice, self.out = nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.enter(x))))))
        out: Tensor = self.out(x)
        return out


WORDS = torch.zeros(2, 3, dtype=torch.int64)
TIES: Mapping[str, tuple[nn.Module, Tensor, set[tuple[str, int]]]] = {
    # The positions of the stream are made by the embedding and read along the same dimension.
    "tied embedding": (Words("embedding"), WORDS, {("embed.weight", 1), ("out.weight", 1)}),
    "untied embedding": (Words("nothing"), WORDS, set()),
    "transposed decoder": (Back(), torch.zeros(2, 6), {("encode.weight", 0), ("encode.weight", 1)}),
    "layer used twice": (Again(), torch.zeros(2, 6), set()),
}


@pytest.mark.parametrize("name", TIES)
def test_weights_that_make_and_read_along_one_dimension_are_refused(name: str) -> None:
    model, example, expected = TIES[name]
    symmetry = discover(model, example)
    assert symmetry.both_ways == expected
    if expected:
        with pytest.raises(UserError, match=r"not defined for tied weights: dimension . of '\w+\.weight'"):
            CanonicalCorrelation().check(symmetry)
    else:
        CanonicalCorrelation().check(symmetry)


def test_of_tied_weights_only_a_map_with_transposes_keeps_what_is_tied() -> None:
    """Why they are refused: the tied tensor is mixed by N^T, and the layer that it makes units with would need M."""
    model, example, _ = TIES["transposed decoder"]
    symmetry = discover(model, example)
    (group,) = symmetry.groups
    weights, inputs = states.of_model(model), torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([2, 0, 3, 1])
    mirrored = LinearMap.symmetric(symmetry, {group: torch.eye(4)[order]}).apply(weights)
    assert torch.allclose(torch.func.functional_call(model, mirrored, (inputs,)), model(inputs), atol=1e-6)
    double = LinearMap(symmetry, {group: (2 * torch.eye(4), 0.5 * torch.eye(4))}).apply(weights)
    assert torch.equal(double["encode.weight"], 0.5 * weights["encode.weight"])
    assert torch.equal(double["encode.bias"], 2 * weights["encode.bias"])


def test_what_cannot_be_observed_is_refused() -> None:
    problem, fixed, moving = pose("one layer")
    with pytest.raises(UserError, match="no images were given"):
        CanonicalCorrelation()(fixed, moving, replace(problem, batches=None))
    with pytest.raises(UserError, match="no model was given"):
        CanonicalCorrelation()(fixed, moving, replace(problem, model=None))
    with pytest.raises(UserError, match="was given no images"):
        CanonicalCorrelation()(fixed, moving, replace(problem, batches=lambda size: []))
    with pytest.raises(UserError, match="NaN or infinity"):
        CanonicalCorrelation()(fixed, {**moving, "0.bias": torch.full((5,), torch.nan, dtype=torch.float64)}, problem)
    huge = {**moving, "0.weight": torch.full_like(moving["0.weight"], 1e308)}
    with pytest.raises(UserError, match=r"activations of group '0' are not finite"):
        CanonicalCorrelation(kind="pre")(fixed, huge, problem)
