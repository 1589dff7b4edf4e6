"""Products, eigenvalues and traces against dense Hessians in float64, and predictions on losses of known order."""

import copy
import csv
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from lmc.analysis.curvature import Curvature
from lmc.curve.linear import Linear
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.curvature import Hessian, mean_and_error, predicted_barrier, probe, top_eigenvalue
from lmc.evaluation.measure import measure
from lmc.seeding import generator, isolated
from lmc.state import State, interpolate, of_model
from tests.analysis.subjects import data, subject

Seeded = Callable[..., nn.Module]


def dense(model: nn.Module, state: State, dataset: Dataset, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient (P,) and Hessian (P, P) of the mean loss all rows at once, in float64, on a copy in evaluation mode."""
    chosen = dataset.train.first(count)
    own = copy.deepcopy(model).double().eval()
    own.load_state_dict(state)
    own.fused = False
    trained = {name: p.detach() for name, p in own.named_parameters() if p.requires_grad}
    sizes = [p.numel() for p in trained.values()]

    def loss(point: Tensor) -> Tensor:
        parts = {name: part.view_as(trained[name]) for name, part in zip(trained, point.split(sizes), strict=True)}
        logits = torch.func.functional_call(own, parts, (dataset.normalise(chosen.images).double(),))
        return cross_entropy(logits, chosen.labels)

    point = torch.cat([p.flatten() for p in trained.values()])
    gradient = torch.func.grad(loss)
    return gradient(point).numpy(), torch.func.jacrev(gradient)(point).numpy()


class Attention(nn.Module):
    """One head of fused attention over the rows of an image, a tied weight, and a frozen bias."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4)
        self.again.weight = self.inner.weight
        self.again.bias.requires_grad_(False)
        self.leave = nn.Linear(4, 3)
        self.fused = True

    def forward(self, x: Tensor) -> Tensor:
        values, tokens = x.squeeze(1), self.inner(x.squeeze(1))
        if self.fused:
            mixed = scaled_dot_product_attention(tokens, tokens, values)
        else:
            mixed = (tokens @ tokens.transpose(1, 2) / 2).softmax(2) @ values
        return self.leave(self.again(mixed).mean(1))


def attention(seed: int) -> nn.Module:
    with isolated(seed, "attention"):
        return Attention()


def normed(seed: int, seeded: Seeded) -> tuple[nn.Module, State]:
    """A network whose BatchNorm has seen other images than these."""
    model = seeded(seed, norm=True)
    state = of_model(model)
    state["2.running_mean"] += torch.rand(12, generator=generator(seed, "mean"))
    state["2.running_var"] += torch.rand(12, generator=generator(seed, "variance"))
    return model, state


def networks(seeded: Seeded) -> dict[str, tuple[nn.Module, State]]:
    plain, odd = seeded(1), attention(1)
    return {"plain": (plain, of_model(plain)), "norm": normed(1, seeded), "attention": (odd, of_model(odd))}


@pytest.mark.parametrize("name", ["plain", "norm", "attention"])
def test_a_product_is_that_of_the_dense_hessian(dataset: Dataset, seeded: Seeded, name: str):
    model, state = networks(seeded)[name]
    gradient, matrix = dense(model, state, dataset, 60)
    hessian = Hessian(model, state, dataset, dataset.train.first(60), batch_size=25)
    assert hessian.size == len(matrix)
    vector = torch.randn(hessian.size, generator=generator(0, "vector"))
    found = hessian.derivatives(vector)
    expected = matrix @ vector.double().numpy()
    np.testing.assert_allclose(found.product.numpy(), expected, atol=1e-5 * np.abs(expected).max())
    assert found.product.dtype == torch.float64
    assert found.slope == pytest.approx(gradient @ vector.double().numpy(), rel=1e-4)
    batches = dataset.batches(dataset.train.first(60), 60)
    assert found.loss == pytest.approx(measure(model, state, batches).loss, rel=1e-6)


def test_a_product_is_a_difference_of_gradients(dataset: Dataset, seeded: Seeded):
    model, state = networks(seeded)["plain"]
    vector = torch.randn(243, generator=generator(0, "vector"), dtype=torch.float64)
    step, ends = 1e-5, []
    for sign in (1, -1):
        moved, start = {}, 0
        for key, tensor in state.items():
            part = vector[start : start + tensor.numel()].view_as(tensor)
            moved[key], start = tensor.double() + sign * step * part, start + tensor.numel()
        ends.append(dense(model, moved, dataset, 60)[0])
    found = Hessian(model, state, dataset, dataset.train.first(60)).product(vector)
    np.testing.assert_allclose(found.numpy(), (ends[0] - ends[1]) / (2 * step), atol=1e-5)


def test_nothing_is_changed_and_the_batch_size_does_not_matter(dataset: Dataset, seeded: Seeded):
    model, state = normed(1, seeded)
    before = [of_model(model), {name: tensor.clone() for name, tensor in state.items()}]
    images = dataset.train.first(50)
    vector = torch.randn(267, generator=generator(0, "vector"))
    one, other = (Hessian(model, state, dataset, images, batch_size=size).product(vector) for size in (7, 1000))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert model.training
    for now, then in zip((of_model(model), state), before, strict=True):
        assert all(torch.equal(now[name], then[name]) for name in then)


def test_lanczos_finds_the_eigenvalue_of_numpy():
    for seed, size in ((0, 1), (1, 2), (2, 40), (3, 200)):
        draws = np.random.default_rng(seed)
        matrix = draws.normal(size=(size, size))
        matrix = matrix + matrix.T
        values = np.linalg.eigvalsh(matrix)
        given = torch.from_numpy(matrix)
        start = torch.randn(size, generator=generator(seed, "start"))
        calls: list[Tensor] = []

        def product(vector: Tensor, given: Tensor = given, calls: list[Tensor] = calls) -> Tensor:
            calls.append(vector)
            return given @ vector.double()

        found = top_eigenvalue(product, start, iterations=size, tolerance=1e-5)
        assert found.value == pytest.approx(values[-1], rel=1e-6)
        assert found.residual < 1e-4
        assert len(calls) == found.iterations + 1
        last = calls[-1].double().numpy()
        residual = np.linalg.norm(matrix @ last - found.value * last) / abs(found.value)
        assert found.residual == pytest.approx(residual, rel=0.05, abs=1e-6)


def test_lanczos_that_is_stopped_says_how_far_it_came():
    values = torch.linspace(0.9, 1, 500, dtype=torch.float64)
    start = torch.ones(500)
    found = top_eigenvalue(lambda vector: values * vector.double(), start, iterations=4, tolerance=1e-6)
    assert found.iterations == 4
    assert 1e-6 < found.residual < 0.1
    assert abs(found.value - 1) <= found.residual * found.value + 0.1
    assert found.value < 1


def test_the_largest_eigenvalue_is_the_most_positive_one():
    values = torch.tensor([-9.0, -3.0, 0.5, 2.0], dtype=torch.float64)
    found = top_eigenvalue(lambda vector: values * vector.double(), torch.ones(4), tolerance=1e-6)
    assert found.value == pytest.approx(2, rel=1e-5)
    nothing = top_eigenvalue(lambda vector: 0 * vector.double(), torch.ones(4))
    assert (nothing.value, nothing.residual) == (0, 0)


def test_probes_are_signs_and_their_mean_is_the_trace():
    size = 30
    matrix = np.random.default_rng(0).normal(size=(size, size))
    matrix = matrix + matrix.T
    draws = [probe(size, 5, number).double().numpy() for number in range(4000)]
    assert {value for draw in draws for value in draw} == {-1.0, 1.0}
    assert np.array_equal(draws[3], probe(size, 5, 3).double().numpy())
    mean, error = mean_and_error([draw @ matrix @ draw for draw in draws])
    off = 2 * (np.sum(matrix**2) - np.sum(np.diag(matrix) ** 2))
    assert error == pytest.approx(np.sqrt(off / 4000), rel=0.1)
    assert abs(mean - np.trace(matrix)) < 4 * error
    exact, none = mean_and_error([draw @ np.diag(np.diag(matrix)) @ draw for draw in draws[:5]])
    assert exact == pytest.approx(np.trace(matrix))
    assert none == pytest.approx(0, abs=1e-12)
    assert mean_and_error([1.0, 2.0, 6.0]) == (3.0, pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3)))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_prediction_is_exact_up_to_third_order(order: int):
    """A polynomial of s along the line, from s = 0 to s = 1: slopes and curvatures are its derivatives at the ends."""
    polynomial = np.polynomial.Polynomial(np.random.default_rng(order).normal(size=order + 1))
    slope, curvature = polynomial.deriv(), polynomial.deriv(2)
    found = predicted_barrier((slope(0), slope(1)), (curvature(0), curvature(1)))
    measured = polynomial(0.5) - (polynomial(0) + polynomial(1)) / 2
    assert found.barrier == found.first_order + found.second_order
    if order < 4:
        assert found.barrier == pytest.approx(measured, abs=1e-12)
    else:
        assert found.barrier != pytest.approx(measured, abs=1e-3)


