"""The attack against closed forms and against the adversarial-robustness-toolbox."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lmc.config import build, identity
from lmc.errors import UserError
from lmc.seeding import generator, isolated
from lmc.training.attack.base import kept_statistics
from lmc.training.attack.pgd import PGD, box

CLASSES = 4


def network(seed: int = 0, *, norm: bool = False) -> nn.Module:
    """A small convolutional network of normalised images, its normalisation inside."""
    with isolated(seed, "weights"):
        inner = [nn.BatchNorm2d(6)] if norm else []
        layers = [nn.Conv2d(2, 6, 3), *inner, nn.Tanh(), nn.Flatten(), nn.Linear(6 * 9, CLASSES)]
        return nn.Sequential(Shifted(), *layers).eval()


class Shifted(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - 0.4) / 0.2


def batch(count: int = 24, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images (count, 2, 5, 5), black, white and rounded to 8 bits in part, and labels."""
    drawn = torch.rand(count, 2, 5, 5, generator=generator(seed, "images"))
    images = (drawn * 1.2 - 0.1).clamp(0, 1)
    images[::2] = (images[::2] * 255).round() / 255
    return images, torch.randint(0, CLASSES, (count,), generator=generator(seed, "labels"))


def loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float(cross_entropy(model(images), labels))


def exact_distance(one: Tensor, two: Tensor) -> float:
    """The greatest difference, in float64: float32 numbers in [0, 1] are subtracted there almost without rounding."""
    return float((one.double() - two.double()).abs().max())


@settings(max_examples=25, deadline=None)
@given(
    budget=st.floats(1e-6, 1.0),
    share=st.floats(0.01, 2.0),
    steps=st.integers(1, 4),
    random_start=st.booleans(),
    seed=st.integers(0, 5),
)
def test_the_budget_is_kept_to_the_last_bit(
    budget: float, share: float, steps: int, random_start: bool, seed: int
) -> None:
    attack = PGD(budget=budget, step=share * budget, steps=steps, random_start=random_start)
    images, labels = batch(seed=seed)
    attacked = attack(network(seed), images, labels, generator(seed, "noise"))
    assert attacked.dtype == torch.float32
    assert exact_distance(attacked, images) <= budget
    assert bool(((attacked - images).abs() <= budget).all())  # and so it is when the difference is rounded
    assert float(attacked.min()) >= 0
    assert float(attacked.max()) <= 1


@pytest.mark.parametrize("budget", [8 / 255, 1e-7, 0.1, 1.0])
def test_the_box_is_the_largest_of_float32_numbers(budget: float) -> None:
    """By brute force: the next number outwards would be outside."""
    images = batch()[0].flatten()
    low, high = box(images, budget)
    for bound, outwards, limit in ((low, -torch.inf, 0.0), (high, torch.inf, 1.0)):
        assert exact_distance(bound, images) <= budget
        beyond = torch.nextafter(bound, torch.full_like(bound, outwards))
        too_far = (beyond.double() - images.double()).abs() > budget
        assert bool((too_far | (bound == limit)).all())


def test_one_step_on_a_linear_network_is_the_sign_of_the_difference_of_its_weights() -> None:
    """Two classes: d loss / d x = -(1 - p) (w_label - w_other), so the step goes along sign(w_other - w_label)."""
    with isolated(0, "linear"):
        linear = nn.Linear(50, 2)
    images, _ = batch()
    labels = torch.arange(len(images)) % 2
    weight = linear.weight.detach()
    towards = torch.sign(weight[1 - labels] - weight[labels]).view_as(images)
    attack = PGD(budget=0.125, step=0.0625, steps=1, random_start=False)
    found = attack(nn.Sequential(nn.Flatten(), linear), images, labels, generator(0))
    torch.testing.assert_close(found, (images + 0.0625 * towards).clamp(0, 1), rtol=0, atol=6e-8)
    # Many steps end in the corner of the box, which is the strongest of all attacks on a linear network.
    corner = PGD(budget=0.125, step=0.0625, steps=2, random_start=False)(
        nn.Sequential(nn.Flatten(), linear), images, labels, generator(0)
    )
    torch.testing.assert_close(corner, (images + 0.125 * towards).clamp(0, 1), rtol=0, atol=6e-8)


def test_the_random_start_fills_the_box_and_comes_from_the_generator() -> None:
    images = torch.full((200, 2, 5, 5), 0.5)
    labels = torch.zeros(200, dtype=torch.int64)

    def still(pixels: Tensor) -> Tensor:
        """A network whose gradient is 0, so that what remains is the start."""
        return torch.stack([0 * pixels.sum((1, 2, 3)), torch.zeros(len(pixels))], 1)

    attack = PGD(budget=0.1, step=0.05, steps=1)
    start = (attack(still, images, labels, generator(0, "noise")) - images).flatten()
    # 10,000 draws, uniform on [-0.1, 0.1]: mean 0 +- 0.0006, variance 0.01 / 3, every tenth of the range a tenth.
    assert abs(float(start.mean())) < 0.003
    assert float(start.var()) == pytest.approx(0.01 / 3, rel=0.05)
    counts = torch.histc(start, bins=10, min=-0.1, max=0.1)
    assert float(counts.min()) > 850
    assert float(counts.max()) < 1150
    again, other = (attack(still, images, labels, generator(0, name)) for name in ("noise", "other"))
    assert torch.equal((again - images).flatten(), start)
    assert not torch.equal((other - images).flatten(), start)
    exact = PGD(budget=0.1, step=0.05, steps=1, random_start=False)(still, images, labels, generator(0))
    assert torch.equal(exact, images)


