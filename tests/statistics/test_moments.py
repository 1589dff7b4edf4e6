from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmc.dataset.augmentation import Augmentation
from lmc.dataset.images import Images
from lmc.errors import UserError
from lmc.seeding import generator
from lmc.statistics.moments import Calibration, JointMoments, Moments


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    place=st.sampled_from([(1, (3, 5)), (-1, (4,)), (1, ())]),
    offset=st.sampled_from([0.0, 100.0]),
)
def test_pooled_moments_are_those_of_all_values_together(sizes, place, offset):
    dim, positions = place
    parts = []
    for number, size in enumerate(sizes):
        shape = (size, 6, *positions) if dim == 1 else (size, *positions, 6)
        drawn = torch.randn(shape, generator=generator(number, "values"))
        parts.append(drawn * (number + 1) + offset + number)
    pooled = Moments.of(parts[0], dim)
    for part in parts[1:]:
        pooled = pooled + Moments.of(part, dim)
    together = np.concatenate([np.moveaxis(p.numpy().astype(np.float64), dim, 0).reshape(6, -1) for p in parts], axis=1)
    assert pooled.count == together.shape[1]
    np.testing.assert_allclose(pooled.mean, together.mean(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(pooled.deviation, together.std(1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("examples", "batch_size"), [(None, 512), (None, 101), (None, 100), (None, 2), (33, 10)])
def test_a_pass_reads_every_image_once_in_batches_of_two_or_more(dataset, examples, batch_size):
    batches = Calibration(dataset, examples, batch_size)
    sizes = [len(batch) for batch in batches]
    assert sum(sizes) == (examples or 101)
    assert min(sizes) >= 2
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)
    expected = dataset.normalise(dataset.train.first(examples).images).flatten(1)
    found = torch.cat(list(batches)).flatten(1)
    assert torch.equal(torch.unique(found, dim=0), torch.unique(expected, dim=0))
    for first, second in zip(batches, batches, strict=True):
        assert torch.equal(first, second)


def test_batches_of_a_sorted_data_set_are_mixed(dataset):
    brightness = torch.stack([batch.mean() for batch in Calibration(dataset, None, 20)])
    in_order = torch.stack([batch.mean() for batch, _ in dataset.batches(dataset.train, 20)])
    assert brightness.std() < 0.3 * in_order.std()


@pytest.mark.parametrize("examples", [1, 102])
def test_impossible_numbers_of_images_are_refused(dataset, examples):
    with pytest.raises(UserError, match="examples"):
        Calibration(dataset, examples, 10)


def test_augmented_passes_repeat_and_are_those_of_the_training(dataset):
    """A crop of bright images out of black padding darkens them, as it does in training; plain passes know nothing."""
    padded = replace(dataset, augmentation=Augmentation(crop_padding=4))
    augmented, plain = Calibration(padded, None, 20, augment=True), Calibration(padded, None, 20)
    for first, second in zip(augmented, augmented, strict=True):
        assert torch.equal(first, second)
    black = dataset.normalise(torch.zeros(1, 2, 6, 6, dtype=torch.uint8)).mean()
    means = [torch.cat(list(batches)).mean() for batches in (augmented, plain)]
    # A pixel survives a random shift by -4 to 4 of 6 with probability 1 - (mean 20/9) / 6 in each direction.
    survives = (1 - 20 / 9 / 6) ** 2
    assert means[0] == pytest.approx(float(survives * means[1] + (1 - survives) * black), rel=0.1)
    for first, second in zip(Calibration(dataset, None, 20, augment=True), plain, strict=True):
        assert torch.equal(first, second)  # nothing is drawn where training does not augment


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), networks=st.integers(1, 3))
def test_joint_moments_are_those_of_all_values_together(sizes, networks):
    parts = [
        [torch.randn(size, 6, 2, generator=generator(batch, "values", n)) + 3 * n + batch for n in range(networks)]
        for batch, size in enumerate(sizes)
    ]
    pooled = JointMoments.of(parts[0], 1)
    for part in parts[1:]:
        pooled = pooled + JointMoments.of(part, 1)
    together = np.stack([torch.cat([part[n] for part in parts]).movedim(1, 0).flatten(1) for n in range(networks)])
    weights = np.arange(1, networks + 1) / 2
    interpolated = np.einsum("n,ncs->cs", weights, together.astype(np.float64))
    found = pooled.interpolated(list(weights))
    assert found.count == together.shape[2]
    np.testing.assert_allclose(found.mean, interpolated.mean(1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance, interpolated.var(1), rtol=1e-4, atol=1e-5)
    for network, moments in enumerate(pooled):
        np.testing.assert_allclose(moments.mean, together[network].mean(1), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(moments.deviation, together[network].std(1), rtol=1e-4, atol=1e-5)


def test_labels_come_with_their_images(dataset):
    """Of a data set whose label is the brightness of the image."""
    labels = torch.arange(len(dataset.train))
    marked = replace(dataset, train=Images(labels.view(-1, 1, 1, 1).expand(-1, 2, 6, 6).to(torch.uint8), labels))
    batches = list(Calibration(marked, None, 20).labelled())
    assert torch.equal(torch.cat([labels for _, labels in batches]).sort().values, labels)
    for images, of in batches:
        torch.testing.assert_close(images[:, 0, 0, 0], (of / 255 - 0.4) / 0.2)
