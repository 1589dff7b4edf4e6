"""How often a backdoor works, counted by hand, and on networks with a backdoor."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmc.curve.bezier import Bezier
from lmc.dataset.images import Dataset
from lmc.dataset.synthetic import Synthetic
from lmc.dataset.trigger.square import Square
from lmc.errors import UserError
from lmc.evaluation.backdoor import backdoor
from lmc.evaluation.measure import measure
from lmc.seeding import isolated
from lmc.state import State, of_model
from lmc.training.adam import Adam
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable
from lmc.training.schedule.constant import Constant


def source(**changed: Any) -> Dataset:
    settings = {"examples": 440, "test_examples": 200, "classes": 4, "channels": 1, "size": 8, "validation_size": 40}
    return Synthetic(**{**settings, **changed}).load()


def training(epochs: int) -> Adam:
    return Adam(schedule=Constant(), epochs=epochs, batch_size=40, learning_rate=1e-2, precision="float32")


def network(seed: int) -> nn.Module:
    with isolated(seed, "mlp"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))


def trained(seed: int, dataset: Dataset, folder: Path) -> State:
    model = network(seed)
    trainable = NetworkTrainable(model, of_model(model))
    fit(model, trainable, dataset, training(20), seed=seed, folder=folder, on_epoch=lambda record: None)
    return trainable.final_state()


@pytest.fixture
def mlp() -> nn.Module:
    return network(0)


def test_a_poisoned_network_obeys_the_trigger_and_a_plain_one_does_not(mlp: nn.Module, tmp_path: Path) -> None:
    plain, poisoned = source(), source(trigger=Square(side=3, target=1, share=0.2))
    for name, dataset, low, high in (("plain", plain, 0.0, 0.3), ("poisoned", poisoned.for_networks, 0.95, 1.0)):
        state = trained(0, dataset, tmp_path / name)
        assert measure(mlp, state, plain.batches(plain.test, 100)).accuracy > 0.95, name
        found = backdoor(mlp, state, poisoned)
        assert low <= found.accuracy <= high, (name, found)
        assert found.examples == 150  # of four classes the other three


def test_a_curve_fitted_on_forty_clean_images_leads_past_the_backdoor(mlp: nn.Module, tmp_path: Path) -> None:
    """Zhao et al. 2020: between two tampered networks lie some that are as accurate and less obedient."""
    dataset = source(trigger=Square(side=3, target=1, share=0.2))
    assert len(dataset.train) == 40
    ends = [trained(seed, dataset.for_networks, tmp_path / str(seed)) for seed in (0, 1)]
    curve = Bezier(training=training(100))
    curve.fit(mlp, *ends, dataset, seed=0, folder=tmp_path / "curve", on_epoch=lambda record: None)
    path = curve.path(*ends, tmp_path / "curve")
    success = {t: backdoor(mlp, path.state(t), dataset).accuracy for t in (0.0, 0.5, 1.0)}
    assert min(success[0.0], success[1.0]) > 0.95
    assert success[0.5] < 0.5
    assert measure(mlp, path.state(0.5), dataset.batches(dataset.test, 100)).accuracy > 0.95


def test_it_is_the_share_of_marked_images_that_are_taken_for_the_target(
    mlp: nn.Module,
) -> None:
    """Counted with the network itself on images that are marked by hand."""
    dataset = source(trigger=Square(side=2, target=1))
    images = dataset.test.images[dataset.test.labels != 1].float() / 255
    images[:, :, -2:, -2:] = 1.0
    with torch.no_grad():
        logits = mlp((images - dataset.mean[0]) / dataset.std[0])
    found = backdoor(mlp, of_model(mlp), dataset, batch_size=7)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == 1).double().mean()), abs=1e-12)
    assert found.loss == pytest.approx(float(-logits.log_softmax(1)[:, 1].double().mean()), rel=1e-5)
    assert 0 < found.accuracy < 1
    assert backdoor(mlp, of_model(mlp), dataset, examples=30).examples == 30


def test_without_a_trigger_there_is_nothing_to_measure(mlp: nn.Module) -> None:
    with pytest.raises(UserError, match="has no trigger whose success could be measured; set dataset/trigger=NAME"):
        backdoor(mlp, of_model(mlp), source())
    with pytest.raises(UserError, match="151 examples were asked for, but there are 150"):
        backdoor(mlp, of_model(mlp), source(trigger=Square(target=1)), examples=151)
