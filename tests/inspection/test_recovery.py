import torch
from torch import nn

from lmc import seeding
from lmc.inspection.recovery import Planted, by_weights, twin_share
from lmc.symmetry.discover import discover
from lmc.symmetry.permutation import Permutation


def mlp() -> nn.Sequential:
    with seeding.isolated(0, "test"):
        return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 7), nn.ReLU(), nn.Linear(7, 3))


def planted(model: nn.Module) -> Planted:
    inputs = torch.randn(2, 5, generator=seeding.generator(0, "inputs"))
    return Planted.draw(model, discover(model, inputs), inputs, seed=1)


def test_the_answer_brings_the_copy_back_and_the_model_is_untouched():
    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = planted(model)
    back = found.answer.apply(found.moving)
    assert all(torch.equal(back[name], tensor) for name, tensor in found.fixed.items())
    assert not all(torch.equal(found.moving[name], tensor) for name, tensor in found.fixed.items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not torch.equal(found.fixed["0.bias"], before["0.bias"])


def test_the_share_counts_units():
    found = planted(mlp())
    assert found.recovered(found.answer) == 1
    value = found.answer["0"].clone()
    value[[0, 1]] = value[[1, 0]]
    assert found.recovered(Permutation(found.symmetry, {**found.answer, "0": value})) == 17 / 19


def test_weight_matching_recovers_all_of_a_small_network():
    assert by_weights(planted(mlp())).share == 1


def test_twins_are_counted():
    model = mlp()
    found = planted(model)
    inputs = torch.randn(8, 5, generator=seeding.generator(0, "inputs"))
    assert twin_share(found, inputs) == 0
    for name in ("0.weight", "0.bias"):
        found.fixed[name][3] = 2 * found.fixed[name][5]  # as far as a correlation can see
    assert twin_share(found, inputs) == 2 / 19
    found.fixed["0.weight"][0] = 0  # says the same to every input
    assert twin_share(found, inputs) == 3 / 19
