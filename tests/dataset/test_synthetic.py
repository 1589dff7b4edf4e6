import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from lmc.dataset.synthetic import Synthetic


def test_sizes_are_the_settings():
    dataset = Synthetic(examples=33, test_examples=12, classes=4, channels=2, size=6).load()
    assert dataset.train.images.shape == (33, 2, 6, 6)
    assert dataset.test.images.shape == (12, 2, 6, 6)
    assert sorted(dataset.train.labels.bincount().tolist()) == [8, 8, 8, 9]
    assert dataset.test.labels.bincount().tolist() == [3, 3, 3, 3]


def test_seed_decides_and_the_splits_differ():
    first, again, other = (Synthetic(seed=seed).load() for seed in (0, 0, 1))
    assert first.checksum == again.checksum != other.checksum
    assert not np.array_equal(first.train.images[:256].numpy(), first.test.images.numpy())


def test_more_examples_keep_the_patterns():
    few, many = Synthetic(examples=200).load(), Synthetic(examples=2000).load()
    for label in range(10):
        means = [split.images[split.labels == label].float().mean(0) for split in (few.train, many.train)]
        assert (means[0] - means[1]).abs().mean() < 15  # of 255; the noise of a mean of 20 is about 10


def test_a_linear_classifier_learns_it():
    dataset = Synthetic().load()
    splits = [(split.images.flatten(1).numpy() / 255, split.labels.numpy()) for split in (dataset.train, dataset.test)]
    model = LogisticRegression(max_iter=300).fit(*splits[0])
    assert model.score(*splits[1]) > 0.95


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_noise_is_the_spread_around_the_pattern(noise):
    dataset = Synthetic(examples=400, classes=2, noise=noise).load()
    pixels = dataset.train.images[dataset.train.labels == 0].double() / 255
    inside = (pixels.mean(0) > 0.35) & (pixels.mean(0) < 0.65)  # where black and white cut nothing off
    assert pixels.std(0)[inside].mean().item() == pytest.approx(noise, rel=0.05, abs=1e-3)
