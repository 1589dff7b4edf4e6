from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lmc.dataset.digits import Digits
from lmc.errors import UserError


def rows(split):
    return Counter(
        (label, pixels.tobytes()) for label, pixels in zip(split.labels.tolist(), split.images.numpy(), strict=True)
    )


def test_every_digit_is_in_one_split_with_its_label():
    dataset = Digits(validation_size=100).load()
    bunch = load_digits()
    source = Counter(
        (int(label), np.rint(pixels / 16 * 255).astype(np.uint8)[None].tobytes())
        for label, pixels in zip(bunch.target, bunch.images, strict=True)
    )
    assert rows(dataset.train) + rows(dataset.validation) + rows(dataset.test) == source
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (1337, 100, 360)
    assert dataset.input_shape == (1, 8, 8)
    assert dataset.train.images.max() == 255
    assert dataset.train.images.min() == 0


def test_test_split_is_stratified_and_does_not_depend_on_the_split_seed():
    first, second = Digits(train_size=200).load(), Digits(train_size=200, split_seed=5).load()
    assert rows(first.test) == rows(second.test)
    assert rows(first.train) != rows(second.train)
    everything = np.bincount(load_digits().target) * (360 / 1797)
    assert np.abs(first.test.labels.bincount().numpy() - everything).max() <= 1


def test_it_is_this_dataset():
    """Pinned: other splits or other grey values would make old results and new ones incomparable."""
    assert Digits().load().checksum == PINNED


PINNED = "b24f9dfb6b224d05ba2ed4c38679c59f80ffdef9cf597ab12b6d412fb2f59233"


@pytest.mark.parametrize("size", [1797, 5000])
def test_a_test_split_of_everything_is_refused(size):
    with pytest.raises(UserError, match=rf"dataset\.test_size={size} leaves none of the 1797 digits"):
        Digits(test_size=size).load()
