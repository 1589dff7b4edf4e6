"""The attacked accuracy against a loop written by hand, and its contracts."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.evaluation.measure import measure
from lmc.evaluation.robustness import robustness
from lmc.seeding import generator
from lmc.state import of_model
from lmc.training.attack.pgd import PGD

Seeded = Callable[..., nn.Module]
ATTACK = PGD(budget=0.1, step=0.03, steps=3)


def test_one_step_is_the_fast_gradient_sign_method_by_hand(dataset: Dataset, seeded: Seeded) -> None:
    model = seeded(0, norm=True)
    state = of_model(model)
    images = dataset.test.images.float() / 255
    net = seeded(0, norm=True).eval()
    pixels = images.clone().requires_grad_()
    cross_entropy(net((pixels - 0.4) / 0.2), dataset.test.labels).backward()
    assert pixels.grad is not None
    attacked = (images + 0.05 * pixels.grad.sign()).clamp(0, 1)
    with torch.no_grad():
        logits = net((attacked - 0.4) / 0.2)
    attack = PGD(budget=0.05, step=0.05, steps=1, random_start=False)
    found = robustness(model, state, dataset, dataset.test, attack, seed=0, batch_size=10)
    assert found.loss == pytest.approx(float(cross_entropy(logits, dataset.test.labels)), rel=1e-5)
    assert found.accuracy == pytest.approx(float((logits.argmax(1) == dataset.test.labels).double().mean()), abs=1e-12)
    assert found.examples == 47


def test_an_attack_that_does_nothing_measures_the_images_themselves(dataset: Dataset, seeded: Seeded) -> None:
    model = seeded(0)

    def idle(network: object, images: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
        return images

    found = robustness(model, of_model(model), dataset, dataset.test, idle, seed=0)
    plain = measure(model, of_model(model), dataset.batches(dataset.test, 500))
    assert found.accuracy == plain.accuracy
    assert found.loss == pytest.approx(plain.loss, rel=1e-5)


def test_the_attack_is_made_for_the_network_that_is_measured(dataset: Dataset, seeded: Seeded) -> None:
    """Images that are attacked against another network harm less."""
    model, other = seeded(0), seeded(1)
    own = robustness(model, of_model(model), dataset, dataset.test, ATTACK, seed=0)
    clean = measure(model, of_model(model), dataset.batches(dataset.test, 500))

    def transferred(network: object, images: Tensor, labels: Tensor, noise: torch.Generator) -> Tensor:
        other.eval()
        return ATTACK(lambda pixels: other(dataset.normalise(pixels)), images, labels, noise)

    theirs = robustness(model, of_model(model), dataset, dataset.test, transferred, seed=0)
    assert own.loss > theirs.loss + 0.05
    assert own.loss > clean.loss + 0.05


def test_the_seed_decides_and_the_batch_size_does_not(dataset: Dataset, seeded: Seeded) -> None:
    model = seeded(0, norm=True)
    state = of_model(model)
    attack = replace(ATTACK, steps=1)

    def loss(seed: int, batch_size: int) -> float:
        return robustness(model, state, dataset, dataset.test, attack, seed=seed, batch_size=batch_size).loss

    assert loss(0, 47) == loss(0, 47)
    assert loss(0, 5) == pytest.approx(loss(0, 47), rel=1e-6)
    assert abs(loss(1, 47) / loss(0, 47) - 1) > 1e-4


def test_nothing_that_is_handed_in_is_changed(dataset: Dataset, seeded: Seeded) -> None:
    model = seeded(0, norm=True)
    state, before = of_model(model), of_model(model)
    images = dataset.test.images.clone()
    robustness(seeded(1, norm=True), state, dataset, dataset.test, ATTACK, seed=0)
    robustness(model, state, dataset, dataset.test, ATTACK, seed=0)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in (*state.items(), *of_model(model).items()))
    assert torch.equal(dataset.test.images, images)


def test_a_subset_is_the_fixed_one(dataset: Dataset, seeded: Seeded) -> None:
    model = seeded(0)
    few = robustness(model, of_model(model), dataset, dataset.test, ATTACK, seed=0, examples=12)
    same = robustness(model, of_model(model), dataset, dataset.test.first(12), ATTACK, seed=0)
    assert few == same
    assert few.examples == 12
    with pytest.raises(UserError, match="48 examples were asked for, but there are 47"):
        robustness(model, of_model(model), dataset, dataset.test, ATTACK, seed=0, examples=48)
    empty = dataset.test.select(torch.arange(0))
    with pytest.raises(UserError, match="no image to attack"):
        robustness(model, of_model(model), dataset, empty, ATTACK, seed=0)


def test_noise_is_drawn_image_by_image() -> None:
    """What makes the starts the same whatever the batch size is."""
    whole, parts = generator(0, "x"), generator(0, "x")
    together = torch.rand(23, 3, 5, generator=whole)
    apart = [torch.rand(n, 3, 5, generator=parts) for n in (1, 7, 15)]
    assert torch.equal(torch.cat(apart), together)
