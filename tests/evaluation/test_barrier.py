import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lmc.errors import UserError
from lmc.evaluation.barrier import barrier
from lmc.evaluation.path import PathEvaluation
from lmc.results import path_statistics
from lmc.state import of_model
from lmc.statistics.none import NoCorrection


@pytest.fixture
def batches(dataset):
    return list(dataset.batches(dataset.test, 20))


def test_equals_the_path_evaluation(seeded, dataset, line, batches):
    model, fixed, moving = seeded(9), of_model(seeded(0)), of_model(seeded(1))
    found = barrier(model, fixed, moving, batches, points=9)
    correction = NoCorrection().bind(model, None, (), dataset)
    raw = PathEvaluation(grid=9).measure(model, line(fixed, moving), correction, dataset)
    test = [point for point in raw if point.split == "test"]
    t = [point.t for point in test]
    assert found["loss"] == pytest.approx(path_statistics(t, [point.loss for point in test]))
    assert found["error"] == pytest.approx(path_statistics(t, [1 - point.accuracy for point in test]))
    assert found["loss"]["path_max"] > found["loss"]["path_min"]


@pytest.mark.parametrize("norm", [False, True])
def test_a_network_and_itself_have_none(seeded, batches, norm):
    state = of_model(seeded(0, norm=norm))
    found = barrier(seeded(9, norm=norm), state, dict(state), batches)
    assert len(found["loss"]) == len(found["error"]) == 8
    assert all(abs(value) < 1e-6 for of in found.values() for name, value in of.items() if name.startswith("barrier"))


def test_a_data_loader_is_as_good_as_a_list(seeded, batches):
    model, fixed, moving = seeded(9), of_model(seeded(0)), of_model(seeded(1))
    inputs, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=11)
    from_loader, from_list = (barrier(model, fixed, moving, given, points=3) for given in (loader, batches))
    assert from_loader["loss"] == pytest.approx(from_list["loss"], rel=1e-5)


def test_stale_statistics_of_merged_networks_are_not_measured(seeded, batches):
    """The running statistics that are handed in play no part: at every point they are recomputed."""
    model, fixed, moving = seeded(9, norm=True), of_model(seeded(0, norm=True)), of_model(seeded(1, norm=True))
    expected = barrier(model, fixed, moving, batches, points=3)
    spoilt = {**moving, "2.running_var": moving["2.running_var"] + 100}
    assert barrier(model, fixed, spoilt, batches, points=3) == expected


def test_the_model_is_left_as_it_was(seeded, batches):
    model, fixed, moving = seeded(9, norm=True), of_model(seeded(0, norm=True)), of_model(seeded(1, norm=True))
    model[4].eval()
    flags, before = [module.training for module in model.modules()], of_model(model)
    barrier(model, fixed, moving, batches, points=3)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_generator_is_refused(seeded, batches):
    with pytest.raises(UserError, match="not a generator"):
        barrier(seeded(9), of_model(seeded(0)), of_model(seeded(1)), iter(batches))


def test_an_even_number_of_points_is_refused(seeded, batches):
    with pytest.raises(UserError, match="odd"):
        barrier(seeded(9), of_model(seeded(0)), of_model(seeded(1)), batches, points=10)
