"""Observed units, against forward hooks on the same networks."""

import torch
from torch import Tensor, nn

from lmc import seeding, state
from lmc.symmetry.activations import Probe
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation


def network() -> nn.Module:
    with seeding.isolated(0, "network"):
        return nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(4 * 9, 5), nn.ReLU(), nn.Linear(5, 2)),
        ).eval()


IMAGES = torch.randn(3, 1, 8, 8, generator=seeding.generator(0, "images"))


def hooked(model: nn.Module, index: int) -> Tensor:
    """The output of layer `index` as (units, samples)."""
    found: list[Tensor] = []
    handle = model[index].register_forward_hook(lambda module, inputs, output: found.append(output))
    with torch.no_grad():
        model(IMAGES)
    handle.remove()
    return found[0].transpose(0, 1).flatten(1)


def test_post_activations_are_the_outputs_of_the_nonlinearities():
    model = network()
    symmetry = discover(model, IMAGES)
    seen = [(group, rows) for group, _, rows in Probe(model, symmetry)([state.of_model(model)], IMAGES)]
    assert [group for group, _ in seen] == list(symmetry.groups)
    for (_, (rows,)), index in zip(seen, (2, 6), strict=True):
        torch.testing.assert_close(rows, hooked(model, index))


def test_pre_activations_are_their_inputs():
    model = network()
    symmetry = discover(model, IMAGES)
    seen = [rows for _, _, rows in Probe(model, symmetry, "pre")([state.of_model(model)], IMAGES)]
    for (rows,), index in zip(seen, (1, 5), strict=True):
        torch.testing.assert_close(rows, hooked(model, index))


def test_a_permuted_network_shows_permuted_units():
    model = network()
    symmetry = discover(model, IMAGES)
    permutation = Permutation.random(symmetry, seeding.generator(1, "permutation"))
    weights = state.of_model(model)
    for group, _, (plain, moved) in Probe(model, symmetry)([weights, permutation.apply(weights)], IMAGES):
        torch.testing.assert_close(moved, plain[permutation[group]])


def test_batches_of_another_size_are_observed_too():
    model = network()
    probe = Probe(model, discover(model, IMAGES))
    weights = state.of_model(model)
    for (_, _, (whole,)), (_, _, (part,)) in zip(probe([weights], IMAGES), probe([weights], IMAGES[:1]), strict=True):
        assert part.shape[1] == whole.shape[1] // 3


def test_a_group_inside_a_stream_is_observed_at_every_block():
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.block, self.leave = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.enter(x))
            return self.leave(torch.relu(x + self.block(x)))

    model = Residual()
    symmetry = discover(model, torch.zeros(2, 4))
    seen = [group for group, _, _ in Probe(model, symmetry)([state.of_model(model)], torch.zeros(3, 4))]
    assert seen == ["enter", "enter"]