class Quadratic(nn.Module):
    """The loss x^T A x / 2 + b^T x + c of its parameters x, whatever the image: cross-entropy of two logits."""

    def __init__(self) -> None:
        super().__init__()
        draws = np.random.default_rng(0)
        root = draws.normal(size=(5, 5))
        self.matrix = torch.from_numpy(root @ root.T - 2 * np.eye(5))
        self.linear = torch.from_numpy(draws.normal(size=5))
        self.place = nn.Parameter(torch.zeros(5))

    def loss(self, place: Tensor) -> Tensor:
        return place @ self.matrix @ place / 2 + self.linear @ place + 40

    def forward(self, inputs: Tensor) -> Tensor:
        # log(1 + exp(s)) = loss with s = log(exp(loss) - 1): class 0 has the logit 0, class 1 the logit s.
        loss = self.loss(self.place.double())
        return torch.stack([torch.zeros((), dtype=torch.float64), loss.expm1().log()]).expand(len(inputs), 2)


def test_on_a_quadratic_loss_everything_is_known(tmp_path: Path):
    """The barrier is -1/8 mu^T A mu: negative where the loss is convex along the line, positive where it is not."""
    model = Quadratic()
    values, vectors = np.linalg.eigh(model.matrix.numpy())
    assert values[0] < 0 < values[-1]
    for number, (way, sign) in enumerate(((vectors[:, 0], 1), (vectors[:, -1], -1))):
        fixed = {"place": torch.tensor(0.3 * vectors[:, 2], dtype=torch.float32)}
        moving = {"place": fixed["place"] + 1.5 * torch.tensor(way, dtype=torch.float32)}
        of = subject(model, [fixed, moving], Linear().path(fixed, moving, None), data(), symmetry=object())
        folder = tmp_path / str(number)
        folder.mkdir()
        findings = Curvature(images=4, tolerance=1e-4)(of, folder, lambda numbers: None)
        found = {(f.what, f.metric): f.value for f in findings if not f.more}
        mu = (moving["place"] - fixed["place"]).double()
        whole = -float(mu @ model.matrix @ mu) / 8
        slopes = [float(mu @ (model.matrix @ end["place"].double() + model.linear)) for end in (fixed, moving)]
        assert np.sign(whole) == sign
        assert found["predicted_barrier", "loss"] == pytest.approx(whole, rel=1e-4)
        assert found["measured_barrier", "loss"] == pytest.approx(whole, abs=1e-4)
        assert found["first_order", "loss"] == pytest.approx((slopes[0] - slopes[1]) / 4, rel=1e-4)
        assert found["second_order", "loss"] == pytest.approx(-whole, rel=1e-4)
        assert found["top_eigenvalue", "curvature"] == pytest.approx(values[-1], rel=1e-4)
        error = found["trace", "standard_error"]
        assert abs(found["trace", "curvature"] - values.sum()) < 4 * error


