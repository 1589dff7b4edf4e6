"""Training by rearrangement: values stay, their places are learnt."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn

from lmc.architecture.mlp import MLP
from lmc.dataset.digits import Digits
from lmc.endpoints.base import Ingredients
from lmc.endpoints.permutation_trained import PermutationTrained
from lmc.errors import UserError
from lmc.evaluation.measure import Splits
from lmc.seeding import generator, isolated
from lmc.state import State, of_model
from lmc.statistics.moments import Calibration
from lmc.statistics.reset import recompute
from lmc.training.adam import Adam
from lmc.training.rearrangement import Rearranged
from lmc.training.schedule.constant import Constant
from tests.endpoints.small import data, make, mlp, sgd


def initial(ingredients: Ingredients, seed: int) -> State:
    with isolated(seed, "initialisation"):
        return of_model(ingredients.network())


def ordered(tensor: torch.Tensor) -> bytes:
    return tensor.flatten().sort().values.numpy().tobytes()


@pytest.mark.parametrize("within", ["tensor", "unit"])
@pytest.mark.parametrize("vectors", ["permuted", "kept"])
def test_every_tensor_holds_its_initial_values(ingredients: Ingredients, tmp_path: Path, within: str, vectors: str):
    found, _ = make(PermutationTrained(period=4, within=within, vectors=vectors), 5, ingredients, tmp_path)
    begun = initial(ingredients, 5)
    moved = set()
    for name, parameter in ingredients.network().named_parameters(remove_duplicate=False):
        assert ordered(found[name]) == ordered(begun[name]), name
        if within == "unit" and parameter.ndim >= 2:
            assert all(ordered(row) == ordered(other) for row, other in zip(found[name], begun[name], strict=True))
        if not torch.equal(found[name], begun[name]):
            moved.add(name)
        assert name in moved or parameter.ndim < 2 or not parameter.requires_grad, name
    constants = {name for name, tensor in begun.items() if tensor.ndim == 1 and len(tensor.unique()) == 1}
    assert constants
    assert not constants & moved
    if vectors == "kept":
        assert all(begun[name].ndim >= 2 for name in moved)
    for name in ("8.weight", "9.weight"):
        assert torch.equal(found.get(name, torch.empty(0)), found.get("8.weight", torch.empty(0)))


def test_vectors_can_be_trained_freely(tmp_path: Path):
    made_of = Ingredients(mlp, data(), sgd(), (5, 7))
    found, _ = make(PermutationTrained(period=4, vectors="trained"), 5, made_of, tmp_path)
    begun = initial(made_of, 5)
    for name, parameter in mlp().named_parameters():
        assert (ordered(found[name]) == ordered(begun[name])) == (parameter.ndim >= 2), name


def test_the_rearrangement_is_the_nearest_one():
    """Reference: of all assignments of the initial values to the entries, the one at the smallest squared distance."""
    values, free = (torch.randn(4, 5, generator=generator(0, name)) for name in ("values", "free"))
    found = Rearranged({"w": values})("w", free)
    cost = (free.reshape(-1, 1) - values.reshape(1, -1)).square().double().numpy()
    rows, columns = linear_sum_assignment(cost)
    np.testing.assert_array_equal(found.flatten().numpy()[rows], values.flatten().numpy()[columns])
    rowwise = Rearranged({"w": values}, "unit")("w", free)
    for row, (entry, own) in enumerate(zip(free, values, strict=True)):
        cost = (entry.reshape(-1, 1) - own.reshape(1, -1)).square().double().numpy()
        np.testing.assert_array_equal(rowwise[row].numpy(), own.numpy()[linear_sum_assignment(cost)[1]])


def test_a_rearrangement_stays_as_it_is_and_ties_keep_their_order():
    values = torch.tensor([[3.0, 1.0], [2.0, 1.0]])
    constraint = Rearranged({"w": values})
    assert torch.equal(constraint("w", values), values)
    assert constraint("w", torch.zeros(2, 2)).tolist() == [[1, 1], [2, 3]]
    assert constraint("other", values) is values


def test_what_is_not_a_number_is_not_hidden():
    constraint = Rearranged({"w": torch.arange(4.0).reshape(2, 2)})
    assert constraint("w", torch.full((2, 2), torch.nan)).isnan().all()


def test_batch_norm_has_the_statistics_of_the_rearranged_weights(tmp_path: Path):
    made_of = Ingredients(mlp, data(), sgd(), (5, 7))
    found, _ = make(PermutationTrained(period=7), 5, made_of, tmp_path)
    again = recompute(mlp(), found, Calibration(made_of.dataset, None, 500))
    for name in ("norms.0.running_mean", "norms.1.running_var"):
        torch.testing.assert_close(found[name], again[name])


def test_digits_are_learnt(tmp_path: Path):
    dataset = Digits().load()
    training = Adam(schedule=Constant(), epochs=10)

    def network() -> nn.Module:
        return MLP(input_shape=dataset.input_shape, classes=10, width=64, depth=2)

    found, _ = make(PermutationTrained(), 0, Ingredients(network, dataset, training, (0, 1)), tmp_path)
    assert Splits(dataset, None, None, 1000).measure(network(), found)["test"].accuracy > 0.9
    before = Splits(dataset, None, None, 1000).measure(
        network(), initial(Ingredients(network, dataset, training, (0,)), 0)
    )
    assert before["test"].accuracy < 0.3


def test_a_network_with_nothing_to_rearrange_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    with pytest.raises(UserError, match="nothing to rearrange"):
        PermutationTrained().check(model, data(), sgd(), (0, 1))
    PermutationTrained(vectors="trained").check(model, data(), sgd(), (0, 1))
