import logging

import numpy as np
import pytest
import torch
from torch import nn

from lmc.state import interpolate, mean, of_model
from lmc.statistics.moments import Calibration
from lmc.statistics.repair import Repair
from lmc.statistics.rescale import Rescale
from lmc.statistics.reshift import Reshift
from lmc.symmetry.discover import discover
from lmc.symmetry.structure import Symmetry


def entering_and_leaving(model, state, layer, inputs):
    """What layer number `layer` of a sequential network makes of `inputs`, as (channels, values) in float64."""
    model.load_state_dict(state)
    with torch.no_grad():
        leaving = model.eval()[: layer + 1](inputs)
    return leaving.transpose(0, 1).flatten(1).numpy().astype(np.float64)


@pytest.fixture
def one_layer(seeded, hidden, dataset):
    """Two MLPs, their midpoint at 0.3, and their pre-activations of the first layer with the moments in closed form."""

    def architecture():
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 3))

    model = seeded(architecture, 5)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    images = dataset.normalise(dataset.train.images)
    first, second = (entering_and_leaving(model, end, 1, images) for end in ends)
    return model, hidden(model, ["1"]), ends, first, second


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_factor_is_the_closed_form_of_jordan_et_al(one_layer, dataset, t):
    model, symmetry, ends, first, second = one_layer
    s0, s1 = first.std(1), second.std(1)
    correlation = np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(first, second, strict=True)])
    interpolated = np.sqrt((1 - t) ** 2 * s0**2 + t**2 * s1**2 + 2 * t * (1 - t) * s0 * s1 * correlation)
    factor = ((1 - t) * s0 + t * s1) / interpolated
    assert factor.min() > 1.01  # the variance has collapsed, or there would be nothing to repair
    merged = interpolate(*ends, t)
    goal_mean = (1 - t) * first.mean(1) + t * second.mean(1)
    weight, bias = (merged[f"1.{name}"].numpy().astype(np.float64) for name in ("weight", "bias"))
    small = [option(batch_size=9, sequential=s) for option in (Repair, Rescale) for s in (False, True)]
    for option in (Repair(), Rescale(), *small):
        found = option.bind(model, symmetry, ends, dataset)(merged, (1 - t, t))
        np.testing.assert_allclose(found["1.weight"], weight * factor[:, None], rtol=2e-5)
        # One layer is affine: the mean of the merged network is the goal already, so REPAIR only has to restore it.
        expected = factor * (bias - goal_mean) + goal_mean if isinstance(option, Repair) else factor * bias
        np.testing.assert_allclose(found["1.bias"], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(found["3.weight"], merged["3.weight"])


def reference(ends, merged, weights, batches, option):
    """The correction of the MLP written out in numpy: BatchNorm-like layers batch by batch, then pooled statistics."""

    def affine(state, layer, values):
        weight, bias = (state[f"{layer}.{name}"].numpy().astype(np.float64) for name in ("weight", "bias"))
        return values @ weight.T + bias

    images = [batch.flatten(1).numpy().astype(np.float64) for batch in batches]
    means, deviations = [], []
    for end in ends:
        whole, mu, sd = np.concatenate(images), [], []
        for layer in ("1", "3"):
            values = affine(end, layer, whole)
            mu.append(values.mean(0))
            sd.append(values.std(0))
            whole = np.maximum(values, 0)
        means.append(mu)
        deviations.append(sd)
    found, hooked = {}, images
    for place, layer in enumerate(("1", "3")):
        mu = sum(w * m[place] for w, m in zip(weights, means, strict=True))
        sd = sum(w * s[place] for w, s in zip(weights, deviations, strict=True))

        def correction(values, mu=mu, sd=sd):
            factor = np.ones_like(sd) if isinstance(option, Reshift) else sd / values.std(0)
            return factor, np.zeros_like(mu) if isinstance(option, Rescale) else mu - factor * values.mean(0)

        before = [affine(merged, layer, values) for values in hooked]
        factor, offset = correction(np.concatenate(before))
        each = [(factor, offset) if option.sequential else correction(values) for values in before]
        hooked = [np.maximum(gain * y + shift, 0) for y, (gain, shift) in zip(before, each, strict=True)]
        found[f"{layer}.weight"] = merged[f"{layer}.weight"].numpy() * factor[:, None]
        found[f"{layer}.bias"] = merged[f"{layer}.bias"].numpy() * factor + offset
    return found, np.concatenate([affine(merged, "5", values) for values in hooked])


@pytest.mark.parametrize("batch_size", [200, 20])
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("option", [Repair, Rescale, Reshift])
@pytest.mark.parametrize("weights", [(0.6, 0.4), (0.2, 0.5, 0.3)])
def test_equals_the_definition_written_out(seeded, plain, hidden, dataset, option, sequential, weights, batch_size):
    model = seeded(plain[0], 9)
    ends = [of_model(seeded(plain[0], seed)) for seed in range(len(weights))]
    merged = {n: sum(w * end[n] for w, end in zip(weights, ends, strict=True)) for n in ends[0]}
    chosen = option(batch_size=batch_size, sequential=sequential)
    found = chosen.bind(model, hidden(model, plain[1]), ends, dataset)(merged, weights)
    batches = list(Calibration(dataset, None, batch_size))
    expected, hooked = reference(ends, merged, weights, batches, chosen)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=3e-5)
    if sequential or batch_size > 101:  # the folded network is the network that was corrected on the fly
        model.load_state_dict(found)
        with torch.no_grad():
            np.testing.assert_allclose(model(torch.cat(batches)), hooked, rtol=1e-4, atol=3e-5)


