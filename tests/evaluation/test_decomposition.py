"""Both terms of a barrier against closed forms, numpy, and the barrier that the path evaluation measures."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from lmc.analysis.decomposition import Decomposition
from lmc.curve.linear import Linear
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.decomposition import decompose, terms
from lmc.evaluation.path import PathEvaluation
from lmc.results import path_statistics
from lmc.seeding import generator
from lmc.state import State, interpolate, of_model
from tests.analysis.subjects import plain, subject

Seeded = Callable[..., nn.Module]
draw = partial(torch.randn, dtype=torch.float64)


def test_logits_known_by_hand():
    """Two classes, label 0: l(z) = log(1 + exp(z_1 - z_0)), with the differences 2, -4 and 3 at t = 1/4."""
    fixed, moving, merged = (torch.tensor([[0.0, s]]) for s in (2.0, -4.0, 3.0))
    found = terms(fixed, moving, merged, torch.tensor([0]), 0.25)
    loss = np.log1p(np.exp([2.0, -4.0, 3.0, 0.75 * 2 - 0.25 * 4]))
    assert found.linearisation.item() == pytest.approx(loss[2] - loss[3], rel=1e-12)
    assert found.jensen.item() == pytest.approx(loss[3] - 0.75 * loss[0] - 0.25 * loss[1], rel=1e-12)
    assert (found.fixed.item(), found.moving.item(), found.merged.item()) == pytest.approx(tuple(loss[:3]), rel=1e-12)


@pytest.mark.parametrize("classes", [2, 3, 50])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_jensens_term_is_never_positive_and_both_sum_to_the_barrier(classes: int, scale: float):
    rng = generator(0, "logits", classes)
    fixed, moving, merged = (scale * draw(2000, classes, generator=rng) for _ in range(3))
    labels = torch.randint(0, classes, (2000,), generator=rng)
    for t in (0.1, 0.5, 0.9):
        found = terms(fixed, moving, merged, labels, t)
        assert found.jensen.max() <= 1e-12 * scale
        assert found.jensen.min() < 0
        barrier = found.merged - ((1 - t) * found.fixed + t * found.moving)
        torch.testing.assert_close(found.linearisation + found.jensen, barrier, rtol=0, atol=1e-12 * scale)


def test_linear_logits_leave_jensens_term_alone():
    """A linear network has logits that are linear in its weights: the whole barrier is Jensen's, hence not positive."""
    rng = generator(0, "linear")
    fixed, moving, inputs = draw(4, 5, generator=rng), draw(4, 5, generator=rng), draw(300, 5, generator=rng)
    merged = torch.lerp(fixed, moving, 0.3)
    labels = torch.randint(0, 4, (300,), generator=rng)
    found = terms(inputs @ fixed.T, inputs @ moving.T, inputs @ merged.T, labels, 0.3)
    assert found.linearisation.abs().max() < 1e-12
    assert found.jensen.mean() < -0.01


def test_at_the_ends_and_between_equal_networks_there_is_nothing():
    rng = generator(0, "ends")
    fixed, moving = draw(50, 3, generator=rng), draw(50, 3, generator=rng)
    labels = torch.randint(0, 3, (50,), generator=rng)
    for t, ends in ((0.0, (fixed, moving, fixed)), (1.0, (fixed, moving, moving)), (0.5, (fixed, fixed, fixed))):
        found = terms(*ends, labels, t)
        assert found.linearisation.abs().max() < 1e-12
        assert found.jensen.abs().max() < 1e-12


@pytest.mark.parametrize("norm", [False, True])
def test_the_sum_is_the_barrier_that_the_path_measures(dataset: Dataset, seeded: Seeded, norm: bool, tmp_path: Path):
    fixed, moving = (_scaled(of_model(seeded(seed, norm=norm))) for seed in (1, 2))
    path = Linear().path(fixed, moving, None)
    asked = []

    def correction(state: State, weights: tuple[float, float]) -> State:
        asked.append(tuple(weights))
        return {**state, "1.bias": state["1.bias"] + 0.3}

    of = subject(seeded(0, norm=norm), [fixed, moving], path, dataset, correction)
    findings = Decomposition(grid=5)(of, tmp_path, lambda numbers: None)
    assert set(asked) == {(1, 0), (0, 1), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75)}
    raw = PathEvaluation(grid=5).measure(of.model, path, correction, dataset)
    for split in ("train", "test"):
        points = {point.t: point.loss for point in raw if point.split == split}
        mine = {(f.what, f.more.get("t")): f.value for f in findings if f.split == split}
        for t in (0.25, 0.5, 0.75):
            measured = points[t] - (1 - t) * points[0] - t * points[1]
            assert abs(measured) > 1e-3
            assert mine["barrier", t] == pytest.approx(measured, abs=1e-6)
            assert mine["sum_of_terms", t] == pytest.approx(measured, abs=1e-6)
            assert mine["jensen_term", t] < 0
        statistics = path_statistics(list(points), list(points.values()))
        assert mine["barrier", None] == pytest.approx(statistics["barrier_midpoint"], abs=1e-6)
        assert mine["linearisation_error", None] == mine["linearisation_error", 0.5]