def pair(seeded: Seeded) -> tuple[State, State]:
    return normed(1, seeded)[1], normed(2, seeded)[1]


def test_the_numbers_along_a_path_are_those_of_the_dense_hessians(dataset: Dataset, seeded: Seeded, tmp_path: Path):
    fixed, moving = pair(seeded)
    asked = []

    def correction(state: State, weights: tuple[float, float]) -> State:
        asked.append(tuple(weights))
        return {**state, "5.bias": state["5.bias"] + torch.tensor([weights[1], 0, 0])}

    of = subject(seeded(0, norm=True), [fixed, moving], Linear().path(fixed, moving, None), dataset, correction)
    option = Curvature(images=60, probes=10, batch_size=60)
    steps: list[Mapping[str, float]] = []
    findings = option(of, tmp_path, steps.append)
    assert len(steps) == option.steps(of) == 3 + 3 * 11
    assert set(asked) == {(1 - t, t) for t in (0, 0.5, 1)}
    assert {f.examples for f in findings} == {60}
    states = {t: correction(interpolate(fixed, moving, t), (1 - t, t)) for t in (0, 0.5, 1)}
    matrices = {t: dense(of.model, state, dataset, 60) for t, state in states.items()}
    found = {(f.what, f.metric, f.more.get("t")): f.value for f in findings}
    for t, (_, matrix) in matrices.items():
        assert found["top_eigenvalue", "curvature", t] == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-4)
        assert found["top_eigenvalue", "residual", t] < 1e-3
        error = found["trace", "standard_error", t]
        assert 0 < error < np.trace(matrix)
        assert abs(found["trace", "curvature", t] - np.trace(matrix)) < 4 * error
    assert found["trace", "curvature", None] == found["trace", "curvature", 0.5]
    trained = [name for name, _ in of.model.named_parameters()]
    mu = torch.cat([(states[1][name] - states[0][name]).flatten() for name in trained]).double().numpy()
    losses = [measure(of.model, states[t], dataset.batches(dataset.train.first(60), 60)).loss for t in (0, 0.5, 1)]
    first = (mu @ matrices[0][0] - mu @ matrices[1][0]) / 4
    second = mu @ (matrices[0][1] + matrices[1][1]) @ mu / 16
    assert found["first_order", "loss", None] == pytest.approx(first, abs=1e-5)
    assert found["second_order", "loss", None] == pytest.approx(second, abs=1e-5)
    assert found["predicted_barrier", "loss", None] == pytest.approx(first + second, abs=1e-5)
    assert found["measured_barrier", "loss", None] == pytest.approx(losses[1] - (losses[0] + losses[2]) / 2, abs=1e-6)