@pytest.mark.parametrize("option", [Repair, Rescale, Reshift])
def test_sequential_networks_have_their_goals_whatever_the_batches(seeded, network, hidden, dataset, option, observed):
    """In many batches too, with every BatchNorm as it will run: its input has the statistics that it has stored."""
    architecture, layers = network
    model = seeded(architecture, 9)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    merged, symmetry = interpolate(*ends, 0.3), hidden(model, layers)
    found = [
        option(batch_size=size, sequential=True).bind(model, symmetry, ends, dataset)(merged, (0.7, 0.3))
        for size in (9, 512)
    ]
    for name, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][name], rtol=2e-4, atol=1e-5)
    images = dataset.normalise(dataset.train.images)
    leaving = [observed(model, state, images) for state in (*ends, found[0])]
    for name in (name for name in layers if f"{name}.bias" in merged or option is Rescale):
        first, second, corrected = (values[name] for values in leaving)
        if option is not Rescale:
            np.testing.assert_allclose(
                corrected.mean(1), 0.7 * first.mean(1) + 0.3 * second.mean(1), rtol=1e-4, atol=1e-4
            )
        if option is not Reshift:
            np.testing.assert_allclose(corrected.std(1), 0.7 * first.std(1) + 0.3 * second.std(1), rtol=1e-4)
    for name in (name.removesuffix(".running_mean") for name in merged if name.endswith(".running_mean")):
        entering = leaving[2][str(int(name) - 1)]
        np.testing.assert_allclose(found[0][f"{name}.running_mean"], entering.mean(1), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found[0][f"{name}.running_var"], entering.var(1, ddof=1), rtol=1e-4)


def test_sequential_passes_end_at_the_layer_that_is_measured(seeded, plain, hidden, dataset):
    """Two layers: 6 batches for each, and one to see the order; the output layer is called in that one alone."""
    model = seeded(plain[0], 9)
    ends = [of_model(seeded(plain[0], seed)) for seed in (0, 1)]
    correct = Repair(batch_size=20, sequential=True).bind(model, hidden(model, plain[1]), ends, dataset)
    calls = dict.fromkeys(("1", "3", "5"), 0)

    def count(name):
        def hook(module, inputs):
            calls[name] += 1

        return hook

    for name in calls:
        model.get_submodule(name).register_forward_pre_hook(count(name))
    correct(interpolate(*ends, 0.5), (0.5, 0.5))
    assert calls == {"1": 13, "3": 7, "5": 1}