def test_nothing_is_left_behind_and_nothing_is_computed_for_the_parameters() -> None:
    model = network(norm=True)
    images, labels = batch()
    before = images.clone()
    asked: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: asked.append(name))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = 0

    def counted(pixels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        logits: Tensor = model(pixels)
        return logits

    with torch.no_grad():  # as in an evaluation
        found = PGD(steps=3)(counted, images, labels, generator(0))
    assert calls == 3
    assert asked == []
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(images, before)
    assert not found.requires_grad
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    cross_entropy(model(images), labels).backward()  # the control: the hooks do see a gradient
    assert asked


def test_the_memory_format_stays() -> None:
    images, labels = batch()
    last = images.contiguous(memory_format=torch.channels_last)
    found = PGD(random_start=False)(network(), last, labels, generator(0))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, PGD(random_start=False)(network(), images, labels, generator(0)))


def test_statistics_are_used_but_not_recorded() -> None:
    model = network(norm=True).train()
    images, _ = batch()
    layer = model[2]
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with kept_statistics(model):
        kept = model(images)
    assert all(torch.equal(state[name], tensor) for name, tensor in layer.state_dict().items())
    recorded = model(images)
    torch.testing.assert_close(kept, recorded)
    assert not torch.equal(state["running_mean"], layer.running_mean)
    assert int(layer.num_batches_tracked) == 1
    model.eval()
    with kept_statistics(model):
        torch.testing.assert_close(model(images), model(images))
        assert not torch.allclose(model(images), recorded, atol=1e-3)


@pytest.fixture(scope="module")
def reference() -> Callable[..., np.ndarray]:
    """art.attacks.evasion.ProjectedGradientDescentPyTorch at the settings of an attack of ours."""
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")

    def run(model: nn.Module, images: Tensor, labels: Tensor, attack: PGD) -> np.ndarray:
        shape = tuple(images.shape[1:])
        classifier = classification.PyTorchClassifier(
            model, nn.CrossEntropyLoss(), shape, CLASSES, clip_values=(0.0, 1.0), device_type="cpu"
        )
        theirs = evasion.ProjectedGradientDescentPyTorch(
            classifier,
            norm=np.inf,
            eps=attack.budget,
            eps_step=attack.step,
            max_iter=attack.steps,
            num_random_init=int(attack.random_start),
            batch_size=len(images),
            verbose=False,
        )
        state = np.random.get_state()  # noqa: NPY002 (it draws from numpy's global generator)
        np.random.seed(0)  # noqa: NPY002
        found: np.ndarray = theirs.generate(images.numpy(), np.eye(CLASSES)[labels.numpy()])
        np.random.set_state(state)  # noqa: NPY002
        return found

    return run


@pytest.mark.filterwarnings("default")  # the library's own
class TestAgainstAnIndependentLibrary:
    @pytest.mark.parametrize("settings", [{"steps": 1}, {"steps": 7}, {"steps": 10, "budget": 0.1, "step": 0.03}])
    @pytest.mark.parametrize("norm", [False, True])
    def test_without_a_random_start_the_attacked_images_are_the_same(
        self, reference: Callable[..., np.ndarray], settings: dict[str, Any], norm: bool
    ) -> None:
        attack = PGD(**settings, random_start=False)
        model, (images, labels) = network(norm=norm), batch(64)
        found = attack(model, images, labels, generator(0)).numpy()
        theirs = reference(model, images, labels, attack)
        assert np.abs(theirs - images.numpy()).max() > 0.9 * min(attack.budget, attack.steps * attack.step)
        np.testing.assert_allclose(found, theirs, rtol=0, atol=2e-7)

    def test_with_a_random_start_it_is_as_strong(self, reference: Callable[..., np.ndarray]) -> None:
        attack = PGD(budget=0.05, step=0.0125, steps=10)
        model, (images, _) = network(), batch(400)
        with torch.no_grad():
            labels = model(images).argmax(1)  # all right before the attack
        found = attack(model, images, labels, generator(0))
        theirs = torch.from_numpy(reference(model, images, labels, attack))
        with torch.no_grad():
            ours, other = (float((model(x).argmax(1) == labels).float().mean()) for x in (found, theirs))
        assert 0.05 < other < 0.95
        assert ours <= other + 0.02
        assert loss(model, found, labels) >= loss(model, theirs, labels) - 0.01
        assert loss(model, found, labels) > loss(model, images, labels) + 0.1


NODE = {"_target_": "lmc.training.attack.pgd.PGD"}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"budget": -0.1}, "training.attack.budget=-0.1"),
        ({"budget": 0}, "training.attack.budget=0"),
        ({"budget": 8}, "training.attack.budget=8"),
        ({"budget": float("nan")}, "training.attack.budget=nan"),
        ({"step": 0.0}, "training.attack.step=0.0"),
        ({"step": -1}, "training.attack.step=-1"),
        ({"steps": 0}, "training.attack.steps=0"),
        ({"steps": 1.5}, "training.attack.steps=1.5"),
        ({"budget": 0.01, "step": 0.021}, "attack.step=0.021 is more than twice attack.budget=0.01"),
        ({"bugdet": 0.1}, "training.attack.bugdet is not a setting; did you mean budget"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        build({**NODE, **setting}, "training.attack")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_made_before_there_were_attacks_stay() -> None:
    training: dict[str, Any] = {
        "_target_": "lmc.training.sgd.SGD",
        "schedule": {"_target_": "lmc.training.schedule.constant.Constant"},
    }
    plain = identity(training, "training")
    assert "attack" not in plain
    assert identity({**training, "attack": None}, "training") == plain
    attacked = identity({**training, "attack": NODE}, "training")
    assert attacked == {**plain, "attack": identity(NODE, "training.attack")}
    assert attacked["attack"]["budget"] == 8 / 255
