import logging
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn import functional

from lmc import config
from lmc.dataset.images import Images
from lmc.errors import UserError
from lmc.evaluation.measure import measure
from lmc.seeding import generator
from lmc.state import interpolate, of_model
from lmc.statistics.none import NoCorrection
from lmc.statistics.reset import Reset
from lmc.statistics.temperature import HIGHEST, LOWEST, Temperature, fit_temperature, last_layer


def logits_and_labels(scale, count=300, classes=5):
    """Logits that are right more often than not, and `scale` times too large."""
    logits = torch.randn(count, classes, generator=generator(0, "logits"))
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator(0, "labels")).flatten()
    return scale * logits, labels


@pytest.mark.parametrize("batches", [1, 7])
@pytest.mark.parametrize("scale", [1e-2, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_minimises_the_loss(scale, shift, batches):
    """The minimum of scipy's search over the loss of numpy; large common parts of the logits do not matter."""
    logits, labels = logits_and_labels(scale)
    logits = logits.double() + shift
    found = fit_temperature(list(zip(logits.chunk(batches), labels.chunk(batches), strict=True)))
    values, rows = logits.numpy(), np.arange(len(labels))

    def loss(log_temperature):
        z = values / math.exp(log_temperature)
        z = z - z.max(1, keepdims=True)
        return (np.log(np.exp(z).sum(1)) - z[rows, labels.numpy()]).mean()

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    best = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-9})
    assert math.log(found) == pytest.approx(best.x, abs=1e-5)
    assert loss(math.log(found)) <= best.fun * (1 + 1e-12)
    assert found / scale == pytest.approx(fit_temperature([logits_and_labels(1.0)]), rel=1e-4)


def test_logits_that_are_calibrated_stay():
    """Right with probability 3/4, and right in three of four images."""
    logits = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log().expand(4, 2)
    assert fit_temperature([(logits, torch.tensor([0, 0, 0, 1]))]) == pytest.approx(1, abs=1e-9)


def test_logits_without_an_error_have_no_temperature_and_stay():
    labels = torch.arange(30) % 3
    right = functional.one_hot(labels, 3).float()
    for logits in (right, 50 * right, torch.zeros(30, 3)):
        assert fit_temperature([(logits, labels)]) == 1
    assert fit_temperature([(right, labels), (right, (labels + 1) % 3)]) != 1


def test_a_minimum_beyond_the_bounds_ends_there_and_is_named(caplog):
    labels = torch.arange(30) % 3
    wrong = -functional.one_hot(labels, 3).float()
    tiny = 1e-6 * torch.cat([-10 * wrong[:29], wrong[29:]])
    for logits, expected in ((wrong, HIGHEST), (tiny, LOWEST)):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert fit_temperature([(logits, labels)]) == expected
        assert "no temperature between" in caplog.text


def test_logits_that_are_not_finite_stay_and_are_named(caplog):
    labels = torch.tensor([0, 0, 0, 1])
    good = torch.tensor([[5.0, 0.0]]).expand(4, 2)
    with caplog.at_level(logging.WARNING):
        assert fit_temperature([(good, labels), (torch.full((4, 2), math.nan), labels)]) == 1
    assert "not finite" in caplog.text
    assert fit_temperature([(good, labels)]) > 2


def labelled_by(model, state, dataset):
    """The data set with labels that are drawn from what a network, three times as sure, predicts."""
    model.load_state_dict(state)
    with torch.no_grad():
        shares = (3 * model(dataset.normalise(dataset.train.images))).softmax(1)
    labels = torch.multinomial(shares, 1, generator=generator(0, "labels")).flatten()
    return replace(dataset, train=Images(dataset.train.images, labels))