def test_a_layer_that_is_called_twice_is_measured_over_both_calls(seeded, hidden, dataset):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.inner, self.last = nn.Linear(72, 12), nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, inputs):
            first = self.inner(self.enter(inputs.flatten(1)).relu()).relu()
            return self.last(self.inner(first).relu())

    model = seeded(Twice, 0)
    ends = [of_model(seeded(Twice, seed)) for seed in (1, 2)]
    merged, symmetry = interpolate(*ends, 0.5), hidden(model, ["enter", "inner"])
    found = Rescale(batch_size=20, sequential=True).bind(model, symmetry, ends, dataset)(merged, (0.5, 0.5))
    images = dataset.normalise(dataset.train.images).flatten(1).numpy().astype(np.float64)

    def deviation(state):
        """Of what leaves `inner` in both calls, behind the `enter` that the network has."""
        weights = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
        values = np.maximum(images @ weights["enter.weight"].T + weights["enter.bias"], 0)
        calls = []
        for _ in range(2):
            calls.append(values @ weights["inner.weight"].T + weights["inner.bias"])
            values = np.maximum(calls[-1], 0)
        return np.concatenate(calls).std(0)

    before = {**merged, "enter.weight": found["enter.weight"], "enter.bias": found["enter.bias"]}
    factor = sum(deviation(end) for end in ends) / 2 / deviation(before)
    np.testing.assert_allclose(found["inner.weight"], merged["inner.weight"].numpy() * factor[:, None], rtol=1e-4)


@pytest.mark.parametrize("option", [Repair, Rescale])
def test_units_inside_blocks_are_corrected_as_all_others(seeded, dataset, observed, option):
    """The groups of a grouped convolution and the channels inside them, in the symmetry that the network has."""

    def architecture():
        layers = [nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Conv2d(12, 6, 3, groups=3), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(24, 3))

    model = seeded(architecture, 9)
    symmetry = discover(model, torch.zeros(2, 2, 6, 6))
    assert any(group.outer for group in symmetry.groups.values())
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    images = dataset.normalise(dataset.train.images)
    correct = option(batch_size=30, sequential=True).bind(model, symmetry, ends, dataset)
    found = observed(model, correct(interpolate(*ends, 0.5), (0.5, 0.5)), images)
    first, second = (observed(model, end, images) for end in ends)
    for name in ("0", "2"):
        np.testing.assert_allclose(found[name].std(1), (first[name].std(1) + second[name].std(1)) / 2, rtol=1e-4)


def test_reshift_keeps_the_weights_and_the_input_layer(one_layer, dataset):
    """The mean of an affine layer's output is interpolated with its weights: nothing is left to shift there."""
    model, symmetry, ends, _, _ = one_layer
    merged = interpolate(*ends, 0.3)
    found = Reshift().bind(model, symmetry, ends, dataset)(merged, (0.7, 0.3))
    assert all(torch.equal(tensor, merged[name]) for name, tensor in found.items() if name != "1.bias")
    torch.testing.assert_close(found["1.bias"], merged["1.bias"], rtol=1e-5, atol=1e-6)


def test_repaired_preactivations_have_the_moments_of_the_goal(seeded, network, hidden, dataset):
    architecture, layers = network
    model = seeded(architecture, 9)
    ends, weights = [of_model(seeded(architecture, seed)) for seed in range(3)], (0.5, 0.3, 0.2)
    merged = mean(ends)
    corrected = Repair().bind(model, hidden(model, layers), ends, dataset)(merged, weights)
    (images,) = Calibration(dataset, None, 512)
    # BatchNorm divides the variance by n while its moments are taken and by n - 1 afterwards; here n is small.
    tolerance = {"rtol": 5e-3, "atol": 5e-4} if "1.running_var" in merged else {"rtol": 1e-4, "atol": 1e-5}
    for layer in (int(name) for name in layers if f"{name}.bias" in merged):
        leaving = [entering_and_leaving(model, end, layer, images) for end in ends]
        goal_mean = sum(w * y.mean(1) for w, y in zip(weights, leaving, strict=True))
        goal_deviation = sum(w * y.std(1) for w, y in zip(weights, leaving, strict=True))
        found = entering_and_leaving(model, corrected, layer, images)
        np.testing.assert_allclose(found.mean(1), goal_mean, **tolerance)
        np.testing.assert_allclose(found.std(1), goal_deviation, **tolerance)
        stale = entering_and_leaving(model, merged, layer, images)
        assert (stale.std(1) / goal_deviation).mean() < 0.95


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("option", [Repair, Rescale, Reshift])
@pytest.mark.parametrize("place", [0, 1])
def test_is_the_identity_at_the_ends(seeded, hidden, dataset, option, place, sequential):
    architecture, layers = SMALL
    model = seeded(architecture, 9)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    correct = option(sequential=sequential).bind(model, hidden(model, layers), ends, dataset)
    found = correct(ends[place], (1 - place, place))
    for name, tensor in ends[place].items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)
    middle = interpolate(*ends, 0.5)
    changed = "3.bias" if option is Reshift else "1.weight"
    assert not torch.allclose(correct(middle, (0.5, 0.5))[changed], middle[changed], rtol=1e-2)


