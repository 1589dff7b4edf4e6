import pytest
import torch

from lmc.evaluation.barycentre import measure_barycentre
from lmc.evaluation.measure import measure
from lmc.evaluation.path import PathEvaluation
from lmc.state import of_model
from lmc.statistics.none import NoCorrection


def test_is_the_network_of_mean_weights_on_both_splits(seeded, dataset):
    model, states = seeded(9), [of_model(seeded(seed)) for seed in range(3)]
    splits = PathEvaluation(train_examples=30).splits(dataset)
    used = []

    def correction(state, weights):
        used.append(weights)
        return NoCorrection().bind(model, None, states, dataset)(state, weights)

    found = measure_barycentre(model, states, correction, splits)
    mean = {name: sum(state[name] for state in states) / 3 for name in states[0]}
    for split, images in (("train", dataset.train.first(30)), ("test", dataset.test)):
        expected = measure(model, mean, dataset.batches(images, 50))
        assert found[split].loss == pytest.approx(expected.loss, rel=1e-5)
        assert found[split].examples == expected.examples
    assert used == [[1 / 3] * 3]


def test_of_equal_networks_is_that_network(seeded, dataset):
    model, state = seeded(9), of_model(seeded(0))
    splits = PathEvaluation().splits(dataset)
    correction = NoCorrection().bind(model, None, [state] * 4, dataset)
    found = measure_barycentre(model, [dict(state) for _ in range(4)], correction, splits)
    assert found["test"].loss == pytest.approx(splits.measure(model, state)["test"].loss, rel=1e-6)
    assert torch.equal(state["1.weight"], of_model(seeded(0))["1.weight"])
