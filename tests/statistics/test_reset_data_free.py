from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from lmc.state import interpolate, mean, of_model
from lmc.statistics.reset import Reset
from lmc.statistics.reset_data_free import ResetDataFree


def ends_of(seeded, architecture, count):
    """Networks whose stored statistics are their own and differ."""
    ends = [of_model(seeded(architecture, seed)) for seed in range(count)]
    for number, end in enumerate(ends, 1):
        for name in end:
            if name.endswith("running_var"):
                end[name] = torch.linspace(0.1, number**2, len(end[name]))
            if name.endswith("running_mean"):
                end[name] = torch.linspace(-number, 2.0, len(end[name]))
    return ends


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("weights", [(0.7, 0.3), (0.2, 0.5, 0.3)])
def test_equals_the_variance_of_correlated_variables(seeded, normed, dataset, correlation, weights):
    model, ends = seeded(normed[0], 9), ends_of(seeded, normed[0], len(weights))
    merged = mean(ends)
    found = ResetDataFree(correlation=correlation).bind(model, None, ends, dataset)(merged, weights)
    alike = np.full((len(ends), len(ends)), correlation)
    np.fill_diagonal(alike, 1)
    for norm in ("1", "5", "9"):
        deviations = np.array([w * e[f"{norm}.running_var"].sqrt().numpy() for w, e in zip(weights, ends, strict=True)])
        expected = np.einsum("ic,ij,jc->c", deviations, alike, deviations)
        np.testing.assert_allclose(found[f"{norm}.running_var"], expected, rtol=1e-6)
        means = sum(w * e[f"{norm}.running_mean"].double() for w, e in zip(weights, ends, strict=True))
        np.testing.assert_allclose(found[f"{norm}.running_mean"], means, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(tensor, merged[name]) for name, tensor in found.items() if "running" not in name)


@pytest.mark.parametrize("correlation", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("place", [0, 1])
def test_is_the_identity_at_the_ends(seeded, normed, dataset, correlation, place):
    model, ends = seeded(normed[0], 9), ends_of(seeded, normed[0], 2)
    found = ResetDataFree(correlation=correlation).bind(model, None, ends, dataset)(ends[place], (1 - place, place))
    for name, tensor in ends[place].items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=0)


def test_is_the_reset_where_the_assumption_holds(seeded, normed, dataset):
    """Ends that are copies: correlation 1, and the reset of the one network they are."""
    model = seeded(normed[0], 9)
    state = Reset(augment=False).bind(model, None, (), dataset)(of_model(seeded(normed[0], 0)), ())
    ends = [state, {name: tensor.clone() for name, tensor in state.items()}]
    found = ResetDataFree(correlation=1).bind(model, None, ends, dataset)(interpolate(*ends, 0.5), (0.5, 0.5))
    for name, tensor in state.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7)


def test_no_image_is_read_and_nothing_handed_in_changes(seeded, normed, dataset, monkeypatch):
    model, ends = seeded(normed[0], 9).train(), ends_of(seeded, normed[0], 2)
    before, merged = of_model(model), interpolate(*ends, 0.5)
    kept = [{name: tensor.clone() for name, tensor in state.items()} for state in (*ends, merged)]
    monkeypatch.setattr(type(dataset), "normalise", None)
    ResetDataFree().bind(model, None, ends, dataset)(merged, (0.5, 0.5))
    for state, copy in zip((*ends, merged), kept, strict=True):
        assert all(torch.equal(tensor, copy[name]) for name, tensor in state.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_networks_without_batch_norm_stay_and_shared_layers_agree(seeded, plain, dataset):
    model = seeded(plain[0], 9)
    ends = [of_model(seeded(plain[0], seed)) for seed in (0, 1)]
    merged = mean(ends)
    assert ResetDataFree().bind(model, None, ends, dataset)(merged, (0.5, 0.5)) == merged
    norm = nn.BatchNorm2d(2)
    shared = nn.Sequential(OrderedDict(norm=norm, again=norm))
    ends = [of_model(shared), {name: 4 * tensor for name, tensor in of_model(shared).items()}]
    found = ResetDataFree(correlation=1).bind(shared, None, ends, dataset)(mean(ends), (0.5, 0.5))
    torch.testing.assert_close(found["again.running_var"], torch.full((2,), 2.25))
    assert torch.equal(found["norm.running_var"], found["again.running_var"])


def test_weights_must_be_one_for_each_end(seeded, normed, dataset):
    ends = ends_of(seeded, normed[0], 2)
    with pytest.raises(ValueError, match="1 weights for the 2"):
        ResetDataFree().bind(seeded(normed[0], 9), None, ends, dataset)(ends[0], (1.0,))
