import logging

import numpy as np
import pytest
import torch
from torch import nn

from lmc.seeding import generator
from lmc.state import interpolate, mean, of_model
from lmc.statistics.repair import Repair
from lmc.statistics.repair_closed_form import RepairClosedForm
from lmc.statistics.reset import Reset
from lmc.symmetry.discover import discover
from lmc.symmetry.structure import Symmetry


def setting(seeded, architecture, count=2):
    return seeded(architecture, 9), [of_model(seeded(architecture, seed)) for seed in range(count)]


@pytest.mark.parametrize("batch_size", [512, 9])
@pytest.mark.parametrize("t", [0.3, 0.5])
def test_equals_the_formula_of_jordan_et_al(seeded, plain, hidden, dataset, observed, t, batch_size):
    """In every layer, from each end's own activations; numpy's correlation of the matched units."""
    model, ends = setting(seeded, plain[0])
    merged = interpolate(*ends, t)
    found = RepairClosedForm(batch_size=batch_size).bind(model, hidden(model, plain[1]), ends, dataset)(
        merged, (1 - t, t)
    )
    images = dataset.normalise(dataset.train.images)
    first, second = (observed(model, end, images) for end in ends)
    for name in plain[1]:
        s0, s1 = first[name].std(1), second[name].std(1)
        c = np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(first[name], second[name], strict=True)])
        factor = ((1 - t) * s0 + t * s1) / np.sqrt((1 - t) ** 2 * s0**2 + t**2 * s1**2 + 2 * t * (1 - t) * s0 * s1 * c)
        goal_mean = (1 - t) * first[name].mean(1) + t * second[name].mean(1)
        np.testing.assert_allclose(
            found[f"{name}.weight"], merged[f"{name}.weight"].numpy() * factor[:, None], rtol=1e-4
        )
        bias = factor * (merged[f"{name}.bias"].numpy() - goal_mean) + goal_mean
        np.testing.assert_allclose(found[f"{name}.bias"], bias, rtol=1e-4, atol=1e-5)
    assert torch.equal(found["5.weight"], merged["5.weight"])


def test_is_repair_where_the_network_is_linear(seeded, hidden, dataset):
    """One hidden layer, of three networks: the interpolation of their pre-activations is that of the merged one."""

    def architecture():
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 3))

    model, ends = setting(seeded, architecture, 3)
    merged, weights, symmetry = mean(ends), (0.5, 0.3, 0.2), hidden(model, ["1"])
    merged = {name: sum(w * end[name] for w, end in zip(weights, ends, strict=True)) for name in merged}
    found, expected = (
        option.bind(model, symmetry, ends, dataset)(merged, weights) for option in (RepairClosedForm(), Repair())
    )
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found["1.weight"], merged["1.weight"], rtol=0.1)


@pytest.mark.parametrize("place", [0, 1])
def test_is_the_identity_at_the_ends(seeded, plain, hidden, dataset, place):
    model, ends = setting(seeded, plain[0])
    correct = RepairClosedForm(batch_size=30).bind(model, hidden(model, plain[1]), ends, dataset)
    found = correct(ends[place], (1 - place, place))
    for name, tensor in ends[place].items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_no_merged_network_is_run(seeded, network, hidden, dataset):
    architecture, layers = network
    model, ends = setting(seeded, architecture)
    correct = RepairClosedForm(batch_size=30).bind(model, hidden(model, layers), ends, dataset)

    def refuse(module, inputs):
        raise AssertionError("the network was run")

    handle = model.register_forward_pre_hook(refuse)
    assert all(tensor.isfinite().all() for tensor in correct(interpolate(*ends, 0.5), (0.5, 0.5)).values())
    handle.remove()


def test_batch_norm_gets_what_the_interpolated_activations_have(seeded, normed, hidden, dataset, observed):
    """Exact behind the first layer. The layers before a BatchNorm, which undoes what is done to them, stay."""
    model, ends = setting(seeded, normed[0])
    merged, symmetry, weights = interpolate(*ends, 0.4), hidden(model, normed[1]), (0.6, 0.4)
    found = RepairClosedForm(batch_size=30).bind(model, symmetry, ends, dataset)(merged, weights)
    images = dataset.normalise(dataset.train.images)
    first, second = (observed(model, end, images) for end in ends)
    for layer, norm in (("0", "1"), ("4", "5"), ("8", "9")):
        entering = 0.6 * first[layer] + 0.4 * second[layer]
        np.testing.assert_allclose(found[f"{norm}.running_mean"], entering.mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[f"{norm}.running_var"], entering.var(1, ddof=1), rtol=1e-4)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in found.items() if "running" not in name)
    measured = Reset(batch_size=30).bind(model, symmetry, ends, dataset)(merged, weights)
    torch.testing.assert_close(found["1.running_var"], measured["1.running_var"], rtol=1e-4, atol=1e-6)


