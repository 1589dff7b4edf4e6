import numpy as np
import pytest
import torch
from torch import nn

from lmc.state import interpolate, mean, of_model
from lmc.statistics.moments import Calibration
from lmc.statistics.none import NoCorrection
from lmc.statistics.repair import Repair
from lmc.statistics.rescale import Rescale
from lmc.statistics.reset import Reset, recompute
from lmc.statistics.reshift import Reshift
from lmc.statistics.variance import variance_ratios
from lmc.symmetry.discover import discover

# What the non-linearity is given in conftest's networks: behind the layer, or behind the BatchNorm that follows it.
PREACTIVATIONS = {("1", "3"): ("1", "3"), ("0", "4", "8"): ("1", "5", "9"), ("0", "4"): ("0", "4")}


def two(seeded, architecture):
    model = seeded(architecture, 9)
    return model, discover(model, torch.zeros(2, 2, 6, 6)), [of_model(seeded(architecture, seed)) for seed in (0, 1)]


@pytest.mark.parametrize("t", [0.3, 0.5])
def test_equals_numpy(seeded, network, dataset, observed, t):
    architecture, layers = network
    model, symmetry, ends = two(seeded, architecture)
    before, after = interpolate(*ends, t), of_model(seeded(architecture, 2))
    found = variance_ratios(model, symmetry, ends, before, after, Calibration(dataset, None, 30), (1 - t, t))
    images = dataset.normalise(dataset.train.images)
    first, second, merged, other = (observed(model, state, images) for state in (*ends, before, after))
    assert [ratio.layer for ratio in found] == list(PREACTIVATIONS[layers])
    for ratio in found:
        goal = (1 - t) * first[ratio.layer].std(1) + t * second[ratio.layer].std(1)
        assert ratio.units == len(goal)
        assert ratio.before == pytest.approx((merged[ratio.layer].var(1) / goal**2).mean(), rel=1e-4)
        assert ratio.after == pytest.approx((other[ratio.layer].var(1) / goal**2).mean(), rel=1e-4)


def test_the_correlation_of_matched_units_says_what_is_left_in_the_middle(seeded, dataset, observed):
    """(1 + c) / 2 for a layer on the input where the second network's units are the first's with a correlation c."""

    def architecture():
        return nn.Sequential(nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 3))

    model, symmetry, ends = two(seeded, architecture)
    images = dataset.normalise(dataset.train.images)
    for end in ends:
        end["1.weight"] /= torch.from_numpy(observed(model, end, images)["1"].std(1).astype(np.float32))[:, None]
    units = [observed(model, end, images)["1"] for end in ends]
    correlation = np.array([np.corrcoef(x, y)[0, 1] for x, y in zip(*units, strict=True)])
    merged = mean(ends)
    (found,) = variance_ratios(model, symmetry, ends, merged, merged, Calibration(dataset, None, 512))
    assert found.before == found.after == pytest.approx((1 + correlation.mean()) / 2, rel=1e-4)


@pytest.mark.parametrize(("option", "restores"), [(Repair, True), (Rescale, True), (Reshift, False)])
def test_repair_and_rescale_bring_all_of_it_back_and_reshift_does_not(seeded, plain, dataset, option, restores):
    model, symmetry, ends = two(seeded, plain[0])
    merged = mean(ends)
    after = option(sequential=True, augment=False).bind(model, symmetry, ends, dataset)(merged, (0.5, 0.5))
    found = variance_ratios(model, symmetry, ends, merged, after, Calibration(dataset, None, 50))
    assert len(found) == 2
    for ratio in found:
        assert ratio.before < 0.8
        assert ratio.after == pytest.approx(1, rel=1e-4) if restores else ratio.after < 0.8