def test_the_merged_network_has_the_least_training_loss_and_predicts_the_same(seeded, network, hidden, dataset, caplog):
    architecture, layers = network
    model = seeded(architecture, 9)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    merged = interpolate(*ends, 0.5)
    dataset = labelled_by(model, merged, dataset)
    option = Temperature(after=NoCorrection(), batch_size=30)
    with caplog.at_level(logging.INFO):
        found = option.bind(model, hidden(model, layers), ends, dataset)(merged, (0.5, 0.5))
    assert "temperature" in caplog.text
    last = last_layer(model, dataset.input_shape, torch.device("cpu"))
    factors = [float((found[name] / merged[name]).mean()) for name in last]
    assert factors[0] == pytest.approx(factors[1])
    assert 1.5 < factors[0] < 6
    assert all(torch.equal(tensor, merged[name]) for name, tensor in found.items() if name not in last)
    batches = list(dataset.batches(dataset.train, 40))

    def with_factor(factor):
        return measure(model, {**merged, **{name: factor * merged[name] for name in last}}, batches)

    calibrated = measure(model, found, batches)
    assert calibrated.loss < min(with_factor(factors[0] * (1 + e)).loss for e in (-2e-2, 2e-2))
    assert calibrated.loss < measure(model, merged, batches).loss
    assert calibrated.accuracy == measure(model, merged, batches).accuracy


def test_the_correction_before_it_is_made_first(seeded, normed, hidden, dataset):
    model = seeded(normed[0], 9)
    ends = [of_model(seeded(normed[0], seed)) for seed in (0, 1)]
    merged, symmetry, weights = interpolate(*ends, 0.5), hidden(model, normed[1]), (0.5, 0.5)
    reset = Reset(augment=False).bind(model, symmetry, ends, dataset)(merged, weights)
    at_once = Temperature(after=Reset(augment=False)).bind(model, symmetry, ends, dataset)(merged, weights)
    in_turn = Temperature(after=NoCorrection()).bind(model, symmetry, ends, dataset)(reset, weights)
    assert all(torch.equal(tensor, in_turn[name]) for name, tensor in at_once.items())
    assert torch.equal(at_once["1.running_var"], reset["1.running_var"])


def test_an_end_that_is_calibrated_stays(seeded, plain, hidden, dataset):
    model = seeded(plain[0], 9)
    ends = [of_model(seeded(plain[0], seed)) for seed in (0, 1)]
    dataset = labelled_by(model, ends[0], dataset)
    correct = Temperature(after=NoCorrection()).bind(model, hidden(model, plain[1]), ends, dataset)
    once = correct(ends[0], (1, 0))
    assert not torch.allclose(once["5.weight"], ends[0]["5.weight"], rtol=0.1)
    again = correct(once, (1, 0))
    for name, tensor in once.items():
        torch.testing.assert_close(again[name], tensor, rtol=1e-5, atol=1e-7)


def test_validation_images_are_used_if_asked_for(seeded, plain, hidden, dataset):
    model = seeded(plain[0], 9)
    state = of_model(seeded(plain[0], 0))
    option = Temperature(after=NoCorrection(), split="validation")
    swapped = replace(dataset, train=dataset.validation, validation=dataset.train)
    symmetry = hidden(model, plain[1])
    found = option.bind(model, symmetry, [state], swapped)(state, (1.0,))
    expected = Temperature(after=NoCorrection()).bind(model, symmetry, [state], dataset)(state, (1.0,))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    empty = replace(dataset, validation=dataset.validation.select(torch.arange(0)))
    with pytest.raises(UserError, match="no validation images"):
        option.bind(model, symmetry, [state], empty)


def test_nothing_handed_in_changes(seeded, network, hidden, dataset):
    architecture, layers = network
    model = seeded(architecture, 9).train()
    before, state = of_model(model), of_model(seeded(architecture, 0))
    kept = {name: tensor.clone() for name, tensor in state.items()}
    Temperature(after=NoCorrection()).bind(model, hidden(model, layers), [state], dataset)(state, (1.0,))
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())


