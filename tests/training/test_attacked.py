"""Training on adversarial examples: against a loop written by hand, resumed, and judged by an independent attack."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc.curve.bezier import Bezier
from lmc.curve.geodesic import Geodesic
from lmc.curve.nudged_elastic_band import NudgedElasticBand
from lmc.curve.simplex import Simplex
from lmc.dataset.augmentation import Augmentation
from lmc.dataset.digits import Digits
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import generator, isolated
from lmc.state import State, of_model
from lmc.training.adam import Adam
from lmc.training.attack.pgd import PGD
from lmc.training.loop import fit
from lmc.training.network import NetworkTrainable
from lmc.training.recipe import Training
from lmc.training.schedule.constant import Constant

Settings = Callable[..., Training]
Record = Mapping[str, float]


class Stop(Exception):
    """Ends a run from within."""


def trained(
    model: nn.Module, dataset: Dataset, training: Training, folder: Path, stop_after: int | None = None
) -> tuple[State, list[Record]]:
    trainable = NetworkTrainable(model, of_model(model))
    seen: list[Record] = []

    def on_epoch(record: Record) -> None:
        seen.append(record)
        if record["epoch"] == stop_after:
            raise Stop

    fit(model, trainable, dataset, training, seed=0, folder=folder, on_epoch=on_epoch)
    return trainable.final_state(), seen


def without_time(records: list[Record]) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k not in ("seconds", "images_per_second")} for record in records]


def by_hand(model: nn.Module, dataset: Dataset, training: Training, budget: float, step: float) -> State:
    """A plain loop with two steps of the attack written out; the statistics are those of a network of its own."""
    net = copy.deepcopy(model).train()
    optimizer = training.optimizer([p for p in net.parameters() if p.requires_grad], training.weight_decay)
    for epoch in range(training.epochs):
        order = torch.randperm(len(dataset.train), generator=generator(0, "shuffle", epoch))
        noise = generator(0, "attack", epoch)
        batches = [batch for batch in order.split(training.batch_size) if len(batch) > 1]
        for number, batch in enumerate(batches):
            images, labels = dataset.train.images[batch].float() / 255, dataset.train.labels[batch]
            target = copy.deepcopy(net)
            pixels = images + budget * (2 * torch.rand(images.shape, generator=noise) - 1)
            pixels = pixels.clamp(0, 1)
            for _ in range(2):
                pixels = pixels.detach().requires_grad_()
                cross_entropy(target((pixels - 0.5) / 0.25), labels).backward()
                assert pixels.grad is not None
                moved = pixels.detach() + step * pixels.grad.sign()
                pixels = torch.minimum(torch.maximum(moved, images - budget), images + budget).clamp(0, 1)
            optimizer.param_groups[0]["lr"] = training.rate(epoch + number / len(batches))
            optimizer.zero_grad()
            cross_entropy(net((pixels.detach() - 0.5) / 0.25), labels).backward()
            optimizer.step()
    return of_model(net)


def test_the_loop_trains_on_the_attacked_batch(
    convnet: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path
) -> None:
    """BatchNorm included: the attack uses the statistics of the minibatch and records none of them."""
    attack = PGD(budget=0.1, step=0.07, steps=2)
    found, _ = trained(convnet, dataset, sgd(epochs=2, attack=attack, channels_last=False), tmp_path / "found")
    expected = by_hand(convnet, dataset, sgd(epochs=2), 0.1, 0.07)
    plain, _ = trained(convnet, dataset, sgd(epochs=2, channels_last=False), tmp_path / "plain")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-3, atol=2e-3)
    assert (found["8.weight"] - expected["8.weight"]).norm() < 0.05 * (plain["8.weight"] - expected["8.weight"]).norm()
    assert int(found["1.num_batches_tracked"]) == int(plain["1.num_batches_tracked"]) == 10


def test_history_is_of_the_attacked_images(mlp: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path) -> None:
    """The first epoch at a rate of almost 0 measures the initial network."""
    still = {"epochs": 1, "learning_rate": 1e-9, "warmup_epochs": 0.0, "weight_decay": 0.0}
    _, (plain,) = trained(mlp, dataset, sgd(**still), tmp_path / "plain")
    attacked = sgd(**still, attack=PGD(budget=0.2, step=0.1, steps=3))
    _, (record,) = trained(mlp, dataset, attacked, tmp_path / "attacked")
    assert record["train_loss"] > plain["train_loss"] + 0.2
    assert record["validation_loss"] == pytest.approx(plain["validation_loss"], rel=1e-6)


@pytest.mark.parametrize("stops", [(1,), (1, 3)])
def test_an_interrupted_attacked_run_ends_with_the_same_bytes(
    convnet: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path, stops: tuple[int, ...]
) -> None:
    moved = replace(dataset, augmentation=Augmentation(flip=True))
    training = sgd(epochs=4, attack=PGD(steps=2), precision="auto")
    for stop in stops:
        with pytest.raises(Stop):
            trained(convnet, moved, training, tmp_path / "broken", stop_after=stop)
    found, seen = trained(convnet, moved, training, tmp_path / "broken")
    expected, unbroken = trained(convnet, moved, training, tmp_path / "whole")
    assert {k: t.numpy().tobytes() for k, t in found.items()} == {k: t.numpy().tobytes() for k, t in expected.items()}
    assert without_time(seen) == without_time(unbroken)


def test_a_run_with_another_attack_is_not_continued(
    mlp: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        trained(mlp, dataset, sgd(attack=PGD(steps=2)), tmp_path, stop_after=1)
    for other in (sgd(), sgd(attack=PGD(steps=3))):
        with pytest.raises(UserError, match="belongs to a run with other settings"):
            trained(mlp, dataset, other, tmp_path)


def test_a_step_costs_the_passes_of_the_attack_and_its_own(
    mlp: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path
) -> None:
    calls: list[int] = []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: calls.append(1))
    try:
        trained(mlp, replace(dataset, validation=dataset.train.select(torch.arange(0))), sgd(epochs=1), tmp_path / "a")
        plain = len(calls)
        attacked = sgd(epochs=1, attack=PGD(steps=4))
        trained(mlp, replace(dataset, validation=dataset.train.select(torch.arange(0))), attacked, tmp_path / "b")
    finally:
        handle.remove()
    assert plain == 5 * 5  # steps, and modules of the network, itself included
    assert len(calls) - plain == plain * (4 + 1)


def test_a_curve_is_attacked_at_the_point_that_is_drawn(
    convnet: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path
) -> None:
    """It changes the curve, can be continued, and leaves the ends as they are."""
    ends = []
    for seed in (0, 1):
        with isolated(seed, "ends"):
            model = copy.deepcopy(convnet)
            for layer in model:
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.reset_parameters()
        ends.append(of_model(model))
    bends = {}
    for name, attack in (("plain", None), ("attacked", PGD(steps=2, budget=0.1, step=0.07))):
        curve = Bezier(training=sgd(epochs=2, attack=attack))
        for folder in (tmp_path / name, tmp_path / f"{name} again"):
            curve.fit(convnet, *ends, dataset, seed=0, folder=folder, on_epoch=lambda record: None)
            path = curve.path(*ends, folder)
            again, bends[name] = bends.get(name), path.state(0.5)["8.weight"]
            assert again is None or torch.equal(again, bends[name])
        assert torch.equal(path.state(0)["8.weight"], ends[0]["8.weight"])
    assert not torch.allclose(bends["plain"], bends["attacked"], atol=1e-5)


def test_a_curve_that_looks_at_several_networks_cannot_be_attacked(
    mlp: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path
) -> None:
    class Several(NetworkTrainable):
        def descend(self, *_: object) -> None: ...

        def stepped(self) -> None: ...

    training = sgd(attack=PGD())
    with pytest.raises(ValueError, match="has not one that could be attacked"):
        fit(mlp, Several(mlp, of_model(mlp)), dataset, training, seed=0, folder=tmp_path, on_epoch=lambda record: None)
    assert not list(tmp_path.iterdir())
    for curve in (Geodesic, Simplex, NudgedElasticBand):  # before any training
        with pytest.raises(
            UserError, match=r"curve\.training\.attack: this curve looks at several networks in one step"
        ):
            curve(training=training)


class Normalised(nn.Module):
    """A trained network with its normalisation in front, for attacks of images in [0, 1]."""

    def __init__(self, model: nn.Module, dataset: Dataset) -> None:
        super().__init__()
        self.model = copy.deepcopy(model)
        self.mean, self.std = dataset.mean[0], dataset.std[0]

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.model((pixels - self.mean) / self.std)
        return logits


@pytest.mark.filterwarnings("default")  # the library's own
def test_training_on_attacked_digits_helps_against_an_independent_attack(tmp_path: Path) -> None:
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    dataset = Digits().load()
    with isolated(0, "digits"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    images, labels = dataset.test.images.float().numpy() / 255, dataset.test.labels.numpy()
    clean, robust = {}, {}
    for name, attack in (("plain", None), ("attacked", PGD(budget=0.1, step=0.04, steps=4))):
        training = Adam(schedule=Constant(), epochs=8, batch_size=64, learning_rate=5e-3, attack=attack)
        state, _ = trained(model, dataset, training, tmp_path / name)
        network = Normalised(model, dataset).eval()
        network.model.load_state_dict(state)
        classifier = classification.PyTorchClassifier(
            network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0), device_type="cpu"
        )
        theirs = evasion.ProjectedGradientDescentPyTorch(
            classifier, eps=0.1, eps_step=0.02, max_iter=10, batch_size=len(labels), verbose=False
        )
        attacked = theirs.generate(images, np.eye(10)[labels])
        clean[name] = float((classifier.predict(images).argmax(1) == labels).mean())
        robust[name] = float((classifier.predict(attacked).argmax(1) == labels).mean())
    assert min(clean.values()) > 0.9
    assert robust["plain"] < 0.6
    assert robust["attacked"] > robust["plain"] + 0.15