def tiny_activations():
    """A network whose pre-activations are so small that an epsilon in the variance would be seen."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
    model[1].weight.data *= 1e-3
    return model


SMALL = (tiny_activations, ("1", "3"))


def test_variance_collapses_with_depth_and_is_restored(seeded, hidden, dataset):
    depth = 8

    def architecture():
        inner = [part for _ in range(depth) for part in (nn.Linear(72, 72), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *inner, nn.Linear(72, 3))

    layers = [str(1 + 2 * place) for place in range(depth)]
    model = seeded(architecture, 9)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    merged = interpolate(*ends, 0.5)
    repaired = Repair().bind(model, hidden(model, layers), ends, dataset)(merged, (0.5, 0.5))
    images = dataset.normalise(dataset.train.images)

    def deviation(state, layer):
        return entering_and_leaving(model, state, layer, images).std(1).mean()

    def remains(state):
        return [2 * deviation(state, 1 + 2 * k) / sum(deviation(e, 1 + 2 * k) for e in ends) for k in range(depth)]

    collapsed = remains(merged)
    assert collapsed[0] < 0.8
    assert collapsed[-1] < 0.3 * collapsed[0]
    np.testing.assert_allclose(remains(repaired), 1, rtol=1e-3)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("option", [Repair, Rescale, Reshift])
def test_every_kind_of_network_runs_and_nothing_handed_in_changes(seeded, network, hidden, dataset, option, sequential):
    architecture, layers = network
    model = seeded(architecture, 9).train()
    before = of_model(model)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    merged = interpolate(*ends, 0.5)
    kept = [{name: tensor.clone() for name, tensor in state.items()} for state in (*ends, merged)]
    chosen = option(batch_size=30, sequential=sequential)
    found = chosen.bind(model, hidden(model, layers), ends, dataset)(merged, (0.5, 0.5))
    for state, copy in zip((*ends, merged), kept, strict=True):
        assert all(torch.equal(tensor, copy[name]) for name, tensor in state.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    may_change = {f"{layer}.{tensor}" for layer in layers for tensor in ("weight", "bias")}
    for name, tensor in found.items():
        assert tensor.isfinite().all()
        assert (tensor.dtype, tensor.shape) == (merged[name].dtype, merged[name].shape)
        assert name in may_change or "running" in name or torch.equal(tensor, merged[name])


def test_batch_norm_undoes_what_is_done_before_it(seeded, normed, hidden, dataset):
    """Behind a BatchNorm, `reset` and all corrections of what is before it are the same network."""
    from lmc.statistics.reset import Reset

    architecture, layers = normed
    model = seeded(architecture, 9)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    merged, symmetry = interpolate(*ends, 0.5), hidden(model, layers)
    images = dataset.normalise(dataset.train.images)
    outputs = []
    for option in (Reset(), Repair(), Rescale(), Reshift()):
        model.load_state_dict(option.bind(model, symmetry, ends, dataset)(merged, (0.5, 0.5)))
        with torch.no_grad():
            outputs.append(model.eval()(images))
    for found in outputs[1:]:
        torch.testing.assert_close(found, outputs[0], rtol=1e-2, atol=1e-3)


def test_rescale_needs_no_bias(seeded, hidden, dataset):
    def architecture():
        return nn.Sequential(nn.Conv2d(2, 8, 3, bias=False), nn.GroupNorm(1, 8), nn.ReLU(), nn.Flatten())

    model = seeded(architecture, 9)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    merged, images = interpolate(*ends, 0.5), dataset.normalise(dataset.train.images)
    symmetry = hidden(model, ["0"])
    found = Rescale().bind(model, symmetry, ends, dataset)(merged, (0.5, 0.5))
    goal = sum(entering_and_leaving(model, end, 0, images).std(1) for end in ends) / 2
    np.testing.assert_allclose(entering_and_leaving(model, found, 0, images).std(1), goal, rtol=1e-4)


def test_a_channel_that_is_constant_is_not_blown_up(seeded, plain, hidden, dataset):
    architecture, layers = plain
    model = seeded(architecture, 9)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    for end in ends:
        end["1.weight"][0] = 0
        end["1.bias"][0] = 7.1
        end["1.bias"][1] = 1
    ends[1]["1.weight"][1] = -(1 + 1e-6) * ends[0]["1.weight"][1]  # cancels but for what float32 cannot resolve
    merged = interpolate(*ends, 0.5)
    found = Repair().bind(model, hidden(model, layers), ends, dataset)(merged, (0.5, 0.5))
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert merged["1.weight"][1].any()
    assert torch.equal(found["1.weight"][:2], merged["1.weight"][:2])
    torch.testing.assert_close(found["1.bias"][0], torch.tensor(7.1))


def test_layers_that_are_not_called_are_named(seeded, hidden, dataset, caplog):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.last = nn.Linear(72, 5), nn.Linear(72, 5), nn.Linear(5, 3)

        def forward(self, inputs):
            return self.last(self.used(inputs.flatten(1)).relu())

    model = seeded(Partly, 0)
    ends = [of_model(seeded(Partly, seed)) for seed in (1, 2)]
    merged = interpolate(*ends, 0.5)
    with caplog.at_level(logging.WARNING):
        correct = Repair().bind(model, hidden(model, ["used", "idle"]), ends, dataset)
    assert "idle" in caplog.text
    assert "used" not in caplog.text
    found = correct(merged, (0.5, 0.5))
    assert torch.equal(found["idle.weight"], merged["idle.weight"])
    assert not torch.equal(found["used.weight"], merged["used.weight"])


def test_a_network_with_nothing_to_correct_is_said_to_stay(seeded, plain, dataset, caplog):
    model = seeded(plain[0], 0)
    state = of_model(model)
    with caplog.at_level(logging.WARNING):
        correct = Repair().bind(model, Symmetry({}, {}, frozenset()), [state], dataset)
    assert "stays as merged" in caplog.text
    assert correct(state, (1.0,)) == state


def test_weights_must_be_one_for_each_end(seeded, plain, hidden, dataset):
    model = seeded(plain[0], 0)
    ends = [of_model(seeded(plain[0], seed)) for seed in (1, 2)]
    correct = Repair(examples=20).bind(model, hidden(model, plain[1]), ends, dataset)
    with pytest.raises(ValueError, match="3 weights for the 2"):
        correct(mean(ends), (0.2, 0.3, 0.5))


def test_linear_layers_over_tokens_are_corrected_by_their_last_dimension(seeded, hidden, dataset):
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, inputs):
            return self.outer(self.inner(inputs.flatten(1, 2)).relu()).mean(1)

    model = seeded(Tokens, 0)
    ends = [of_model(seeded(Tokens, seed)) for seed in (1, 2)]
    found = Repair().bind(model, hidden(model, ["inner"]), ends, dataset)(mean(ends), (0.5, 0.5))
    rows = dataset.normalise(dataset.train.images).reshape(-1, 6).numpy().astype(np.float64)

    def deviation(state):
        return (rows @ state["inner.weight"].numpy().T).std(0)

    np.testing.assert_allclose(deviation(found), sum(deviation(end) for end in ends) / 2, rtol=1e-4)


def test_the_same_correction_gives_the_same_bytes(seeded, network, hidden, dataset):
    architecture, layers = network
    model = seeded(architecture, 9)
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    merged = mean(ends)
    first, second = (
        Repair(batch_size=20).bind(model, hidden(model, layers), ends, dataset)(merged, (0.5, 0.5)) for _ in range(2)
    )
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