class Run(nn.Module):
    """Layers of width 3, of which some are silent when they are fresh, and a function of them and the input."""

    def __init__(self, run):
        super().__init__()
        self.one, self.two, self.silent = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3)
        nn.init.zeros_(self.silent.weight)
        nn.init.zeros_(self.silent.bias)
        self.conv, self.norm, self.batch_norm = nn.Conv1d(3, 4, 1), nn.LayerNorm(3), nn.BatchNorm1d(3)
        self.register_buffer("fixed", torch.ones(3))
        self._run = run

    def forward(self, inputs):
        return self._run(self, inputs)


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda m, x: m.one(x.relu()), {"one.weight", "one.bias"}),
        (lambda m, x: m.two(m.one(x)), {"two.weight"}),
        (lambda m, x: m.one(x).relu() * 3 / x.norm(), {"one.weight", "one.bias"}),
        (lambda m, x: functional.dropout(m.conv(x[..., None]), 0.5, m.training).mean(2), {"conv.weight", "conv.bias"}),
        (lambda m, x: m.conv(m.batch_norm(x)[..., None]).flatten(1), {"conv.weight", "conv.bias"}),
    ],
)
def test_the_last_layer_is_found_and_outputs_are_proportional_to_it(run, expected):
    model, inputs = Run(run).eval(), torch.randn(4, 3, generator=generator(1))
    before = of_model(model)
    found = last_layer(model, (3,), torch.device("cpu"))
    assert set(found) == expected
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        outputs = model(inputs)
        for name in found:
            model.get_parameter(name).mul_(0.3)
        torch.testing.assert_close(model(inputs), 0.3 * outputs)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda m, x: functional.log_softmax(m.one(x), 1), "one is called last"),
        (lambda m, x: m.norm(m.one(x)), "one is called last"),
        (lambda m, x: m.batch_norm(m.one(x)), "one is called last"),
        (lambda m, x: x + m.one(x), "one is called last"),
        (lambda m, x: m.one(x) + 1, "one is called last"),
        (lambda m, x: m.two(x) + m.fixed, "two is called last"),
        (lambda m, x: m.silent(x) + m.one(x), "one is called last"),
        (lambda m, x: m.two(m.two(x)), "two is called last"),
        (lambda m, x: (m.one(x), m.two(x)), "two is called last"),
        (lambda m, x: m.two(0 * x), "two is called last"),
        (lambda m, x: x @ m.two.weight.T, "used nowhere else; choose"),
    ],
)
def test_networks_without_such_a_layer_are_refused_in_one_line(run, message):
    with pytest.raises(UserError, match=message) as refusal:
        last_layer(Run(run), (3,), torch.device("cpu"))
    assert "statistics=temperature" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_tied_weights_are_refused():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

        def forward(self, inputs):
            return self.two(self.one(inputs).relu())

    with pytest.raises(UserError, match="used nowhere else"):
        last_layer(Tied(), (3,), torch.device("cpu"))


def test_a_layer_under_two_names_is_scaled_under_both(seeded, hidden, dataset):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(72, 8), nn.Linear(8, 3)
            self.head = self.last

        def forward(self, inputs):
            return self.head(self.inner(inputs.flatten(1)).relu())

    model = seeded(Named, 0)
    state = of_model(model)
    found = Temperature(after=NoCorrection()).bind(model, hidden(model, ["inner"]), [state], dataset)(state, (1.0,))
    assert not torch.allclose(found["last.weight"], state["last.weight"], rtol=1e-2)
    assert torch.equal(found["last.weight"], found["head.weight"])


def test_the_correction_before_it_is_chosen_on_the_command_line():
    config.register()
    chosen = ["statistics=temperature", "statistics@statistics.after=repair", "statistics.after.sequential=true"]
    with initialize_config_dir(config.conf_dir(), version_base="1.3"):
        node = config.plain(compose("config", chosen))["statistics"]
    built = config.build(node, "statistics")
    assert type(built).__name__ == "Temperature"
    assert built.after.sequential
    assert config.identity(node, "statistics")["after"]["_target_"] == "lmc.statistics.repair.Repair"
