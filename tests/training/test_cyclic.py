"""Fast geometric ensembling against the formula of the paper, iteration by iteration, and against torch."""

import numpy as np
import pytest
import torch

from lmc.config import build
from lmc.errors import UserError
from lmc.training.schedule.base import Schedule
from lmc.training.schedule.constant import Constant
from lmc.training.schedule.cosine import Cosine
from lmc.training.schedule.cyclic import Cyclic
from lmc.training.schedule.plateau_linear import PlateauLinear
from lmc.training.sgd import SGD


def alpha(i: np.ndarray, c: int, alpha_1: float, alpha_2: float) -> np.ndarray:
    """Garipov et al. 2018, section 5: the rate of iteration i = 1, 2, ..., with c iterations in a cycle."""
    t = (np.mod(i - 1, c) + 1) / c
    falling = (1 - 2 * t) * alpha_1 + 2 * t * alpha_2
    rising = (2 - 2 * t) * alpha_2 + (2 * t - 1) * alpha_1
    return np.where(t <= 0.5, falling, rising)


def rates(schedule: Schedule, epochs: int, steps: int, peak: float = 1.0) -> np.ndarray:
    """The rate at every step, as the training loop asks for it."""
    training = SGD(schedule=schedule, epochs=epochs, learning_rate=peak)
    return np.array([training.rate(e + s / steps) for e in range(epochs) for s in range(steps)])


@pytest.mark.parametrize(("cycle", "steps"), [(2, 1), (2, 7), (4, 5), (6, 391)])
def test_every_step_has_the_rate_of_the_papers_formula(cycle: int, steps: int) -> None:
    epochs, c = 3 * cycle, cycle * steps
    schedule = Cyclic(before=Constant(), start=0, cycle_epochs=cycle, alpha_1=0.5, alpha_2=0.1)
    found = rates(schedule, epochs, steps, peak=0.1)
    # One step later than in the paper: the first step has the highest rate, step c / 2 (from 0) the lowest.
    expected = 0.1 * np.concatenate([[0.5], alpha(np.arange(1, epochs * steps), c, 0.5, 0.1)])
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.argmin() == c // 2
    assert found.min() == pytest.approx(0.01)
    assert found.max() == pytest.approx(0.05)


def test_the_triangle_is_that_of_torch() -> None:
    steps, cycle = 9, 4
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    half = cycle * steps // 2
    expected = []
    scheduler = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.2, max_lr=0.7, step_size_up=half, cycle_momentum=False
    )
    for _ in range(3 * cycle * steps + half):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    # torch's cycle begins at the bottom, so ours is half a cycle ahead of it.
    found = rates(Cyclic(before=Constant(), start=0, cycle_epochs=cycle, alpha_1=0.7, alpha_2=0.2), 12, steps)
    np.testing.assert_allclose(found, expected[half:], rtol=1e-9)


@pytest.mark.parametrize("before", [PlateauLinear(), Cosine(), Constant()], ids=repr)
def test_the_first_part_is_that_of_the_ordinary_training_of_the_same_length(before: Schedule) -> None:
    schedule = Cyclic(before=before, alpha_1=0.3, alpha_2=0.2, cycle_epochs=4)
    ours, plain = rates(schedule, 20, 5), rates(before, 20, 5)
    np.testing.assert_array_equal(ours[: 16 * 5], plain[: 16 * 5])
    np.testing.assert_allclose(ours[16 * 5 :: 10], [0.3, 0.2])
    assert rates(Cyclic(before=before, start=1), 20, 5).tolist() == plain.tolist()


def test_garipovs_recipe_for_cifar_100() -> None:
    # PreResNet164: 200 epochs at 0.1, of which 160 are run; then 40 epochs in cycles of 2 between 0.05 and 0.01.
    training = SGD(schedule=Cyclic(before=PlateauLinear()), epochs=200, learning_rate=0.1)
    assert training.rate(0) == pytest.approx(0.1)
    assert training.rate(159) == pytest.approx(0.1 * (1 - 0.99 * (0.8 - 0.5) / 0.4))
    assert [training.rate(e) for e in (160, 160.5, 161, 161.5, 162, 199)] == pytest.approx(
        [0.05, 0.03, 0.01, 0.03, 0.05, 0.01]
    )
    assert training.schedule.minima(200) == tuple(range(161, 200, 2))


@pytest.mark.parametrize(("epochs", "start", "cycle"), [(200, 0.8, 2), (60, 0.8, 4), (199, 0.805, 2), (13, 0, 6)])
def test_the_minima_are_the_ends_of_the_epochs_after_which_the_rate_is_lowest(
    epochs: int, start: float, cycle: int
) -> None:
    schedule = Cyclic(before=Constant(), start=start, cycle_epochs=cycle)
    after = [epoch for epoch in range(1, epochs + 1) if schedule.factor(epoch, epochs) == pytest.approx(0.1)]
    assert list(schedule.minima(epochs)) == after
    assert after


def test_the_last_network_can_be_one_of_the_ensemble() -> None:
    assert Cyclic(before=Constant(), start=0.805).minima(199) == tuple(range(161, 200, 2))


def test_cycles_are_counted_from_the_first_epoch_whatever_the_warmup() -> None:
    training = SGD(schedule=Cyclic(before=Constant(), start=0.5), epochs=8, learning_rate=1.0, warmup_epochs=1.5)
    assert [training.rate(e) for e in (0.75, 3, 4, 5, 6)] == pytest.approx([0.5, 1, 0.5, 0.1, 0.5])


def test_a_constant_rate_is_a_flat_triangle() -> None:
    # VGG16 of Garipov et al.: both rates are 0.01 at a peak of 0.05.
    found = rates(Cyclic(before=Constant(), start=0, alpha_1=0.2, alpha_2=0.2), 4, 3, peak=0.05)
    np.testing.assert_allclose(found, 0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha_1": 0.1, "alpha_2": 0.5}, r"alpha_2=0\.5 is above schedule\.alpha_1=0\.1.*exchange them"),
        ({"cycle_epochs": 3}, r"schedule\.cycle_epochs=3"),
        ({"cycle_epochs": 0}, r"schedule\.cycle_epochs=0"),
        ({"start": 1.5}, r"schedule\.start=1\.5"),
        ({"alpha_2": 0}, r"schedule\.alpha_2=0"),
    ],
)
def test_what_makes_no_cycle_is_refused_in_one_line(settings: dict[str, float], message: str) -> None:
    node = {
        "_target_": "lmc.training.schedule.cyclic.Cyclic",
        "before": {"_target_": "lmc.training.schedule.constant.Constant"},
    }
    with pytest.raises(UserError, match=message) as caught:
        build({**node, **settings}, "schedule")
    assert "\n" not in str(caught.value)
