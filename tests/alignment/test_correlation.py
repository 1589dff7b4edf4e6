import numpy as np
import pytest
import torch
from torch import Tensor

from lmc.alignment.similarity.correlation import PairMoments


def pool(fixed: Tensor, moving: Tensor, batch: int) -> PairMoments:
    moments = PairMoments.none(len(fixed), torch.device("cpu"))
    for ours, theirs in zip(fixed.split(batch, dim=1), moving.split(batch, dim=1), strict=True):
        moments.add(ours, theirs)
    return moments


@pytest.fixture
def samples() -> tuple[Tensor, Tensor]:
    """Two networks' units with a drift, so that batches differ and their own statistics are not the pooled ones."""
    generator = torch.Generator().manual_seed(0)
    drift = torch.linspace(-3, 5, 211)
    fixed = torch.randn(6, 211, generator=generator) * torch.arange(1.0, 7.0)[:, None] + drift + 20
    moving = fixed[torch.randperm(6, generator=generator)] + 4 * torch.randn(6, 211, generator=generator) - drift
    return fixed, moving


@pytest.mark.parametrize("batch", [1, 7, 100, 211])
def test_pearson_is_that_of_all_samples_together(samples: tuple[Tensor, Tensor], batch: int) -> None:
    fixed, moving = samples
    expected = np.corrcoef(fixed.double().numpy(), moving.double().numpy())[:6, 6:]
    found = pool(fixed, moving, batch).pearson()
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-12)


def test_mean_of_the_batches_would_be_another_number(samples: tuple[Tensor, Tensor]) -> None:
    fixed, moving = samples
    batches = [pool(a, b, 1000).pearson() for a, b in zip(fixed.split(50, 1), moving.split(50, 1), strict=True)]
    assert (torch.stack(batches).mean(0) - pool(fixed, moving, 50).pearson()).abs().max() > 0.1


@pytest.mark.parametrize("batch", [1, 64, 211])
def test_product_is_the_uncentred_mean(samples: tuple[Tensor, Tensor], batch: int) -> None:
    fixed, moving = (values.double().numpy() for values in samples)
    found = pool(*samples, batch).product()
    np.testing.assert_allclose(found.numpy(), fixed @ moving.T / 211, rtol=1e-12)


def test_wide_inputs_are_cut_to_bound_the_memory(
    samples: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pool(*samples, 211)
    monkeypatch.setattr("lmc.alignment.similarity.correlation._CHUNK", 30)
    cut = pool(*samples, 211)
    assert cut.count == whole.count == 211
    torch.testing.assert_close(cut.pearson(), whole.pearson(), rtol=0, atol=1e-13)


def test_a_large_mean_costs_no_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    fixed = torch.randn(3, 4000, generator=generator).double() + 1e6
    moving = fixed.flip(0) + torch.randn(3, 4000, generator=generator)
    expected = np.corrcoef((fixed - 1e6).numpy(), (moving - 1e6).numpy())[:3, 3:]
    np.testing.assert_allclose(pool(fixed, moving, 128).pearson().numpy(), expected, atol=1e-8)


def test_a_dead_unit_correlates_with_nothing(samples: tuple[Tensor, Tensor]) -> None:
    fixed, moving = samples[0].clone(), samples[1].clone()
    fixed[2] = 0.0
    moving[4] = 0.1  # not a binary fraction: its sums are rounded
    found = pool(fixed, moving, 17).pearson()
    assert found.isfinite().all()
    assert (found[2] == 0).all()
    assert (found[:, 4] == 0).all()
    alive = found[[0, 1, 3, 4, 5]][:, [0, 1, 2, 3, 5]]
    assert (alive != 0).all()


def test_units_equal_but_for_scale_and_shift_correlate_fully() -> None:
    values = torch.randn(4, 500, generator=torch.Generator().manual_seed(1))
    found = pool(values, values * torch.tensor([[2.0], [0.1], [-1.0], [30.0]]) + 5, 100).pearson()
    torch.testing.assert_close(found.diagonal(), torch.tensor([1.0, 1.0, -1.0, 1.0]).double(), rtol=0, atol=1e-6)
    assert found.abs().max() <= 1


@pytest.mark.parametrize("batch", [1, 64, 211])
def test_cosine_and_distance_are_not_centred(samples: tuple[Tensor, Tensor], batch: int) -> None:
    fixed, moving = (values.double().numpy() for values in samples)
    moments = pool(*samples, batch)
    lengths = np.linalg.norm(fixed, axis=1)[:, None] * np.linalg.norm(moving, axis=1)
    np.testing.assert_allclose(moments.cosine().numpy(), fixed @ moving.T / lengths, rtol=1e-10)
    pairs = ((fixed[:, None] - moving[None]) ** 2).mean(2)
    np.testing.assert_allclose(moments.distance().numpy(), pairs, rtol=1e-10)
    assert (moments.cosine() - moments.pearson()).abs().max() > 0.1


def test_a_unit_that_is_always_zero_has_no_cosine_but_a_distance(samples: tuple[Tensor, Tensor]) -> None:
    fixed, moving = samples[0].clone(), samples[1]
    fixed[2] = 0.0
    moments = pool(fixed, moving, 17)
    assert (moments.cosine()[2] == 0).all()
    assert (moments.cosine()[[0, 1, 3, 4, 5]] != 0).all()
    np.testing.assert_allclose(moments.distance()[2].numpy(), (moving.double() ** 2).mean(1).numpy(), rtol=1e-10)
    same = pool(fixed, fixed, 17)
    torch.testing.assert_close(same.distance().diagonal(), torch.zeros(6).double(), rtol=0, atol=1e-10)
    assert (same.distance() >= 0).all()