def test_a_killed_attempt_goes_on_and_ends_as_an_unbroken_one(dataset: Dataset, seeded: Seeded, tmp_path: Path):
    fixed, moving = pair(seeded)
    of = subject(seeded(0, norm=True), [fixed, moving], Linear().path(fixed, moving, None), dataset)
    option, file = Curvature(images=30, probes=2, iterations=3), tmp_path / "curvature.csv"
    steps: list[Mapping[str, float]] = []
    findings = option(of, tmp_path, steps.append)
    whole = file.read_bytes()
    with file.open(newline="") as stream:
        assert next(csv.reader(stream)) == ["where", "t", "quantity", "value"]
    for kept in (3, 9, 14):
        file.write_bytes(b"".join(whole.splitlines(keepends=True)[:kept]) + b"path,0.")
        again: list[Mapping[str, float]] = []
        assert option(of, tmp_path, again.append) == findings
        assert file.read_bytes() == whole
        assert again == steps
    assert {path.name for path in tmp_path.iterdir()} == {"curvature.csv"}


def test_what_does_not_converge_is_logged(
    dataset: Dataset, seeded: Seeded, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    fixed, moving = pair(seeded)
    of = subject(seeded(0, norm=True), [fixed, moving], Linear().path(fixed, moving, None), dataset)
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lmc.analysis.curvature"):
        Curvature(images=30, probes=2, iterations=2)(of, tmp_path, lambda numbers: None)
    assert len(caplog.messages) == 3
    assert "t = 0.5: the top eigenvalue" in caplog.messages[1]
    assert "after 2 iterations of Lanczos" in caplog.messages[1]


class OnlyOnce(nn.Module):
    """A kernel of attention, called by its name, that has one derivative in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.inner(inputs)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(tokens, tokens, tokens)[0].flatten(1)


def test_what_has_no_curvature_is_refused_before_training(dataset: Dataset, seeded: Seeded):
    with pytest.raises(UserError, match="a grid of 4 points"):
        Curvature(grid=4)
    for model, message in ((OnlyOnce(), "has a layer without second derivatives"), (_frozen(), "requires gradients")):
        of = subject(model, [of_model(model)] * 2, None, data(), symmetry=object())
        with pytest.raises(UserError, match=message) as refused:
            Curvature().check(of)
        assert "\n" not in str(refused.value)
    model = attention(0)
    Curvature().check(subject(model, [of_model(model)] * 2, None, dataset, symmetry=object()))
    nothing = dataset.train.select(torch.tensor([], dtype=torch.int64))
    with pytest.raises(UserError, match="there is no image"):
        Hessian(seeded(0), of_model(seeded(0)), dataset, nothing)


def _frozen() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).requires_grad_(False)
