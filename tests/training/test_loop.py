"""The loop against a loop written by hand, and its contracts."""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Dataset
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.state import State, of_model
from lmc.training.adam import Adam
from lmc.training.adamw import AdamW
from lmc.training.loop import HISTORY_FILE, fit
from lmc.training.network import NetworkTrainable
from lmc.training.recipe import Training
from lmc.training.schedule.constant import Constant
from lmc.training.sgd import SGD

Settings = Callable[..., Training]
Record = Mapping[str, float]


def _train(model: nn.Module, dataset: Dataset, training: Training, folder: Path, seed: int = 0) -> State:
    trainable = NetworkTrainable(model, of_model(model))
    fit(model, trainable, dataset, training, seed=seed, folder=folder, on_epoch=lambda record: None)
    return trainable.final_state()


def _by_hand(model: nn.Module, dataset: Dataset, training: Training, optimizer_of: Callable[..., object]) -> State:
    """A plain loop: deep copy, model(images), torch.optim without fused kernels."""
    net = copy.deepcopy(model).train()
    optimizer = optimizer_of([p for p in net.parameters() if p.requires_grad])
    for epoch in range(training.epochs):
        order = torch.randperm(len(dataset.train), generator=generator(0, "shuffle", epoch))
        batches = [b for b in order.split(training.batch_size) if len(b) > 1]
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:  # type: ignore[attr-defined] # an optimiser
                group["lr"] = training.rate(epoch + step / len(batches))
            images = (dataset.train.images[batch].float() / 255 - 0.5) / 0.25
            loss = cross_entropy(net(images), dataset.train.labels[batch])
            optimizer.zero_grad()  # type: ignore[attr-defined] # an optimiser
            loss.backward()
            optimizer.step()  # type: ignore[attr-defined] # an optimiser
    return of_model(net)


def _assert_close(found: State, expected: State, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


def _bytes(state: State) -> dict[str, bytes]:
    return {name: tensor.contiguous().numpy().tobytes() for name, tensor in state.items()}


@pytest.mark.parametrize("batch_size", [20, 25])  # 101 images: a last batch of one, which is left out, in both cases
def test_sgd_agrees_with_a_plain_loop(
    mlp: nn.Module, dataset: Dataset, sgd: Settings, folder: Path, batch_size: int
) -> None:
    training = sgd(batch_size=batch_size)
    found = _train(mlp, dataset, training, folder)
    expected = _by_hand(
        mlp, dataset, training, lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, weight_decay=1e-3)
    )
    _assert_close(found, expected, 1e-6)


def test_a_ragged_last_batch_is_kept(mlp: nn.Module, dataset: Dataset, sgd: Settings, folder: Path) -> None:
    training = sgd(batch_size=40)
    found = _train(mlp, dataset, training, folder)
    expected = _by_hand(
        mlp, dataset, training, lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, weight_decay=1e-3)
    )
    _assert_close(found, expected, 1e-6)


@pytest.mark.parametrize(("option", "reference"), [(Adam, torch.optim.Adam), (AdamW, torch.optim.AdamW)])
def test_adam_agrees_with_a_plain_loop(
    mlp: nn.Module, dataset: Dataset, folder: Path, option: type[Adam], reference: Callable[..., object]
) -> None:
    training = option(schedule=Constant(), epochs=2, batch_size=30, learning_rate=1e-3, weight_decay=0.1)
    found = _train(mlp, dataset, training, folder)
    _assert_close(found, _by_hand(mlp, dataset, training, lambda p: reference(p, weight_decay=0.1)), 1e-6)


@pytest.mark.parametrize("channels_last", [False, True])
def test_batch_norm_statistics_and_frozen_tensors_are_those_of_a_plain_loop(
    convnet: nn.Module, dataset: Dataset, sgd: Settings, folder: Path, channels_last: bool
) -> None:
    training = sgd(channels_last=channels_last)
    found = _train(convnet, dataset, training, folder)
    expected = _by_hand(
        convnet, dataset, training, lambda p: torch.optim.SGD(p, momentum=0.9, nesterov=True, weight_decay=1e-3)
    )
    _assert_close(found, expected, 1e-5)
    assert found["1.num_batches_tracked"] == 15
    assert not torch.equal(found["1.running_mean"], convnet[1].running_mean)
    assert torch.equal(found["0.bias"], convnet[0].bias)
    assert all(tensor.is_contiguous() for tensor in found.values())


