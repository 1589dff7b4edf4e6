"""Distance and correlation after an alignment, against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from lmc import state
from lmc.evaluation.matching import l2_reduction, matched_correlation
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation


def network(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net


def test_the_reduction_of_the_distance_is_that_of_numpy():
    first, second, third = (state.of_model(network(seed)) for seed in range(3))
    flat = [
        np.concatenate([tensor.numpy().ravel().astype(float) for tensor in s.values()]) for s in (first, second, third)
    ]
    before, after = np.linalg.norm(flat[0] - flat[1]), np.linalg.norm(flat[0] - flat[2])
    found = l2_reduction((first, second), (first, third), first)
    assert found == pytest.approx((before - after) / before, rel=1e-6)
    assert l2_reduction((first, second), (first, first), first) == 1
    assert l2_reduction((first, first), (first, first), first) == 0


def test_the_correlation_is_that_of_numpy_over_all_units():
    first, second = network(0), network(1)
    batches = [torch.randn(n, 4, generator=torch.Generator().manual_seed(n)) for n in (7, 9)]
    symmetry = discover(first, batches[0])
    expected = []
    for layer in (2, 4):
        with torch.no_grad():
            ours, theirs = (
                np.concatenate([net[:layer](x).double().numpy() for x in batches]) for net in (first, second)
            )
        for unit in range(ours.shape[1]):
            dead = ours[:, unit].std() == 0 or theirs[:, unit].std() == 0
            expected.append(0.0 if dead else np.corrcoef(ours[:, unit], theirs[:, unit])[0, 1])
    found = matched_correlation(first, symmetry, (state.of_model(first), state.of_model(second)), batches)
    assert found == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_network_is_fully_correlated_with_its_permuted_copy_only_when_that_is_undone():
    net = network(0)
    images = [torch.randn(50, 4, generator=torch.Generator().manual_seed(0))]
    symmetry = discover(net, images[0])
    own = state.of_model(net)
    hidden = Permutation.random(symmetry, torch.Generator().manual_seed(1))
    moved = hidden.apply(own)
    assert matched_correlation(net, symmetry, (own, hidden.inverse().apply(moved)), images) == pytest.approx(1)
    apart = matched_correlation(net, symmetry, (own, moved), images)
    assert apart is not None
    assert apart < 0.9
