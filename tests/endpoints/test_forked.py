"""Copies of one network: what they share, and what an unbroken training would have made of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from lmc.dataset.augmentation import Augmentation
from lmc.endpoints.base import Ingredients
from lmc.endpoints.forked import Forked
from lmc.endpoints.independent import Independent
from lmc.seeding import generator, isolated
from lmc.state import of_model
from lmc.training.adam import Adam
from lmc.training.part import Earlier
from lmc.training.recipe import Training
from lmc.training.schedule.cosine import Cosine
from tests.endpoints.small import contents, data, make, mlp, sgd

ADAM = Adam(schedule=Cosine(), epochs=4, batch_size=20, warmup_epochs=1.5)


@pytest.mark.parametrize("training", [sgd(), sgd(checkpoint_every=3), ADAM], ids=["sgd", "rare checkpoints", "adam"])
@pytest.mark.parametrize("shared", [0, 1, 3])
def test_the_copy_with_the_shared_seed_is_an_unbroken_training(training: Training, shared: int, tmp_path: Path):
    made_of = Ingredients(mlp, data(), training, (5, 7))
    kind = Forked(shared_epochs=shared, shared_seed=5)
    found, seen = make(kind, 5, made_of, tmp_path / "forked")
    expected, whole = make(Independent(), 5, made_of, tmp_path / "independent")
    assert contents(found) == contents(expected)
    assert [record["train_loss"] for record in seen] == [record["train_loss"] for record in whole]


def test_copies_share_the_first_epochs_and_part_after(ingredients: Ingredients, tmp_path: Path):
    kind = Forked(shared_epochs=2, shared_seed=3)
    (first, one), (second, other) = (make(kind, label, ingredients, tmp_path / str(label)) for label in (5, 7))
    losses = [[record["train_loss"] for record in seen] for seen in (one, other)]
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][2] != losses[1][2]
    assert contents(first) != contents(second)


def test_a_fork_is_a_plain_loop_whose_seed_changes(tmp_path: Path):
    """Independent reference: one loop written by hand, in which the order of the data changes its seed at the fork."""
    dataset, training = replace(data(), augmentation=Augmentation()), sgd(momentum=0.9)
    found, _ = make(Forked(shared_epochs=2, shared_seed=3), 7, Ingredients(mlp, dataset, training, (5, 7)), tmp_path)
    with isolated(3, "initialisation"):
        net = mlp()
    optimizer = torch.optim.SGD(net.parameters(), momentum=0.9, nesterov=True, weight_decay=1e-3)
    for epoch in range(4):
        seed = 3 if epoch < 2 else 7
        order = torch.randperm(90, generator=generator(seed, "shuffle", epoch))
        batches = order.split(20)
        for step, batch in enumerate(batches):
            optimizer.param_groups[0]["lr"] = training.rate(epoch + step / len(batches))
            loss = cross_entropy(net(dataset.normalise(dataset.train.images[batch])), dataset.train.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, tensor in of_model(net).items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_part_cannot_go_on_after_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no checkpoint"):
        Earlier(tmp_path, 0)