def test_same_seed_same_bytes_and_another_seed_others(
    convnet: nn.Module, dataset: Dataset, sgd: Settings, tmp_path: Path
) -> None:
    moved = replace(dataset, augmentation=Augmentation(flip=True, crop_padding=1))
    training = sgd(precision="auto")
    first, again, other = (_train(convnet, moved, training, tmp_path / f"{i}", s) for i, s in enumerate((0, 0, 1)))
    assert _bytes(first) == _bytes(again)
    assert _bytes(first) != _bytes(other)


def test_augmentation_is_used_and_drawn_anew_each_epoch(mlp: nn.Module, dataset: Dataset, folder: Path) -> None:
    drawn = []

    class Spy(Augmentation):
        def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            drawn.append(float(torch.rand((), generator=generator)))
            return torch.zeros_like(images)

    training = SGD(schedule=Constant(), epochs=2, batch_size=50, learning_rate=0.1)
    found = _train(mlp, replace(dataset, augmentation=Spy()), training, folder)
    assert len(set(drawn)) == 4
    black = replace(dataset, train=replace(dataset.train, images=torch.zeros_like(dataset.train.images)))
    expected = _by_hand(mlp, black, training, lambda p: torch.optim.SGD(p, momentum=0.9))
    _assert_close(found, expected, 1e-6)


def test_nothing_handed_in_is_changed(convnet: nn.Module, dataset: Dataset, sgd: Settings, folder: Path) -> None:
    convnet.eval()
    before, start = of_model(convnet), {name: t + 0 for name, t in convnet.state_dict().items()}
    images = dataset.train.images.clone()
    trainable = NetworkTrainable(convnet, start)
    fit(convnet, trainable, dataset, sgd(), seed=0, folder=folder, on_epoch=lambda record: None)
    assert not convnet.training
    assert _bytes(of_model(convnet)) == _bytes(before) == _bytes(start)
    assert all(p.grad is None for p in convnet.parameters())
    assert torch.equal(images, dataset.train.images)


def test_history_holds_one_record_an_epoch(mlp: nn.Module, dataset: Dataset, sgd: Settings, folder: Path) -> None:
    seen: list[Record] = []
    trainable = NetworkTrainable(mlp, of_model(mlp))
    training = sgd(epochs=12, learning_rate=0.1)
    fit(mlp, trainable, dataset, training, seed=0, folder=folder, on_epoch=seen.append)
    lines = [json.loads(line) for line in (folder / HISTORY_FILE).read_text().splitlines()]
    assert lines == seen
    assert [record["epoch"] for record in lines] == list(range(1, 13))
    last = lines[-1]
    assert set(last) == {
        *("epoch", "learning_rate", "train_loss", "train_accuracy"),
        *("validation_loss", "validation_accuracy", "seconds", "images_per_second"),
    }
    assert last["train_loss"] < lines[0]["train_loss"]
    assert last["learning_rate"] == training.rate(11 + 4 / 5)
    assert last["images_per_second"] == pytest.approx(100 / last["seconds"])
    net = copy.deepcopy(mlp).eval()
    net.load_state_dict(trainable.final_state())
    with torch.no_grad():
        logits = net((dataset.validation.images.float() / 255 - 0.5) / 0.25)
    assert last["validation_loss"] == pytest.approx(float(cross_entropy(logits, dataset.validation.labels)), rel=1e-5)
    assert last["validation_accuracy"] == float((logits.argmax(1) == dataset.validation.labels).double().mean())
    assert [path.name for path in folder.iterdir()] == [HISTORY_FILE]


