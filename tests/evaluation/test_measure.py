import numpy as np
import pytest
import scipy.special
import torch

from lmc.errors import UserError
from lmc.evaluation.measure import Splits, measure
from lmc.seeding import generator
from lmc.state import of_model


def by_hand(state, inputs, labels):
    """Cross-entropy and accuracy of the two-layer network in float64, without torch."""
    weights = {name: tensor.numpy().astype(np.float64) for name, tensor in state.items()}
    inner = np.maximum(inputs.flatten(1).numpy().astype(np.float64) @ weights["1.weight"].T + weights["1.bias"], 0)
    logits = inner @ weights["4.weight"].T + weights["4.bias"]
    losses = -scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return losses.mean(), (logits.argmax(1) == labels.numpy()).mean()


def test_is_the_mean_over_examples_of_the_network_in_evaluation_mode(seeded, dataset):
    model, state = seeded(0), of_model(seeded(1))
    found = measure(model, state, dataset.batches(dataset.train, 50))
    images = dataset.normalise(dataset.train.images)
    loss, accuracy = by_hand(state, images, dataset.train.labels)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.accuracy == accuracy
    assert found.examples == 120
    assert 0 < accuracy < 1


def test_the_batch_size_does_not_matter(seeded, dataset):
    model, state = seeded(0), of_model(seeded(1))
    whole = measure(model, state, dataset.batches(dataset.train, 120))
    for batch_size in (1, 7, 119):
        found = measure(model, state, dataset.batches(dataset.train, batch_size))
        assert found.loss == pytest.approx(whole.loss, rel=1e-6)
        assert (found.accuracy, found.examples) == (whole.accuracy, whole.examples)


def test_examples_weigh_the_same_in_batches_of_different_sizes(seeded):
    """A mean of the means of batches would be far off."""
    model, state = seeded(0), of_model(seeded(1))
    inputs = torch.randn(3000, 1, 4, 4, generator=generator(0))
    labels = torch.zeros(3000, dtype=torch.int64)
    labels[2999] = 1
    batches = [(inputs[:2999], labels[:2999]), (inputs[2999:] * 50, labels[2999:])]
    loss, _ = by_hand(state, torch.cat([batch for batch, _ in batches]), labels)
    assert measure(model, state, batches).loss == pytest.approx(loss, rel=1e-6)


def test_nothing_handed_in_changes(seeded, dataset):
    model, state = seeded(0, norm=True), of_model(seeded(1, norm=True))
    before, kept = of_model(model), {name: tensor.clone() for name, tensor in state.items()}
    batches = [(x.clone(), y.clone()) for x, y in dataset.batches(dataset.train, 50)]
    measure(model, state, batches)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state.items())
    for (x, y), (inputs, labels) in zip(batches, dataset.batches(dataset.train, 50), strict=True):
        assert torch.equal(x, inputs)
        assert torch.equal(y, labels)


def test_a_diverged_network_is_shown_as_such(seeded, dataset):
    state = of_model(seeded(1))
    state["4.bias"][:] = torch.nan
    assert np.isnan(measure(seeded(0), state, dataset.batches(dataset.test, 50)).loss)


def test_batches_without_examples_are_refused(seeded):
    with pytest.raises(UserError, match="no examples"):
        measure(seeded(0), of_model(seeded(1)), iter([]))


def test_splits_are_measured_on_fixed_subsets(seeded, dataset):
    model, state = seeded(0), of_model(seeded(1))
    found = Splits(dataset, train_examples=30, test_examples=None, batch_size=8).measure(model, state)
    assert {split: of.examples for split, of in found.items()} == {"train": 30, "test": 47}
    for split, images in (("train", dataset.train.first(30)), ("test", dataset.test)):
        loss, accuracy = by_hand(state, dataset.normalise(images.images), images.labels)
        assert found[split].loss == pytest.approx(loss, rel=1e-6)
        assert found[split].accuracy == pytest.approx(accuracy)


def test_more_examples_than_there_are_is_refused_before_anything_is_measured(dataset):
    with pytest.raises(UserError, match="48"):
        Splits(dataset, test_examples=48)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_of_the_data_set_does_not_matter(seeded, dataset):
    model, state = seeded(0), of_model(seeded(1))
    here = Splits(dataset).measure(model, state)
    there = Splits(dataset.to("cuda")).measure(model, state)
    for split, of in here.items():
        assert there[split].loss == pytest.approx(of.loss, rel=1e-5)
        assert there[split].accuracy == of.accuracy