def test_stale_batch_norm_collapses_and_reset_brings_all_of_it_back(seeded, normed, dataset):
    """Ends that have the statistics of the images: every BatchNorm's output has the deviation |weight| in them."""
    model, symmetry, ends = two(seeded, normed[0])
    batches = Calibration(dataset, None, 512)
    ends = [recompute(model, end, batches) for end in ends]
    assert all((end[f"{norm}.weight"] > 0).all() for end in ends for norm in ("1", "5", "9"))
    merged = mean(ends)
    after = Reset(augment=False).bind(model, symmetry, ends, dataset)(merged, (0.5, 0.5))
    for ratio in variance_ratios(model, symmetry, ends, merged, after, batches):
        assert ratio.before < 0.8
        assert ratio.after == pytest.approx(1, rel=0.03)


def test_layers_come_in_the_order_of_the_network(seeded, dataset):
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.idle, self.inner = nn.Linear(6, 3), nn.Linear(72, 6), nn.Linear(8, 6)
            self.norm, self.enter = nn.BatchNorm1d(8), nn.Linear(72, 8)

        def forward(self, inputs):
            return self.last(self.inner(self.norm(self.enter(inputs.flatten(1))).relu()).relu())

    model, symmetry, ends = two(seeded, Backwards)
    found = variance_ratios(model, symmetry, ends, ends[0], ends[0], Calibration(dataset, None, 50), (1, 0))
    assert [ratio.layer for ratio in found] == ["norm", "inner"]
    assert [ratio.before for ratio in found] == pytest.approx([1, 1])


def test_a_batch_norm_behind_a_sum_is_measured_beside_the_layers_before_it(seeded, dataset):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.inner = nn.Linear(72, 8), nn.Linear(8, 8)
            self.norm, self.last = nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, inputs):
            stream = self.enter(inputs.flatten(1))
            return self.last(self.norm(stream + self.inner(stream.relu())).relu())

    model, symmetry, ends = two(seeded, Residual)
    found = variance_ratios(model, symmetry, ends, ends[0], ends[0], Calibration(dataset, None, 50), (1, 0))
    assert [ratio.layer for ratio in found] == ["enter", "inner", "norm"]


def test_units_that_are_constant_in_the_ends_are_left_out(seeded, plain, dataset):
    model, symmetry, ends = two(seeded, plain[0])
    for end in ends:
        end["1.weight"][:4] = 0
    batches = Calibration(dataset, None, 50)
    first, second = variance_ratios(model, symmetry, ends, ends[0], ends[1], batches, (1, 0))
    assert (first.units, second.units) == (16, 16)
    assert first.before == pytest.approx(1)
    for end in ends:
        end["3.weight"][:] = 0
    (only,) = variance_ratios(model, symmetry, ends, ends[0], ends[1], batches, (1, 0))
    assert only == first


def test_each_network_makes_one_pass_and_nothing_handed_in_changes(seeded, network, dataset):
    model, symmetry, ends = two(seeded, network[0])
    model.train()
    kept, states = of_model(model), [*ends, mean(ends), ends[1]]
    copies = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    images = []
    counter = model.register_forward_pre_hook(lambda module, inputs: images.append(len(inputs[0])))
    variance_ratios(model, symmetry, ends, *states[2:], Calibration(dataset, 40, 20))
    counter.remove()
    assert sum(images) == 4 * 40 + 2
    for state, copy in zip(states, copies, strict=True):
        assert all(torch.equal(tensor, copy[name]) for name, tensor in state.items())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_weights_must_be_one_for_each_end(seeded, plain, dataset):
    model, symmetry, ends = two(seeded, plain[0])
    with pytest.raises(ValueError, match="1 weights for the 2"):
        variance_ratios(model, symmetry, ends, *ends, Calibration(dataset, None, 50), (1.0,))


def test_a_network_without_hidden_layers_has_no_ratios(seeded, dataset):
    model, symmetry, ends = two(seeded, lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)))
    after = NoCorrection().bind(model, symmetry, ends, dataset)(mean(ends), (0.5, 0.5))
    assert variance_ratios(model, symmetry, ends, mean(ends), after, Calibration(dataset, None, 50)) == []