def test_train_loss_is_the_mean_over_images(mlp: nn.Module, dataset: Dataset, folder: Path) -> None:
    # With a vanishing learning rate the epoch's mean loss is that of the initial weights, ragged batch included.
    seen: list[Record] = []
    training = SGD(schedule=Constant(), epochs=1, batch_size=40, learning_rate=1e-12, momentum=0.0)
    bare = replace(dataset, validation=dataset.validation.select(torch.tensor([], dtype=torch.int64)))
    fit(mlp, NetworkTrainable(mlp, of_model(mlp)), bare, training, seed=0, folder=folder, on_epoch=seen.append)
    with torch.no_grad():
        logits = mlp((dataset.train.images.float() / 255 - 0.5) / 0.25)
    assert seen[0]["train_loss"] == pytest.approx(float(cross_entropy(logits, dataset.train.labels)), rel=1e-6)
    assert seen[0]["train_accuracy"] == pytest.approx(float((logits.argmax(1) == dataset.train.labels).double().mean()))
    assert "validation_loss" not in seen[0]


def test_no_epochs_leave_the_initial_weights(mlp: nn.Module, dataset: Dataset, sgd: Settings, folder: Path) -> None:
    found = _train(mlp, dataset, sgd(epochs=0, warmup_epochs=0), folder)
    assert _bytes(found) == _bytes(of_model(mlp))
    assert (folder / HISTORY_FILE).read_text() == ""


def test_divergence_names_epoch_step_rate_and_a_way_out(mlp: nn.Module, dataset: Dataset, folder: Path) -> None:
    # A weight set to NaN by the third augmentation call: epoch 1 has 2 steps, so it shows in epoch 2, step 2.
    trainable = NetworkTrainable(mlp, of_model(mlp))
    calls = 0

    class Poison(Augmentation):
        def __call__(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == 4:
                trainable.parameters()[0].data.fill_(float("nan"))
            return images

    training = SGD(schedule=Constant(), epochs=5, batch_size=50, learning_rate=0.125)
    with pytest.raises(UserError, match=r"became nan in epoch 2, step 2 of 2, at learning rate 0.125; lower training"):
        fit(
            mlp,
            trainable,
            replace(dataset, augmentation=Poison()),
            training,
            seed=0,
            folder=folder,
            on_epoch=lambda record: None,
        )
    assert len((folder / HISTORY_FILE).read_text().splitlines()) == 1


def test_divergence_in_the_very_last_step_is_seen(mlp: nn.Module, dataset: Dataset, folder: Path) -> None:
    training = SGD(schedule=Constant(), epochs=1, batch_size=101, learning_rate=3e38, weight_decay=1e38)
    with pytest.raises(UserError, match="weights became infinite in epoch 1, step 1 of 1"):
        _train(mlp, dataset, training, folder)


def test_too_few_images_are_refused(mlp: nn.Module, dataset: Dataset, sgd: Settings, folder: Path) -> None:
    one = replace(dataset, train=dataset.train.select(torch.tensor([0])))
    with pytest.raises(UserError, match="1 training images"):
        _train(mlp, one, sgd(), folder)


def test_a_state_of_another_architecture_is_refused(mlp: nn.Module, convnet: nn.Module) -> None:
    with pytest.raises(UserError, match="the initial state"):
        NetworkTrainable(mlp, of_model(convnet))


def test_tied_weights_stay_tied(dataset: Dataset, folder: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(36, 36, bias=False)
            self.second = nn.Linear(36, 36, bias=False)
            self.second.weight = self.first.weight
            self.last = nn.Linear(36, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.last(self.second(torch.relu(self.first(images.flatten(1)))))

    with torch.random.fork_rng():
        model = Tied()
    training = SGD(schedule=Constant(), epochs=1, batch_size=50, learning_rate=0.01)
    found = _train(model, dataset, training, folder)
    assert torch.equal(found["first.weight"], found["second.weight"])
    _assert_close(found, _by_hand(model, dataset, training, lambda p: torch.optim.SGD(p, momentum=0.9)), 1e-5)


def test_precision_is_bfloat16_for_convolutions_alone(mlp: nn.Module, convnet: nn.Module, sgd: Settings) -> None:
    cpu = torch.device("cpu")
    capable = torch.cpu._is_avx512_bf16_supported()
    assert sgd(precision="auto").autocast(convnet, cpu) == capable
    assert not sgd(precision="auto").autocast(mlp, cpu)
    assert sgd(precision="bfloat16").autocast(mlp, cpu)
    assert not sgd(precision="float32").autocast(convnet, cpu)
