import copy
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from lmc.state import interpolate, of_model
from lmc.statistics.none import NoCorrection
from lmc.statistics.reset import Reset, recompute

BUFFERS = ("running_mean", "running_var")


def merged_and(reset, seeded, architecture, dataset):
    ends = [of_model(seeded(architecture, seed)) for seed in (0, 1)]
    model = seeded(architecture, 2)
    merged = interpolate(*ends, 0.5)
    return model, merged, reset.bind(model, None, ends, dataset)(merged, (0.5, 0.5))


def test_equals_batch_norm_of_torch_over_one_full_batch(seeded, normed, dataset):
    model, merged, found = merged_and(Reset(), seeded, normed[0], dataset)
    reference = copy.deepcopy(model)
    reference.load_state_dict(merged)
    for layer in reference:
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = None
            layer.reset_running_stats()
            layer.train()
    with torch.no_grad():
        reference(dataset.normalise(dataset.train.images))
    expected = reference.state_dict()
    for name, tensor in found.items():
        if name.endswith(BUFFERS):
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-6)
            assert not torch.allclose(tensor, merged[name], rtol=1e-2)
        else:
            assert torch.equal(tensor, merged[name])


def test_first_layer_is_pooled_whatever_the_batch_size(seeded, normed, dataset):
    _, merged, whole = merged_and(Reset(), seeded, normed[0], dataset)
    _, _, parts = merged_and(Reset(batch_size=7), seeded, normed[0], dataset)
    images = dataset.normalise(dataset.train.images)
    entering = nn.functional.conv2d(images, merged["0.weight"]).transpose(0, 1).flatten(1).numpy().astype(np.float64)
    for found in (whole, parts):
        np.testing.assert_allclose(found["1.running_mean"], entering.mean(1), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found["1.running_var"], entering.var(1, ddof=1), rtol=1e-5)
    # Deeper layers see inputs that were normalised by batch: there the batch size does matter, and is in the key.
    assert not torch.allclose(whole["9.running_var"], parts["9.running_var"], rtol=1e-3)


def test_a_network_without_batch_norm_is_returned_without_a_pass(seeded, plain, dataset):
    class Unread(nn.Module):
        def __iter__(self):
            raise AssertionError("the images were read")

    state = of_model(seeded(plain[0], 0))
    found = recompute(seeded(plain[0], 1), state, Unread())
    assert found == state
    assert found is not state


def test_nothing_handed_in_changes(seeded, normed, dataset):
    model = seeded(normed[0], 0).train()
    model[3].eval()
    before, flags = of_model(model), [module.training for module in model.modules()]
    state = of_model(seeded(normed[0], 1))
    kept = {name: tensor.clone() for name, tensor in state.items()}
    Reset(batch_size=20).bind(model, None, [state], dataset)(state, (1.0,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())
    assert [module.training for module in model.modules()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_examples_are_a_fixed_subset(seeded, normed, dataset):
    _, _, found = merged_and(Reset(examples=40), seeded, normed[0], dataset)
    _, _, expected = merged_and(Reset(), seeded, normed[0], replace(dataset, train=dataset.train.first(40)))
    _, _, whole = merged_and(Reset(), seeded, normed[0], dataset)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found["1.running_var"], whole["1.running_var"], rtol=1e-3)


def test_a_shared_layer_has_the_same_statistics_under_both_names(dataset):
    norm = nn.BatchNorm2d(2)
    model = nn.Sequential(OrderedDict(norm=norm, relu=nn.ReLU(), again=norm, flat=nn.Flatten()))
    images = dataset.normalise(dataset.train.images)
    found = recompute(model, of_model(model), [images])
    once = nn.functional.relu(nn.functional.batch_norm(images, None, None, training=True))
    both = torch.cat([images, once]).transpose(0, 1).flatten(1)
    torch.testing.assert_close(found["norm.running_var"], both.var(1), rtol=1e-5, atol=1e-6)
    assert torch.equal(found["norm.running_var"], found["again.running_var"])


def test_batch_norm_without_running_statistics_is_left_alone(dataset):
    model = nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False))
    assert set(recompute(model, of_model(model), iter([]))) == {"0.weight", "0.bias"}


def test_none_changes_nothing(seeded, normed, dataset):
    _, merged, found = merged_and(NoCorrection(), seeded, normed[0], dataset)
    assert found == merged
    assert found is not merged