def test_layers_that_work_in_place_do_not_spoil_what_is_seen(seeded, hidden, dataset):
    def architecture(inplace):
        layers = [nn.Flatten(), nn.Linear(72, 20), nn.ReLU(inplace), nn.Linear(20, 16), nn.ReLU(inplace)]
        return nn.Sequential(*layers, nn.Linear(16, 3))

    found = []
    for inplace in (False, True):
        model, ends = setting(seeded, lambda inplace=inplace: architecture(inplace))
        symmetry = hidden(model, ["1", "3"])
        found.append(RepairClosedForm().bind(model, symmetry, ends, dataset)(interpolate(*ends, 0.5), (0.5, 0.5)))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_nothing_handed_in_changes(seeded, network, hidden, dataset):
    architecture, layers = network
    model, ends = setting(seeded, architecture)
    model.train()
    before, merged = of_model(model), interpolate(*ends, 0.5)
    kept = [{name: tensor.clone() for name, tensor in state.items()} for state in (*ends, merged)]
    found = RepairClosedForm(batch_size=30).bind(model, hidden(model, layers), ends, dataset)(merged, (0.5, 0.5))
    for state, copy in zip((*ends, merged), kept, strict=True):
        assert all(torch.equal(tensor, copy[name]) for name, tensor in state.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {n: (t.dtype, t.shape) for n, t in merged.items()}


def test_matched_units_that_cancel_are_not_blown_up(seeded, plain, hidden, dataset):
    """Correlation -1 and equal deviation: the merged unit is constant, and no factor spreads it."""
    model, ends = setting(seeded, plain[0])
    for tensor in ("1.weight", "1.bias"):
        ends[1][tensor][0] = -ends[0][tensor][0]
    found = RepairClosedForm().bind(model, hidden(model, plain[1]), ends, dataset)(mean(ends), (0.5, 0.5))
    assert all(tensor.isfinite().all() for tensor in found.values())
    assert not found["1.weight"][0].any()


def test_units_inside_blocks_are_corrected_as_all_others(seeded, dataset, observed):
    def architecture():
        layers = [nn.Conv2d(2, 12, 3), nn.ReLU(), nn.Conv2d(12, 6, 3, groups=3), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(24, 3))

    model, ends = setting(seeded, architecture)
    symmetry = discover(model, torch.zeros(2, 2, 6, 6))
    assert any(group.outer for group in symmetry.groups.values())
    merged, images = interpolate(*ends, 0.5), dataset.normalise(dataset.train.images)
    found = RepairClosedForm().bind(model, symmetry, ends, dataset)(merged, (0.5, 0.5))
    first, second, corrected = (observed(model, state, images) for state in (*ends, found))
    np.testing.assert_allclose(corrected["0"].std(1), (first["0"].std(1) + second["0"].std(1)) / 2, rtol=1e-4)
    middle = (first["2"] + second["2"]) / 2
    factor = (first["2"].std(1) + second["2"].std(1)) / 2 / middle.std(1)
    np.testing.assert_allclose(
        found["2.weight"], merged["2.weight"].numpy() * factor[:, None, None, None], rtol=1e-4, atol=1e-7
    )


def test_says_what_it_leaves_and_refuses_wrong_weights(seeded, plain, dataset, caplog):
    model, ends = setting(seeded, plain[0])
    with caplog.at_level(logging.WARNING):
        correct = RepairClosedForm().bind(model, Symmetry({}, {}, frozenset()), ends, dataset)
    assert "stays as merged" in caplog.text
    merged = {"x": torch.randn(3, generator=generator(0))}
    assert torch.equal(correct(merged, (0.5, 0.5))["x"], merged["x"])
    with pytest.raises(ValueError, match="3 weights for the 2"):
        correct(merged, (0.2, 0.3, 0.5))
