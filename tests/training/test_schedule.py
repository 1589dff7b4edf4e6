"""Schedules against closed forms, torch.optim.lr_scheduler and the papers' code."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lmc.errors import UserError
from lmc.training.adam import Adam
from lmc.training.schedule.base import Schedule
from lmc.training.schedule.constant import Constant
from lmc.training.schedule.cosine import Cosine
from lmc.training.schedule.exponential_step import ExponentialStep
from lmc.training.schedule.linear import Linear
from lmc.training.schedule.plateau_linear import PlateauLinear
from lmc.training.schedule.step import Step
from lmc.training.sgd import SGD

EPOCHS = 40
ALL = [Constant(), Cosine(), Step(milestones=[10, 30]), Linear(), Linear(final=0.2), PlateauLinear(), ExponentialStep()]


def _torch_rates(make: object, count: int) -> list[float]:
    """The factors that a scheduler of torch gives at its first `count` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer)  # type: ignore[operator] # a class of torch
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_cosine_is_that_of_torch() -> None:
    expected = _torch_rates(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=EPOCHS), EPOCHS)
    np.testing.assert_allclose([Cosine().factor(e, EPOCHS) for e in range(EPOCHS)], expected, atol=1e-12)


def test_step_is_that_of_torch_and_holds_within_an_epoch() -> None:
    schedule = Step(milestones=[10, 30], gamma=0.2)
    expected = _torch_rates(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [10, 30], gamma=0.2), EPOCHS)
    for inside in (0.0, 0.99):
        found = [schedule.factor(e + inside, EPOCHS) for e in range(EPOCHS)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("final", [0.0, 0.3])
def test_linear_is_that_of_torch(final: float) -> None:
    expected = _torch_rates(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=final, total_iters=EPOCHS), EPOCHS
    )
    np.testing.assert_allclose([Linear(final=final).factor(e, EPOCHS) for e in range(EPOCHS)], expected, atol=1e-12)


def test_plateau_linear_is_garipovs() -> None:
    # Garipov et al.: 1 to one half, then a line to 0.01 at nine tenths; their epochs count from 1.
    counted = np.arange(1, EPOCHS + 1) / EPOCHS
    expected = np.interp(counted, [0, 0.5, 0.9, 1], [1, 1, 0.01, 0.01])
    for inside in (0.0, 0.7):
        found = [PlateauLinear().factor(e + inside, EPOCHS) for e in range(EPOCHS)]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_exponential_step_is_tatros() -> None:
    expected = _torch_rates(
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda e: 0.5 ** (e // 20) * 0.9996**e), EPOCHS
    )
    for inside in (0.0, 0.99):
        found = [ExponentialStep().factor(e + inside, EPOCHS) for e in range(EPOCHS)]
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_every_schedule_starts_at_one_and_never_rises(schedule: Schedule) -> None:
    factors = [schedule.factor(e, EPOCHS) for e in np.linspace(0, EPOCHS, 400, endpoint=False)]
    assert factors[0] == 1
    assert all(later <= earlier for earlier, later in pairwise(factors))
    assert min(factors) >= 0


def test_repairs_rate_is_reproduced_step_by_step() -> None:
    # Jordan et al.: np.interp(arange, [0, 5 n, E n], [0, 1, 0]) with n steps an epoch.
    steps = 7
    training = SGD(schedule=Linear(), epochs=EPOCHS, learning_rate=0.4, warmup_epochs=5)
    expected = 0.4 * np.interp(np.arange(EPOCHS * steps), [0, 5 * steps, EPOCHS * steps], [0, 1, 0])
    found = [training.rate(i // steps + i % steps / steps) for i in range(EPOCHS * steps)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_cosine_after_a_warmup_spans_the_epochs_that_remain() -> None:
    training = SGD(schedule=Cosine(), epochs=11, learning_rate=1.0, warmup_epochs=1)
    assert training.rate(0) == 0
    assert training.rate(0.25) == 0.25
    assert training.rate(1) == 1
    assert training.rate(6) == pytest.approx(0.5)
    assert training.rate(11) == pytest.approx(0, abs=1e-12)


def test_milestones_count_from_the_start_of_the_training() -> None:
    training = SGD(schedule=Step(milestones=[4], gamma=0.1), epochs=8, learning_rate=1.0, warmup_epochs=2)
    assert training.rate(3.9) == 1
    assert training.rate(4) == pytest.approx(0.1)


def test_bad_settings_are_explained() -> None:
    with pytest.raises(UserError, match=r"milestones=\[30, 10\]: the epochs must increase"):
        Step(milestones=[30, 10])
    with pytest.raises(UserError, match=r"hold=0\.9 must lie below"):
        PlateauLinear(hold=0.9, end=0.9)
    with pytest.raises(UserError, match="warmup_epochs=5 is longer than the 3 epochs"):
        Adam(schedule=Constant(), epochs=3, warmup_epochs=5)
    with pytest.raises(UserError, match="nesterov=true needs momentum"):
        SGD(schedule=Constant(), momentum=0, nesterov=True)


def test_a_rate_is_never_nan() -> None:
    training = SGD(schedule=Cosine(), epochs=2, warmup_epochs=2)
    assert all(math.isfinite(training.rate(e)) for e in np.linspace(0, 2, 50, endpoint=False))