def test_every_kept_example_has_the_terms_of_numpy(dataset: Dataset, seeded: Seeded, tmp_path: Path):
    fixed, moving = (_scaled(of_model(seeded(seed))) for seed in (1, 2))
    of = subject(seeded(0), [fixed, moving], Linear().path(fixed, moving, None), dataset)
    findings = Decomposition(kept=40, batch_size=7)(of, tmp_path, lambda numbers: None)
    with (tmp_path / "examples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for split, images in of.splits.images.items():
        z_f, z_m, z_t = (_logits(state, dataset, split) for state in (fixed, moving, interpolate(fixed, moving, 0.5)))
        labels = images.labels.numpy()
        between = _losses((z_f + z_m) / 2, labels)
        linearisation = _losses(z_t, labels) - between
        jensen = between - (_losses(z_f, labels) + _losses(z_m, labels)) / 2
        mine = [row for row in rows if row["split"] == split]
        numbers = [int(row["example"]) for row in mine]
        assert numbers == sorted(set(numbers))
        assert len(numbers) == min(40, len(images))
        assert [int(row["label"]) for row in mine] == labels[numbers].tolist()
        assert {row["t"] for row in mine} == {"0.5"}
        columns = {"linearisation": linearisation, "jensen": jensen, "merged": _losses(z_t, labels)}
        for column, expected in columns.items():
            np.testing.assert_allclose([float(row[column]) for row in mine], expected[numbers], atol=2e-5)
        found = {f.what: f.value for f in findings if f.split == split and not f.more}
        assert found["linearisation_error"] == pytest.approx(linearisation.mean(), abs=1e-5)
        assert found["jensen_term"] == pytest.approx(jensen.mean(), abs=1e-5)
        assert found["positive_linearisation_error"] == pytest.approx((linearisation > 0).mean())
        assert 0 < found["positive_linearisation_error"] < 1


def test_what_is_kept_is_stratified_and_no_batch_size_matters(dataset: Dataset, seeded: Seeded):
    fixed, moving = (_scaled(of_model(seeded(seed))) for seed in (1, 2))
    merged = interpolate(fixed, moving, 0.5)
    model = seeded(0)
    before = of_model(model)
    one, other = (
        decompose(model, (fixed, moving), merged, 0.5, dataset, dataset.train, kept=9, batch_size=size)
        for size in (1000, 11)
    )
    assert torch.equal(one.kept, other.kept)
    chosen = dataset.train.first(9)
    assert sorted(dataset.train.labels[one.kept].tolist()) == sorted(chosen.labels.tolist())
    assert one.linearisation == pytest.approx(other.linearisation, abs=1e-7)
    torch.testing.assert_close(one.terms.jensen, other.terms.jensen, rtol=1e-4, atol=1e-6)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in of_model(model).items())


def test_bad_settings_are_refused(dataset: Dataset, seeded: Seeded):
    with pytest.raises(UserError, match="a grid of 4 points"):
        Decomposition(grid=4)
    state = of_model(seeded(0))
    with pytest.raises(UserError, match="there is no image"):
        decompose(seeded(0), (state, state), state, 0.5, dataset, dataset.train.select(torch.tensor([], dtype=int)))


def test_its_steps_are_the_points_between(dataset: Dataset, seeded: Seeded, tmp_path: Path):
    fixed, moving = (of_model(seeded(seed)) for seed in (1, 2))
    of = subject(seeded(0), [fixed, moving], Linear().path(fixed, moving, None), dataset, plain)
    option, steps = Decomposition(grid=7), []
    first = option(of, tmp_path, steps.append)
    assert [step["t"] for step in steps] == [t / 6 for t in range(1, 6)]
    assert option.steps(of) == len(steps)
    content = (tmp_path / "examples.csv").read_bytes()
    assert option(of, tmp_path, steps.append) == first
    assert (tmp_path / "examples.csv").read_bytes() == content
    with (tmp_path / "examples.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 1 + 5 * (120 + 47)


def _scaled(state: State) -> State:
    """Larger weights, so that there is a barrier."""
    return {name: 3 * tensor if name.endswith("weight") else tensor for name, tensor in state.items()}


def _logits(state: State, dataset: Dataset, split: str) -> np.ndarray:
    """(N, 3) of the two-layer network, in float64 without torch."""
    inputs = dataset.normalise(getattr(dataset, split).images).flatten(1).double().numpy()
    weights = {name: tensor.double().numpy() for name, tensor in state.items()}
    hidden = np.maximum(inputs @ weights["1.weight"].T + weights["1.bias"], 0)
    return hidden @ weights["4.weight"].T + weights["4.bias"]


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(labels)), labels]
